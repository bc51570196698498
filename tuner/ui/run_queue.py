"""Who trains when: a fair queue for the places to train in, and a thread for each run that has a place.

A turn is one window, which runs whether or not anybody watches. The next window starts only while somebody does.
"""

import asyncio
import os
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from contextvars import copy_context
from dataclasses import replace
from typing import NamedTuple

from tuner import gpu
from tuner.events import EventReader
from tuner.gpu_refusals import NoWindow
from tuner.run_files import unless_deleted
from tuner.runs import Run
from tuner.ui import progress
from tuner.ui.bounds import Bounds
from tuner.ui.ownership import EXAMPLE
from tuner.ui.problems import problems_of
from tuner.ui.visitor import Visitor

SLOTS = os.environ.get("TUNER_TRAINING_SLOTS")  # how many runs train at once, if the app is told
POLL = 0.2  # seconds between looks at a run's events
LONGEST_POLL = 2.0  # seconds between looks at the place of a run that is far from being served


class Whose(NamedTuple):
    """Whose a run is, as far as it is known; nobody's turns are counted by what is not."""

    visitor: Hashable = None
    address: str = ""  # on the network


class RunQueue:
    """A queue for this many places. Next is whose visitor and whose address both have the fewest runs in training.

    Of those who have none, whoever was served goes behind the others; ties go by the visitor's runs, then by arrival.
    """

    def __init__(self, places: int | None = None):
        self._places = places
        self._waiting: dict[str, Whose] = {}  # in order of arrival
        self._begin: dict[str, Callable[[], None]] = {}  # waiting run -> what begins its turn
        self._training: dict[str, Whose] = {}
        self._given: set[str] = set()  # runs that were given a place, and whose turn has not begun
        self._slots: dict[str, int] = {}  # run in training -> the number of its place, from 0
        self._latest: dict[tuple[int, Hashable], int] = {}  # visitor or address -> when it was last served
        self._order: dict[str, int] | None = {}  # waiting run -> its place in the queue; None: to be counted again
        self._seconds: deque[float] = deque(maxlen=20)  # that the latest turns took
        self._lock = threading.RLock()

    @property
    def places(self) -> int:
        """How many runs train at once; counted when the first one wants to, since that imports torch."""
        if self._places is None:
            self._places = _count_places()
        return self._places

    def slot(self, run: str) -> int:
        """The number of the place that a run in training holds, from 0."""
        return self._slots[run]

    def join(self, run: str, visitor: Hashable, address: str = "") -> bool:
        """Join the queue; False if the run is in it already, or in training."""
        with self._lock:
            if self.holds(run):
                return False
            self._waiting[run], self._order = Whose(visitor, address), None
            return True

    def when_served(self, run: str, begin: Callable[[], None]) -> bool:
        """Call `begin`, which must not wait, as soon as the run is given a place; False if it left the queue."""
        with self._lock:
            if run not in self._waiting:
                return False
            self._begin[run] = begin
        self._serve()
        return True

    def leave(self, run: str) -> bool:
        """Leave the queue; False if the run was not in it."""
        with self._lock:
            self._begin.pop(run, None)
            left = self._waiting.pop(run, None) is not None
            self._forget()
        return left

    def holds(self, run: str) -> bool:
        """Whether the run is waiting or in training."""
        with self._lock:
            return run in self._waiting or run in self._training

    def held(self) -> list[str]:
        """The runs that are waiting or in training."""
        with self._lock:
            return [*self._waiting, *self._training]

    def place(self, run: str) -> int | None:
        """The run's place in the queue, 1 being next; None if it is not waiting."""
        with self._lock:
            if self._order is None:
                self._order = {waiting: number for number, waiting in enumerate(self._in_order(), 1)}
            return self._order.get(run)

    def seconds_to_wait(self, place: int) -> float | None:
        """About how long it takes until the run at this place is served; None if no turn has ended yet."""
        with self._lock:
            return place * sum(self._seconds) / len(self._seconds) / self.places if self._seconds else None

    def _in_order(self) -> list[str]:
        """The waiting runs in the order in which they would be served if no others came."""
        order, turns = list(self._waiting), Counter()
        # The next run of a visitor or address is served as if those before it were in training.
        for kind in range(len(Whose._fields)):
            keys = {run: (kind, whose[kind]) for run, whose in self._waiting.items()}
            busy = Counter((kind, whose[kind]) for whose in self._training.values())
            for run in order:
                if keys[run][1]:
                    turns[run] = max(turns[run], busy[keys[run]])
                    busy[keys[run]] += 1
            order.sort(key=lambda run: (turns[run], 0 if turns[run] else self._latest.get(keys[run], 0)))
        return order

    def _serve(self) -> None:
        """Give the free places to those who are next, and begin their turns."""
        while True:
            with self._lock:
                if not self._begin or len(self._training) >= self.places:
                    return
                run = next(run for run in self._in_order() if run in self._begin)
                begin = self._give_place(run)
            try:
                begin()
            except BaseException:  # the machine starts no more threads
                self._take_place_back(run)
                raise

    def _give_place(self, run: str) -> Callable[[], None] | None:
        self._training[run], self._order = self._waiting.pop(run), None
        self._slots[run] = min(set(range(self.places)) - set(self._slots.values()))
        self._given.add(run)
        number = max(self._latest.values(), default=0) + 1
        self._latest |= {key: number for key in enumerate(self._training[run]) if key[1]}
        return self._begin.pop(run, None)

    def _take_place_back(self, run: str) -> None:
        with self._lock:
            del self._training[run], self._slots[run]
            self._given.discard(run)
            self._forget()

    def _forget(self) -> None:
        held = {key for whose in (*self._waiting.values(), *self._training.values()) for key in enumerate(whose)}
        self._latest = {key: number for key, number in self._latest.items() if key in held}
        self._order = None

    @contextmanager
    def turn(self, run: str) -> Iterator[bool]:
        """Hold the place given to the run, or a free one; yields False if there is none, or it left the queue."""
        with self._lock:
            if run in self._waiting and len(self._training) < self.places:
                self._give_place(run)
            is_served = run in self._given
            self._given.discard(run)
        began = time.monotonic()
        try:
            yield is_served
        finally:
            if is_served:
                with self._lock:
                    self._take_place_back(run)
                    self._seconds.append(time.monotonic() - began)
                self._serve()


def _count_places() -> int:
    """On ZeroGPU each run has its own GPU; elsewhere each has a card to itself, and two share a CPU."""
    return int(SLOTS or (8 if gpu.ZERO else len(gpu.cards()) or 2))


queue = RunQueue()
bounds = Bounds(lambda run: queue.holds(run))


def kept() -> frozenset[str]:
    """The runs that are not deleted to make room."""
    return frozenset({EXAMPLE, *queue.held()})


def start(run: Run, visitor: Visitor, event: dict | None = None) -> None:
    """Queue the run for one window of training in the background, and log `event`; a run queued already is left alone.

    Called in an event's handler, whose request tells ZeroGPU whose quota to charge.
    """
    # A session is a name that any program may make up, and must not pass for an account.
    key = ("account", visitor.account) if visitor.account else visitor.session and ("session", visitor.session)
    if not queue.join(run.id, key, visitor.address):
        return
    try:
        if event:
            with unless_deleted(run.path):
                run.append(event)
    except Exception:
        queue.leave(run.id)
        raise
    bounds.hold(run.id, visitor)
    # A waiting run has no thread; the request's context is kept until the run is served.
    turn = threading.Thread(target=copy_context().run, args=(_take_turn, run), daemon=True)
    queue.when_served(run.id, turn.start)


async def follow(
    run: Run, visitor: Visitor, reader: EventReader, is_listening: Callable[[], bool] = lambda: True
) -> AsyncIterator[dict]:
    """Yield the reader's next events and changes of place in the queue, until the run has ended or nobody listens.

    While somebody follows, a run whose window closed continues in the next one. No thread is held meanwhile.
    """
    place = None
    while is_listening():
        held = queue.holds(run.id)
        if not (place and queue.place(run.id)):  # while a run waits, nobody writes to its log
            for event in await asyncio.to_thread(reader.read):
                yield event
        if not held:
            if not await asyncio.to_thread(start_next_window, run, visitor):
                return
            continue
        if (now := queue.place(run.id)) and now != place:
            yield {"event": "waiting", "place": now, "seconds": queue.seconds_to_wait(now)}
        place = now
        await asyncio.sleep(min(POLL * max(1, (now or 1) / 5), LONGEST_POLL))


def start_next_window(run: Run, visitor: Visitor) -> bool:
    """Queue the run again if it waits for its next window, or lost its turn when the app restarted; tells whether."""
    if queue.holds(run.id):
        return False
    phase = progress.read(run).phase
    if phase in progress.WATCHED:
        start(run, visitor, {"event": "continued"})
    return phase in progress.WATCHED


def look(run: Run) -> progress.Progress:
    """The run's progress as its folder and the queue show it."""
    now = progress.read(run)
    return replace(now, phase="waiting") if queue.place(run.id) else now


def withdraw(run: Run) -> bool:
    """Give up the place in the queue or the next window; False if the run has neither."""
    was_waiting = queue.leave(run.id) or progress.read(run).phase in progress.WATCHED
    if was_waiting:
        with unless_deleted(run.path):
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
            refused = {"refused": True} if isinstance(error, NoWindow) else {}
            run.append({"event": "error", "problems": problems} | refused)
