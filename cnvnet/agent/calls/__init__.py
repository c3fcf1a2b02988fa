"""The CNI calls that launchers hand over: their order, their caller, and the log line of each."""
