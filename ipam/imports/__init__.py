"""Leases as files have them: our own, and what other address managers have given."""
