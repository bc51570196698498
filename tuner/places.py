"""Places that network addresses share fairly: for the jobs of strangers, and for the threads that wait for those."""

import asyncio
import math
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from itertools import count
from typing import NamedTuple

from tuner.errors import TunerError


class Asker(NamedTuple):
    """Who asks for a place; what is "" is not counted."""

    session: str = ""  # a page or program
    address: str = ""  # on the network


NOBODY = Asker()
KINDS = ("address", "session")  # in this order: a session is only a name, which its program may make up


class Ticket:
    """A place in line, then one of the places."""

    def __init__(self, asker: Asker, begin: Callable[[], None]):
        self.asker, self.begin = asker, begin
        self.whose = [(kind, getattr(asker, kind)) for kind in KINDS if getattr(asker, kind)]


class Places:
    """Places, of which one address or session may have `most`, and ask for `most_asked`, those in line included.

    Next is whose address has the fewest places busy, and has waited longest since it was given one; then the same of
    sessions, then who came first. The last free place is for those who have none, so that whoever comes new need not
    wait for the jobs of a few who send many.
    """

    def __init__(self, most: Mapping[str, int], most_asked: Mapping[str, int] | None = None):
        self._most, self._most_asked = most, most_asked or {}
        self._waiting: list[Ticket] = []
        self._served: list[Ticket] = []  # who have a place
        self._busy: Counter[tuple[str, str]] = Counter()
        self._latest: dict[tuple[str, str], int] = {}  # the number of the place that was given last
        self._number = count(1)
        self._lock = threading.Lock()

    def join(self, asker: Asker, begin: Callable[[], None]) -> Ticket:
        """Join the line. `begin`, which must not wait, is called once there is a place. Raises TunerError."""
        ticket = Ticket(asker, begin)
        with self._lock:
            for key in ticket.whose if self._most_asked else ():
                tickets = sum(key in other.whose for other in (*self._waiting, *self._served))
                if tickets >= self._most_asked.get(key[0], math.inf):
                    raise TunerError("You have started many checks at once. Wait until they are done, then try again.")
            self._waiting.append(ticket)
            self._serve()
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Leave the line, or give the place back."""
        with self._lock:
            if ticket in self._waiting:
                self._waiting.remove(ticket)
            else:
                self._served.remove(ticket)
                self._busy.subtract(ticket.whose)
                self._busy += Counter()  # drops those who have none
            held = {key for other in (*self._waiting, *self._served) for key in other.whose}
            self._latest = {key: number for key, number in self._latest.items() if key in held}
            self._serve()

    def _serve(self) -> None:
        while len(self._served) < self._most["all"] and (ticket := self._next()):
            self._waiting.remove(ticket)
            self._served.append(ticket)
            self._busy.update(ticket.whose)
            self._latest |= dict.fromkeys(ticket.whose, next(self._number))
            ticket.begin()

    def _next(self) -> Ticket | None:
        lines: dict[str, list[Ticket]] = {}
        for ticket in self._waiting:
            lines.setdefault(ticket.asker.address, []).append(ticket)
        # Only the tickets of one address are looked at, as a rule: a thousand may wait.
        for address in sorted(lines, key=lambda address: self._rank("address", address)):
            if free := [ticket for ticket in lines[address] if self._may_begin(ticket)]:
                return min(free, key=lambda ticket: self._rank("session", ticket.asker.session))
        return None

    def _rank(self, kind: str, name: str) -> tuple[int, int]:
        return self._busy[kind, name], self._latest.get((kind, name), 0)

    def _may_begin(self, ticket: Ticket) -> bool:
        has_one = any(self._busy[key] for key in ticket.whose)
        is_last = len(self._served) + 1 >= self._most["all"]
        return not (has_one and is_last) and all(self._busy[key] < self._most[key[0]] for key in ticket.whose)

    @contextmanager
    def hold(self, asker: Asker, patience: float) -> Iterator[None]:
        """Hold a place, after this many seconds in line at most. Raises TunerError."""
        served = threading.Event()
        ticket = self.join(asker, served.set)
        try:
            if not served.wait(patience):
                raise TunerError("This page is busy checking what others entered. Try again in a minute.")
            yield
        finally:
            self.leave(ticket)

    @asynccontextmanager
    async def hold_async(self, asker: Asker) -> AsyncIterator[None]:
        """Hold a place; no thread waits for it. Raises TunerError."""
        served = asyncio.Event()
        ticket = self.join(asker, partial(asyncio.get_running_loop().call_soon_threadsafe, served.set))
        try:
            await served.wait()
            yield
        finally:
            self.leave(ticket)
