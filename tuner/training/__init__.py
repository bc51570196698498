"""Train a run, window by window."""
