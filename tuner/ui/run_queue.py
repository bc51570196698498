"""Who trains when: a fair line in front of the places to train at, and a thread that takes each run through its turn.

A turn is one window. It goes on whether or not somebody looks; the next one is asked for by whoever still does.
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import replace

from tuner import gpu
from tuner.errors import TunerError
from tuner.runs import Run
from tuner.ui import progress
from tuner.ui.problems import problems_of

# Runs that train at once: on ZeroGPU each has a GPU of its own, elsewhere they share this machine.
PLACES = int(os.environ.get("TUNER_TRAINING_SLOTS", 8 if gpu.ZERO else 2))
LOOK = 0.2  # seconds between looks at a run's events


class RunQueue:
    """Places for so many runs. Next is the visitor with the fewest in training, and of those who came first."""

    def __init__(self, places: int):
        self.places = places
        self._waiting: dict[str, str] = {}  # run -> visitor, in the order in which they came
        self._training: dict[str, str] = {}
        self._changed = threading.Condition()

    def join(self, run: str, visitor: str) -> bool:
        """Stand in line; False where the run does already, or is in training."""
        with self._changed:
            if self.holds(run):
                return False
            self._waiting[run] = visitor
            return True

    def leave(self, run: str) -> bool:
        """Give up waiting; False where the run was not in line."""
        with self._changed:
            left = self._waiting.pop(run, None) is not None
            self._changed.notify_all()
            return left

    def holds(self, run: str) -> bool:
        """Whether the run waits or trains."""
        with self._changed:
            return run in self._waiting or run in self._training

    def held(self) -> list[str]:
        """The runs that wait or train."""
        with self._changed:
            return [*self._waiting, *self._training]

    def place(self, run: str) -> int | None:
        """How many are served before the run, itself included; None where it does not wait."""
        with self._changed:
            order = self._order()
            return order.index(run) + 1 if run in order else None

    def _order(self) -> list[str]:
        """Those who wait, in the order in which they would be served if nobody else came."""
        busy = list(self._training.values())
        waiting, order = dict(self._waiting), []
        while waiting:
            run = min(waiting, key=lambda r: busy.count(waiting[r]))  # the first of the least busy
            busy.append(waiting.pop(run))
            order.append(run)
        return order

    @contextmanager
    def turn(self, run: str) -> Iterator[bool]:
        """Wait for the run's turn, then hold a place; gives False where the run left the line."""
        with self._changed:
            self._changed.wait_for(lambda: run not in self._waiting or self._is_next(run))
            if is_served := run in self._waiting:
                self._training[run] = self._waiting.pop(run)
                self._changed.notify_all()
        try:
            yield is_served
        finally:
            with self._changed:
                if is_served:
                    del self._training[run]
                self._changed.notify_all()

    def _is_next(self, run: str) -> bool:
        return len(self._training) < self.places and self._order()[0] == run


queue = RunQueue(PLACES)


def start(run: Run, visitor: str, event: dict | None = None) -> None:
    """Let the run wait for its turn and train for a window, by itself; nothing happens where it does already.

    `event` is written down with it. Called in an event's handler, whose request tells ZeroGPU whose quota counts.
    """
    if queue.join(run.id, visitor):
        if event:
            run.append(event)
        threading.Thread(target=copy_context().run, args=(_take_turn, run), daemon=True).start()


def follow(run: Run, visitor: str, seen: int = 0) -> Iterator[dict]:
    """The run's events from number `seen` on, its place in line, and heartbeats, until it has come to an end.

    While somebody follows, a run whose window closed goes on in the next.
    """
    place = None
    while True:
        held = queue.holds(run.id)
        for event in run.events(seen):
            seen += 1
            yield event
        if not held:
            if not goes_on(run, visitor):
                return
            continue
        if (now := queue.place(run.id)) != place and now:
            yield {"event": "waiting", "place": now}
        place = now
        yield {"event": "heartbeat"}
        time.sleep(LOOK)


def goes_on(run: Run, visitor: str) -> bool:
    """Start the next window where the run waits for one, or for a turn that an app's restart took; tells whether."""
    if queue.holds(run.id):
        return False
    phase = progress.read(run).phase
    if phase in ("continuing", "waiting"):
        start(run, visitor, {"event": "continued"})
    return phase in ("continuing", "waiting")


def look(run: Run) -> progress.Progress:
    """The run's progress, as its folder and the line tell it."""
    now = progress.read(run)
    return replace(now, phase="waiting") if queue.place(run.id) else now


def withdraw(run: Run) -> bool:
    """Give up a place in line, or the next window; False where there is nothing to give up."""
    waits = queue.leave(run.id) or progress.read(run).phase in ("continuing", "waiting")
    if waits:
        run.append({"event": "withdrawn"})
    return waits


def _take_turn(run: Run) -> None:
    with queue.turn(run.id) as is_served:
        if not is_served:
            return
        try:
            run.append({"event": "starting"})
            for _ in gpu.train(run):
                pass
        except Exception as error:
            if run.path.exists():  # or it was deleted while it waited
                _write_down(run, error)


def _write_down(run: Run, error: Exception) -> None:
    problems = problems_of(error)
    last = run.events()[-1:]
    if not (isinstance(error, TunerError) and last and last[0].get("problems") == problems):
        run.append({"event": "error", "problems": problems})
