"""A clock for tests: the time goes on only as it is told."""


class Machine:
    """Stands in for the module `time`."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self) -> float:
        """Seconds."""
        return self.now
