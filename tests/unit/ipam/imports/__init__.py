"""Unit tests of leases in files."""
