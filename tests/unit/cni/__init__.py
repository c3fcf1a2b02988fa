"""Tests of cnvnet.cni."""
