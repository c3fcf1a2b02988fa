"""Real virtual machines on the executables as they are installed."""
