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

MOST_SESSIONS = 20_000  # with something to be told; allowance.MOST_UNREAD is what bounds them
FORGOTTEN = 300  # seconds between looks at what is unread: what was there at the last one is dropped


class Mailboxes(LRUCache):
    """What Gradio has to tell each session, until it is read; each with the address that asked."""

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
    queue.pending_messages_per_session = mailboxes = Mailboxes(MOST_SESSIONS)
    for function in blocks.fns.values():  # Gradio would make each line for its first request
        queue.create_event_queue_for_fn(function)
    for line in _lines(queue):
        line.queue = Line(mailboxes)


async def forget(queue: Queue) -> None:
    """Empty the mailboxes that nobody reads, as if their pages had been closed; for as long as the server runs."""
    before: dict[str, object] = {}
    while True:
        await asyncio.sleep(FORGOTTEN)
        boxes = queue.pending_messages_per_session
        now = boxes.oldest()
        for session in [session for session, message in now.items() if before.get(session) is message]:
            await queue.clean_events(session_hash=session)
            while session in boxes and not boxes[session].empty():  # Gradio needs the box itself for what still runs
                boxes[session].get_nowait()
        before = now


def waiting(queue: Queue) -> Iterator[Request]:
    """The requests that wait."""
    for line in _lines(queue):
        yield from map(_request, line.queue)


def _lines(queue: Queue) -> Iterable[EventQueue]:
    return queue.event_queue_per_concurrency_id.values()


def _request(event: Event) -> Request:
    return Request.of(event.request.scope)
