"""Whom a request is for: which virtual machine, which of its interfaces, in which role."""
