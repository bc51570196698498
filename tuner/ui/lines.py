"""Gradio's queue, made fair and bounded: network addresses take turns, and answers that nobody reads are forgotten.

Whoever sends much waits for it, and nobody else.
"""

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator

from gradio.blocks import Blocks
from gradio.queueing import Event, EventQueue, Queue
from gradio.utils import LRUCache

from tuner.ui.allowance import Request

MOST_SESSIONS = 5000  # with a mailbox, the newest
FORGOTTEN = 300  # seconds between looks at what is unread: what was there at the last one is dropped


class Mailboxes(LRUCache):
    """What Gradio has to tell each session, until it is read; each with the address that asked.

    `unfinished` are the events of each session whose end it has not been told yet.
    """

    def __init__(self, max_size: int, unfinished: dict[str, set[str]]):
        super().__init__(max_size)
        self._unfinished = unfinished

    def __setitem__(self, session: str, box: asyncio.Queue) -> None:
        """Add a session; if there are too many, the oldest goes that waits for nothing."""
        if session not in self and len(self) >= self.max_size:
            self.forget(next((other for other in self if not self._unfinished.get(other)), next(iter(self))))
        super().__setitem__(session, box)

    def __missing__(self, session: str) -> asyncio.Queue:
        """Where a forgotten session is told something: an error here would end Gradio's queue for everybody."""
        return asyncio.Queue()

    def forget(self, session: str) -> None:
        """Drop what the session was to be told."""
        self.pop(session, None)
        self._unfinished.pop(session, None)

    def unread(self, address: str) -> int:
        """The messages that this address has not read yet."""
        return sum(box.qsize() for box in self.values() if getattr(box, "address", None) == address)

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


async def forget(queue: Queue) -> None:
    """Drop what nobody reads, as if its page had been closed; for as long as the server runs."""
    before: dict[str, object] = {}
    while True:
        await asyncio.sleep(FORGOTTEN)
        now = queue.pending_messages_per_session.oldest()
        for session in [session for session, message in now.items() if before.get(session) is message]:
            await queue.clean_events(session_hash=session)
            queue.pending_messages_per_session.forget(session)
        before = now


def waiting(queue: Queue) -> Iterator[Request]:
    """The requests that wait."""
    for line in _lines(queue):
        yield from map(_request, line.queue)


def _lines(queue: Queue) -> Iterable[EventQueue]:
    return queue.event_queue_per_concurrency_id.values()


def _request(event: Event) -> Request:
    return Request.of(event.request.scope)
