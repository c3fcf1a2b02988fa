"""static-ip as its callers see it."""
