"""One window of training."""
