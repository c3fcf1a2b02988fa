"""What the kernel does, in memory, for unit tests; the functional tests hold it against the real one."""
