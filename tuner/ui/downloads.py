"""Downloads: tickets for what a visitor may take home, and the address where a browser fetches it, part by part.

An owner's secret must not be in an address, which servers log and people copy. So whoever may have a file gets a
ticket for it: a name that can't be guessed, which is good for an hour.

    GET /take/TICKET/NAME.zip        with Range and If-Range, as browsers and `curl -C -` resume
"""

import asyncio
import re
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import NamedTuple

from starlette.concurrency import iterate_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Message, Send

from tuner.hub import download
from tuner.hub.archive import Archive
from tuner.places import Asker, Places
from tuner.run_files import unless_deleted
from tuner.runs import Run
from tuner.ui.visitor import network_address

PATH = "/take/"
GOOD_FOR = 3600.0  # seconds
MOST = 500  # tickets
PIECE = 2**16  # bytes that are sent at once, and wait in memory for a slow reader
STALLED = 60.0  # seconds after which a reader is given up who takes no such piece
AT_ONCE = {"all": 16, "address": 6}  # downloads; others wait until one ends
GONE = "This download is no longer offered. Open the run in Tuner and start it again."
BEYOND = "The file has no such part."

_sending = Places(AT_ONCE)


class Ticket(NamedTuple):
    """What may be fetched, under which name, and until when by time.monotonic()."""

    archive: Archive
    name: str
    until: float


class Tickets:
    """The tickets that are good; the oldest goes if there are too many."""

    def __init__(self):
        self._tickets: OrderedDict[str, Ticket] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, archive: Archive, name: str) -> str:
        """Offer the archive; returns its path on this server."""
        key, now = secrets.token_urlsafe(), time.monotonic()
        with self._lock:
            self._tickets[key] = Ticket(archive, name, now + GOOD_FOR)
            while len(self._tickets) > MOST or next(iter(self._tickets.values())).until < now:
                self._tickets.popitem(last=False)
        return f"{PATH}{key}/{name}"

    def __len__(self) -> int:
        return len(self._tickets)

    def find(self, key: str) -> Ticket | None:
        """The ticket, if it is good."""
        with self._lock:
            ticket = self._tickets.get(key)
        return ticket if ticket and ticket.until >= time.monotonic() else None


tickets = Tickets()


def offer(run: Run, what: str) -> dict:
    """Offer `what` of the run for an hour; returns its address on this server, name and size in bytes.

    Raises TunerError.
    """
    with unless_deleted(run.path):
        archive, name = download.package(run, what)
    return {"address": tickets.add(archive, name), "name": name, "bytes": archive.size}


async def take(request: Request) -> Response:
    """Answer with the archive of a ticket, or with the part of it that is asked for."""
    ticket = tickets.find(request.path_params["ticket"])
    if not ticket:
        return JSONResponse({"detail": GONE, "error": GONE}, 410)
    archive, tag = ticket.archive, f'"{ticket.archive.tag}"'
    headers = {
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-transform",  # or a proxy would compress it, and no part would fit the others
        "Content-Disposition": f'attachment; filename="{ticket.name}"',
        "ETag": tag,
    }
    wanted = request.headers.get("range") if request.headers.get("if-range", tag) == tag else None
    part = _part(wanted, archive.size)
    if part is None:
        return JSONResponse({"detail": BEYOND}, 416, {"Content-Range": f"bytes */{archive.size}"})
    start, end = part
    if is_part := part != (0, archive.size):
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{archive.size}"
    headers["Content-Length"] = f"{end - start}"
    status = 206 if is_part else 200
    if request.method == "HEAD":
        return Response(None, status, headers, "application/zip")
    sent = _send(archive, start, end, Asker(address=network_address(request)))
    return _Response(sent, status, headers, "application/zip")


class _Response(StreamingResponse):
    """Gives up a reader who takes nothing more, so that the place is free for others; the download can be resumed."""

    async def stream_response(self, send: Send) -> None:
        """Send all, unless the reader stalls."""

        async def patiently(message: Message) -> None:
            await asyncio.wait_for(send(message), STALLED)

        with suppress(TimeoutError, asyncio.TimeoutError):
            try:
                await super().stream_response(patiently)
            finally:
                await self.body_iterator.aclose()  # which gives the place back at once


async def _send(archive: Archive, start: int, end: int, asker: Asker) -> AsyncIterator[bytes]:
    async with _sending.hold_async(asker):
        async for chunk in iterate_in_threadpool(archive.read(start, end)):
            for at in range(0, len(chunk), PIECE):
                yield chunk[at : at + PIECE]


def _part(wanted: str | None, size: int) -> tuple[int, int] | None:
    """The first byte and the one after the last; all of them unless one range is asked for, None if there is none."""
    found = re.fullmatch(r"bytes=(\d{0,19})-(\d{0,19})", wanted or "", re.ASCII)
    if not found or not any(found.groups()):
        return 0, size
    first, last = found.groups()
    if not first:
        return (max(0, size - int(last)), size) if int(last) else None
    end = min(size, int(last) + 1) if last else size
    return (int(first), end) if int(first) < end else None


ROUTE = Route(PATH + "{ticket}/{name}", take, methods=["GET"])
