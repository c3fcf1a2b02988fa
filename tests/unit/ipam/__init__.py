"""Tests of cnvnet.ipam."""
