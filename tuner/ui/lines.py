"""Gradio's queue, made fair and bounded: network addresses take turns, and answers that nobody reads are forgotten.

Whoever sends much waits for it, and nobody else.
"""

import asyncio
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from typing import Any

from gradio.blocks import Blocks
from gradio.queueing import Event, EventQueue, Queue
from gradio.utils import LRUCache

from tuner.ui.allowance import Request

MOST_SESSIONS = 5000  # with a mailbox, the newest
MOST_UNREAD = 2000  # messages of one address; those of a page that is open are read at once
FORGOTTEN = 300  # seconds between looks at what is unread: what was there at the last one is dropped


class Mailbox(asyncio.Queue):
    """What Gradio has to tell one session, until it is read."""

    address = ""  # of who asked

    def __init__(self):
        super().__init__()
        self._came: deque[float] = deque()  # when each unread message did

    @property
    def burden(self) -> float:
        """How much is unread, and since when: messages times seconds. Whoever reads has next to none."""
        return len(self._came) * (time.monotonic() - self._came[0]) if self._came else 0.0

    def _put(self, message: Any) -> None:
        self._came.append(time.monotonic())
        super()._put(message)

    def _get(self) -> Any:
        self._came.popleft()
        return super()._get()


class Mailboxes(LRUCache):
    """What Gradio has to tell each session, until it is read.

    `unfinished` are the events of each session whose end it has not been told yet.
    """

    def __init__(self, max_size: int, unfinished: dict[str, set[str]]):
        super().__init__(max_size)
        self._unfinished = unfinished

    def __setitem__(self, session: str, _: asyncio.Queue) -> None:
        """Add a session, with a mailbox of ours; if there are too many, the oldest goes that waits for nothing."""
        if session not in self and len(self) >= self.max_size:
            self.forget(next((other for other in self if not self._unfinished.get(other)), next(iter(self))))
        super().__setitem__(session, Mailbox())

    def __missing__(self, session: str) -> Mailbox:
        """Where a forgotten session is told something: an error here would end Gradio's queue for everybody."""
        return Mailbox()

    def __delitem__(self, session: str) -> None:
        """Gradio does this when a reader leaves, whether or not the session was forgotten meanwhile."""
        if session in self:
            super().__delitem__(session)

    def forget(self, session: str) -> None:
        """Drop what the session was to be told."""
        self.pop(session, None)
        self._unfinished.pop(session, None)

    def unread(self, address: str) -> int:
        """The messages that this address has not read yet."""
        return sum(box.qsize() for box in self.values() if box.address == address)

    def by_burden(self, address: str) -> list[str]:
        """The sessions of this address, first the one that leaves most unread for longest."""
        mine = [session for session, box in self.items() if box.address == address]
        return sorted(mine, key=lambda session: self[session].burden, reverse=True)

    def oldest(self) -> dict[str, object]:
        """The oldest unread message of each session."""
        return {session: box._queue[0] for session, box in self.items() if box.qsize()}


class Line(list):
    """The events of one line: an address's second request stands behind the first of everybody else."""

    def __init__(self, mailboxes: Mailboxes):
        super().__init__()
        self._mailboxes = mailboxes

    def append(self, event: Event) -> None:
        """Let the event stand behind those that are as early for their addresses as it is for its own."""
        own = self._mailboxes[event.session_hash].address = _request(event).address
        addresses = [_request(other).address for other in self]
        turn, turns = addresses.count(own) + 1, Counter()
        for place, address in enumerate(addresses):
            turns[address] += 1
            if turns[address] > turn:
                self.insert(place, event)
                return
        super().append(event)


def arrange(blocks: Blocks) -> None:
    """Let the page's queue have such lines and mailboxes, before anybody comes."""
    queue = blocks._queue
    queue.pending_messages_per_session = mailboxes = Mailboxes(MOST_SESSIONS, queue.pending_event_ids_session)
    for function in blocks.fns.values():  # Gradio would make each line for its first request
        queue.create_event_queue_for_fn(function)
    for line in _lines(queue):
        line.queue = Line(mailboxes)


async def make_room(queue: Queue, address: str) -> None:
    """Forget the address's sessions that do not read, until it has no more than MOST_UNREAD; the others are kept."""
    mailboxes = queue.pending_messages_per_session
    excess = mailboxes.unread(address) - MOST_UNREAD
    for session in mailboxes.by_burden(address) if excess > 0 else ():
        excess -= mailboxes[session].qsize()
        await _close(queue, session)
        if excess <= 0:
            return


async def forget(queue: Queue) -> None:
    """Drop what nobody reads; for as long as the server runs."""
    before: dict[str, object] = {}
    while True:
        await asyncio.sleep(FORGOTTEN)
        now = queue.pending_messages_per_session.oldest()
        for session in [session for session, message in now.items() if before.get(session) is message]:
            await _close(queue, session)
        before = now


async def _close(queue: Queue, session: str) -> None:
    """Forget the session, as if its page had been closed."""
    await queue.clean_events(session_hash=session)
    queue.pending_messages_per_session.forget(session)


def waiting(queue: Queue) -> Iterator[Request]:
    """The requests that wait."""
    for line in _lines(queue):
        yield from map(_request, line.queue)


def _lines(queue: Queue) -> Iterable[EventQueue]:
    return queue.event_queue_per_concurrency_id.values()


def _request(event: Event) -> Request:
    return Request.of(event.request.scope)
