"""Tests of cnvnet.ipam.store."""
