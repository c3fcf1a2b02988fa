"""Deletions that a resident process puts off, because the kernel makes their caller wait."""
