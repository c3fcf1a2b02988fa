"""What programs that keep running have in common: the log, and an HTTP endpoint for metrics and health."""
