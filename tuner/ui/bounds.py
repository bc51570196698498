"""How many runs may wait or train at once: of one page or program, of one account, of one network address, of all."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tuner.errors import TunerError
from tuner.ui.visitor import Visitor

MOST_RUNS = 1000
# What is counted -> the most runs, and how to say whose they are. A whole classroom may share one address.
MOST = {
    "session": (4, "You have"),
    "account": (8, "Your account has"),
    "address": (60, "Your network address, which others may share, has"),
}


class Bounds:
    """Counts the runs that are being prepared, wait or train, and refuses those beyond the bounds.

    `holds` tells whether a run waits or trains.
    """

    def __init__(self, holds: Callable[[str], bool]):
        self._holds = holds
        # Run -> whose it is; no more of a visitor is kept than that.
        self._runs: dict[str, dict[str, str | None]] = {}
        self._preparing: dict[object, dict[str, str | None]] = {}
        self._lock = threading.Lock()

    @contextmanager
    def admit(self, visitor: Visitor) -> Iterator[None]:
        """Count one more run for the visitor while it is prepared. Raises TunerError if it is one too many."""
        mark = object()
        with self._lock:
            self._runs = {run: whose for run, whose in self._runs.items() if self._holds(run)}
            _check(_whose(visitor), [*self._runs.values(), *self._preparing.values()])
            self._preparing[mark] = _whose(visitor)
        try:
            yield
        finally:
            with self._lock:
                del self._preparing[mark]

    def hold(self, run: str, visitor: Visitor) -> None:
        """Count this run as long as it waits or trains."""
        with self._lock:
            self._runs[run] = _whose(visitor)


def _whose(visitor: Visitor) -> dict[str, str | None]:
    return {what: getattr(visitor, what) for what in MOST}


def _check(mine: dict[str, str | None], held: list[dict[str, str | None]]) -> None:
    for what, (most, whose) in MOST.items():
        if mine[what] and sum(other[what] == mine[what] for other in held) >= most:
            raise TunerError(
                f"{whose} {most} runs that wait or train, which is the most. Wait until one has ended, or stop one."
            )
    if len(held) >= MOST_RUNS:
        raise TunerError(f"{MOST_RUNS:,} runs are waiting, and more can't be accepted. Try again in a few minutes.")
