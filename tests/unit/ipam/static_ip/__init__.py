"""Tests of cnvnet.ipam.static_ip."""
