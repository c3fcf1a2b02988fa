"""Tests of cnvnet.vm."""
