"""Who trains when: a fair queue for the places to train in, and a thread that takes each run through its turn.

A turn is one window, which runs whether or not anybody watches. The next window starts only while somebody does.
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import copy_context
from dataclasses import replace

from tuner import gpu
from tuner.events import EventReader
from tuner.runs import Run
from tuner.ui import progress
from tuner.ui.problems import problems_of

SLOTS = os.environ.get("TUNER_TRAINING_SLOTS")  # how many runs train at once, if the app is told
POLL = 0.2  # seconds between looks at a run's events


class RunQueue:
    """A queue for this many places. Next is the visitor with the fewest runs in training; ties go by arrival."""

    def __init__(self, places: int | None = None):
        self._places = places
        self._waiting: dict[str, str] = {}  # run -> visitor, in order of arrival
        self._training: dict[str, str] = {}
        self._slots: dict[str, int] = {}  # run in training -> the number of its place, from 0
        self._changed = threading.Condition()

    @property
    def places(self) -> int:
        """How many runs train at once; counted when the first one wants to, since that imports torch."""
        if self._places is None:
            self._places = _count_places()
        return self._places

    def slot(self, run: str) -> int:
        """The number of the place that a run in training holds, from 0."""
        return self._slots[run]

    def join(self, run: str, visitor: str) -> bool:
        """Join the queue; False if the run is in it already, or in training."""
        with self._changed:
            if self.holds(run):
                return False
            self._waiting[run] = visitor
            return True

    def leave(self, run: str) -> bool:
        """Leave the queue; False if the run was not in it."""
        with self._changed:
            left = self._waiting.pop(run, None) is not None
            self._changed.notify_all()
            return left

    def holds(self, run: str) -> bool:
        """Whether the run is waiting or in training."""
        with self._changed:
            return run in self._waiting or run in self._training

    def held(self) -> list[str]:
        """The runs that are waiting or in training."""
        with self._changed:
            return [*self._waiting, *self._training]

    def place(self, run: str) -> int | None:
        """The run's place in the queue, 1 being next; None if it is not waiting."""
        with self._changed:
            order = self._order()
            return order.index(run) + 1 if run in order else None

    def _order(self) -> list[str]:
        """The waiting runs in the order in which they would be served if no others came."""
        busy = list(self._training.values())
        waiting, order = dict(self._waiting), []
        while waiting:
            run = min(waiting, key=lambda r: busy.count(waiting[r]))  # the first of the least busy
            busy.append(waiting.pop(run))
            order.append(run)
        return order

    @contextmanager
    def turn(self, run: str) -> Iterator[bool]:
        """Wait for the run's turn, then hold a place; yields False if the run left the queue."""
        with self._changed:
            self._changed.wait_for(lambda: run not in self._waiting or self._is_next(run))
            if is_served := run in self._waiting:
                self._training[run] = self._waiting.pop(run)
                self._slots[run] = min(set(range(self.places)) - set(self._slots.values()))
                self._changed.notify_all()
        try:
            yield is_served
        finally:
            with self._changed:
                if is_served:
                    del self._training[run], self._slots[run]
                self._changed.notify_all()

    def _is_next(self, run: str) -> bool:
        return len(self._training) < self.places and self._order()[0] == run


def _count_places() -> int:
    """On ZeroGPU each run has its own GPU; elsewhere each has a card to itself, and two share a CPU."""
    return int(SLOTS or (8 if gpu.ZERO else len(gpu.cards()) or 2))


queue = RunQueue()


def start(run: Run, visitor: str, event: dict | None = None) -> None:
    """Queue the run for one window of training in the background, and log `event`; a run queued already is left alone.

    Called in an event's handler, whose request tells ZeroGPU whose quota to charge.
    """
    if queue.join(run.id, visitor):
        if event:
            run.append(event)
        threading.Thread(target=copy_context().run, args=(_take_turn, run), daemon=True).start()


def follow(run: Run, visitor: str, reader: EventReader) -> Iterator[dict]:
    """Yield the reader's next events, changes of place in the queue, and heartbeats until the run has ended.

    While somebody follows, a run whose window closed continues in the next one.
    """
    place = None
    while True:
        held = queue.holds(run.id)
        yield from reader.read()
        if not held:
            if not start_next_window(run, visitor):
                return
            continue
        if (now := queue.place(run.id)) != place and now:
            yield {"event": "waiting", "place": now}
        place = now
        yield {"event": "heartbeat"}
        time.sleep(POLL)


def start_next_window(run: Run, visitor: str) -> bool:
    """Queue the run again if it waits for its next window, or lost its turn when the app restarted; tells whether."""
    if queue.holds(run.id):
        return False
    phase = progress.read(run).phase
    if phase in ("continuing", "waiting"):
        start(run, visitor, {"event": "continued"})
    return phase in ("continuing", "waiting")


def look(run: Run) -> progress.Progress:
    """The run's progress as its folder and the queue show it."""
    now = progress.read(run)
    return replace(now, phase="waiting") if queue.place(run.id) else now


def withdraw(run: Run) -> bool:
    """Give up the place in the queue or the next window; False if the run has neither."""
    was_waiting = queue.leave(run.id) or progress.read(run).phase in ("continuing", "waiting")
    if was_waiting:
        run.append({"event": "withdrawn"})
    return was_waiting


def _take_turn(run: Run) -> None:
    with queue.turn(run.id) as is_served:
        if not is_served:
            return
        try:
            run.append({"event": "starting"})
            for _ in gpu.train(run, queue.slot(run.id)):
                pass
        except Exception as error:
            if run.path.exists():  # it may have been deleted while it waited
                _log_error(run, error)


def _log_error(run: Run, error: Exception) -> None:
    problems = problems_of(error, run.id)
    last = run.last_event() or {}
    if last.get("problems") != problems:  # the training process may have logged it already
        with suppress(OSError):  # the disk may be what failed
            run.append({"event": "error", "problems": problems})
