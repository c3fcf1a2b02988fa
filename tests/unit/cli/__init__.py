"""Tests of cnvctl."""
