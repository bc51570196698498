"""The body of a request, looked at as a whole before Gradio sees it: how large it is, and of how much it consists.

Gradio walks over every value of a body while nobody else is served: 2,700,000 empty lists in 8 MB took it 7 seconds.
And it keeps the name of each session, however long.
"""

import json
from collections.abc import Mapping
from typing import Any

from starlette.types import Message, Receive

MOST_VALUES = 20_000  # lists, objects and what they hold: some 0.05 s
MOST_STRINGS = 20_000
MOST_NAME = 64  # characters
NAMES = ("session_hash", "event_id", "trigger_id", "fn_index")

TOO_MANY = f"This request consists of more than {MOST_VALUES:,} values, which is too much. Give large rows as a file."
UNREADABLE = "This request can't be read. What the endpoints take is described at /gradio_api/info."


class Gone(Exception):
    """Whoever sent the request has left."""


async def read(receive: Receive) -> bytes:
    """The whole body. Raises Gone."""
    parts, has_more = [], True
    while has_more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Gone
        parts.append(message.get("body", b""))
        has_more = message.get("more_body", False)
    return b"".join(parts)


def again(body: bytes, receive: Receive) -> Receive:
    """What receives the body, and then whatever comes next."""
    given: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def received() -> Message:
        return given.pop() if given else await receive()

    return received


def problem(body: bytes) -> str | None:
    """Why Gradio is not to see the body."""
    if not body:
        return None
    if _values(body) > MOST_VALUES:
        return TOO_MANY
    try:
        # Gradio would read other encodings, too, in which part of a character may be what is a quotation mark here.
        content = json.loads(body.decode())
    except (ValueError, RecursionError):
        return UNREADABLE
    return None if isinstance(content, Mapping) and all(_is_name(content.get(name)) for name in NAMES) else UNREADABLE


def _is_name(value: Any) -> bool:
    return value is None or isinstance(value, int) or (isinstance(value, str) and len(value) <= MOST_NAME)


def _values(body: bytes) -> int:
    """Brackets and commas outside of strings; too many if there are too many strings."""
    plain = body.replace(rb"\\", b"").replace(rb"\"", b"")
    if plain.count(b'"') > 2 * MOST_STRINGS:
        return MOST_VALUES + 1
    outside = b"".join(plain.split(b'"')[::2])
    return outside.count(b",") + outside.count(b"[") + outside.count(b"{")
