"""What scripts/bench measures: our executables beside the reference plugins, interleaved, in one run."""
