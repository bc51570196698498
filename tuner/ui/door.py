"""The door of the page's server: which requests come in, and what every answer tells the browser.

A page of another site can send requests with a visitor's cookie, and Gradio would let it read the answers. Here only
the page itself changes something, and programs, which carry no cookie. What the page shows can load nothing from
elsewhere. The door stands before all of Gradio, its CORS headers included:

    page.build().launch(app_kwargs=door.APP)
"""

import asyncio
import ipaddress
import json
import logging
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from urllib.parse import urlsplit

from fastapi.exceptions import RequestValidationError
from gradio.queueing import Queue
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tuner.data.table import MAX_FILE_BYTES
from tuner.places import Asker, Places
from tuner.ui import allowance, body, downloads, lines

log = logging.getLogger(__name__)

API = "/gradio_api/"
UPLOAD = API + "upload"
# An upload's form adds some bytes to its file, and a file just over the limit gets Gradio's own message.
MAX_UPLOAD_BYTES = MAX_FILE_BYTES + 2 * 2**20
MAX_BODY_BYTES = 8 * 2**20  # pasted rows, above all
MAX_FREEING_BYTES = 2**12  # a few names
AT_ONCE = {"all": 20, "address": 4}  # reads whose answer has not begun; the page itself takes 0.02 s each time
MAX_ADDRESS = 2**12  # bytes of a path with its query, of which Gradio keeps some
READS = {"GET", "HEAD", "OPTIONS"}
# What the page and programs post to; Gradio has more, such as tools of its own development mode.
POSTS = tuple(API + name for name in ("queue/join", "call/", "run/", "api/", "upload", "cancel", "reset"))
# What gives up a place or tells that a page was closed is never too much.
FREEING = tuple(API + name for name in ("cancel", "reset"))
# Reads that change something, fetch what a stranger names, or watch for a developer's changes until they are closed.
REFUSED_READS = tuple(API + name for name in ("deep_link", "dev/", "proxy=", "file=http:", "file=https:", "file/http"))
CHANGES = ("/logout",)
# Reads that wait for something else than the page's own work, such as an event or the Hub.
WAITS = (*(API + name for name in ("queue/data", "call/", "heartbeat", "upload_progress")), "/login")
# Gradio repeats a request's headers in its answer to a Range, and tells all visitors the address that this one names.
HOPS = b"x-forwarded-for"
DROPPED = (b"range", b"x-gradio-server")

SELF = {
    "default-src": "'self'",
    # Gradio's page has inline scripts, its HTML component compiles its templates, and its styles stand in elements.
    "script-src": "'self' 'unsafe-inline' 'unsafe-eval'",
    "style-src": "'self' 'unsafe-inline'",
    "img-src": "'self' data: blob:",
    "font-src": "'self' data:",
    "media-src": "'self' data: blob:",
    "worker-src": "'self' blob:",
    "frame-src": "'none'",
    "object-src": "'none'",
    "base-uri": "'self'",
    "form-action": "'self'",
}
EMBEDDING = "'self' https://huggingface.co" if "SPACE_ID" in os.environ else "'self'"
POLICY = "; ".join(f"{name} {sources}" for name, sources in {**SELF, "frame-ancestors": EMBEDDING}.items())
# A visitor's file, opened by itself, runs nothing and loads nothing.
FILE_POLICY = "default-src 'none'; frame-ancestors 'none'; sandbox"
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # a run's id is in its address
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
}

ELSEWHERE = "This request comes from another site, so it was refused. Open Tuner at its own address and try again."
RENAMED = (
    "This machine serves Tuner to itself only, and the address names another one. Open http://127.0.0.1 with the "
    "same port, or set GRADIO_SERVER_NAME to serve it to others."
)
CLOSED = "Tuner does not offer this. See its page, or its endpoints at /gradio_api/info."
TOO_LARGE = "This request is larger than {limit:g} MB. Upload large rows as a file of up to {file:g} MB."
BROKEN_OFF = "The upload broke off. Try again."
FAILED = "Tuner can't answer this request. If its page sent it, reload the page; nothing you trained is lost."


class Door:
    """Middleware that refuses other sites' requests and bounds all of them; each answer gets our headers."""

    def __init__(self, app: ASGIApp, queue: Queue | None = None):
        self.app = app
        self._queue = queue
        self._waiting = allowance.Waiting()
        self._reading = Places(AT_ONCE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            scope["headers"] = _cleaned(scope["headers"], scope["path"])
            request = allowance.Request.put(scope, _declared(scope))
            upload, receive = allowance.Upload(request.address), _bounded(scope, receive)
            if scope["path"].startswith(UPLOAD):
                receive, send = _counted(upload, receive), _with_files_counted(upload, send)
            answer = _refusal(scope, request) or await self._admit(scope, request)
            try:
                if not answer and scope["method"] not in READS and not scope["path"].startswith(UPLOAD):
                    answer, receive = await _looked_at(receive)
                await (answer or self._app(scope, request))(scope, receive, _with_headers(scope, send))
            except (HTTPException, body.Gone):
                pass  # a stream's, which has told its reader; or there is none
            except Exception as error:  # answered; from here it would only break the caller's next request
                log.error("%s %s failed: %r", scope["method"], scope["path"], error)
            finally:
                self._waiting.leave(request)
                upload.end()
        else:
            await send({"type": "websocket.close", "code": 1008})  # the page uses none

    def _app(self, scope: Scope, request: allowance.Request) -> ASGIApp:
        """What answers the request; reads are answered in turn, an address's with those of the others."""
        if scope["method"] not in READS or scope["path"].startswith(WAITS):
            return self.app

        async def answer_in_turn(scope: Scope, receive: Receive, send: Send) -> None:
            async with AsyncExitStack() as place:
                await place.enter_async_context(self._reading.hold_async(Asker(address=request.address)))

                async def begin(message: Message) -> None:
                    await place.aclose()  # an answer that has begun may take as long as its reader
                    await send(message)

                if not await Request(scope, receive).is_disconnected():
                    await self.app(scope, body.again(b"", receive), begin)

        return answer_in_turn

    async def _admit(self, scope: Scope, request: allowance.Request) -> JSONResponse | None:
        """Refuse what its address has too much of already; anything else counts until it is answered."""
        if scope["method"] in READS or scope["path"].startswith(FREEING):
            refusal = self._waiting.read(request)
        elif scope["path"].startswith(UPLOAD):
            refusal = allowance.uploads.refusal(request.address, request.size) or self._waiting.read(request)
        elif self._queue is not None:
            await lines.make_room(self._queue, request.address)
            refusal = self._waiting.enter(request, lines.waiting(self._queue))
        else:
            refusal = None
        return _refuse(429, refusal) if refusal else None


def _refusal(scope: Scope, request: allowance.Request) -> JSONResponse | None:
    headers, path = Headers(scope=scope), scope["path"]
    if not _is_ours(headers):
        return _refuse(421, RENAMED)
    if _is_foreign(scope, headers) and not _only_opens(scope, headers):
        return _refuse(403, ELSEWHERE)
    if path.startswith(REFUSED_READS) or (scope["method"] not in READS and not path.startswith(POSTS)):
        return _refuse(404, CLOSED)
    if request.size > _limit(scope):
        return _refuse(413, _too_large(scope))
    is_long = len(scope["path"]) + len(scope.get("query_string", b"")) > MAX_ADDRESS
    return _refuse(414, body.UNREADABLE) if is_long else None


async def _looked_at(receive: Receive) -> tuple[JSONResponse | None, Receive]:
    """A refusal of the request for its body, if it is to be refused; and what receives the same body again."""
    try:
        content = await body.read(receive)
    except HTTPException as error:
        return _refuse(error.status_code, error.detail), receive
    refusal = body.problem(content)
    return _refuse(422, refusal) if refusal else None, body.again(content, receive)


def _refuse(status: int, sentence: str) -> JSONResponse:
    return JSONResponse({"detail": sentence, "error": sentence}, status)


def _cleaned(headers: list[tuple[bytes, bytes]], path: str = "") -> list[tuple[bytes, bytes]]:
    """The headers without those that are dropped; those of several proxies become one."""
    dropped = DROPPED[path.startswith(downloads.PATH) :]  # which are resumed by Range
    hops = [value for name, value in headers if name == HOPS]
    kept = [(name, value) for name, value in headers if name != HOPS and not _is_dropped(name, value, dropped)]
    return [*kept, (HOPS, b",".join(hops))] if hops else kept


def _is_dropped(name: bytes, value: bytes, dropped: tuple[bytes, ...]) -> bool:
    spaces = _spaces()
    return name in dropped or (name == b"x-forwarded-host" and spaces != [] and value.decode("latin-1") not in spaces)


def _spaces() -> list[str]:
    """The names of the Space that this runs on: its own, then any domain of its owner."""
    return [name for host in os.environ.get("SPACE_HOST", "").split(",") if (name := host.strip())]


def _is_ours(headers: Headers) -> bool:
    """Whether the host is a name of this machine; a name of elsewhere that leads here would make its site our own."""
    return _serves_others() or _is_this_machine(headers.get("host", ""))


def _serves_others() -> bool:
    """Whether the environment says that the page is meant to be reached by other names than this machine's own."""
    name = os.environ.get("GRADIO_SERVER_NAME")
    if name and not _is_this_machine(name):
        return True
    is_shared = os.environ.get("GRADIO_SHARE", "").lower() == "true"
    return is_shared or bool(os.environ.get("SPACE_ID") or os.environ.get("GRADIO_ROOT_PATH"))


def _is_this_machine(host: str) -> bool:
    """Whether a host, perhaps with a port, is a name that a machine has for itself."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or name.endswith(".localhost") or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _is_foreign(scope: Scope, headers: Headers) -> bool:
    """Whether a page of another origin sent this. Browsers say so in headers that no page can change."""
    # A page can't add this header to a request to another origin unless that one permits it; we never do. A browser
    # adds a remembered password by itself, though.
    if headers.get("authorization", "").lower().startswith("bearer "):
        return False
    origin = headers.get("origin")
    if origin is not None and origin.lower() not in _own_origins(scope, headers):
        return True
    return headers.get("sec-fetch-site", "none") not in ("same-origin", "none")


def _own_origins(scope: Scope, headers: Headers) -> set[str]:
    scheme = _first(headers, "x-forwarded-proto") or scope["scheme"]
    hosts = [headers.get("host", ""), _first(headers, "x-forwarded-host")]
    origins = [f"{scheme}://{host}" for host in hosts if host] + [f"https://{host}" for host in _spaces()]
    default = {"http": ":80", "https": ":443"}.get(scheme, "")
    return {origin.lower().removesuffix(default) for origin in origins}


def _first(headers: Headers, name: str) -> str:
    return headers.get(name, "").split(",")[0].strip()


def _only_opens(scope: Scope, headers: Headers) -> bool:
    """Whether this opens a page, as a link does; the site that has the link can't read it."""
    navigates = headers.get("sec-fetch-mode", "") == "navigate" and scope["method"] in ("GET", "HEAD")
    return navigates and not scope["path"].startswith((API, *CHANGES))


def _limit(scope: Scope) -> int:
    limits = {UPLOAD: MAX_UPLOAD_BYTES, **dict.fromkeys(FREEING, MAX_FREEING_BYTES)}
    return next((limit for path, limit in limits.items() if scope["path"].startswith(path)), MAX_BODY_BYTES)


def _too_large(scope: Scope) -> str:
    return TOO_LARGE.format(limit=_limit(scope) / 2**20, file=MAX_FILE_BYTES / 2**20)


def _declared(scope: Scope) -> int:
    """Bytes of the body; where a request doesn't say, as many as it may have."""
    headers = Headers(scope=scope)
    return int(headers.get("content-length", _limit(scope) if "transfer-encoding" in headers else 0))


def _bounded(scope: Scope, receive: Receive) -> Receive:
    """The request's body, up to the limit; not every request names its length."""
    received = 0

    async def bounded() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > _limit(scope):
            raise HTTPException(413, _too_large(scope))
        return message

    return bounded


def _counted(upload: allowance.Upload, receive: Receive) -> Receive:
    """An upload's body, as far as its address may upload. Only of one that ends like this, Gradio leaves no file."""
    received, has_more = 0, True

    async def receive_part() -> Message:
        nonlocal received, has_more
        try:
            message = await receive()
        except HTTPException as error:
            raise MultiPartException(error.detail) from None
        if has_more and message["type"] == "http.disconnect":
            raise MultiPartException(BROKEN_OFF)
        received, has_more = received + len(message.get("body", b"")), message.get("more_body", False)
        while received > upload.files * allowance.SMALLEST:
            if refusal := upload.add():
                raise MultiPartException(refusal)
        return message

    return receive_part


def _with_files_counted(upload: allowance.Upload, send: Send) -> Send:
    async def with_files_counted(message: Message) -> None:
        upload.is_stored = upload.is_stored or message.get("status") == 200
        # A form may hold many small files, each of which takes a folder; the answer lists them.
        listed = message.get("body", b"")
        if listed.startswith(b"["):
            upload.add(len(json.loads(listed)) - 1)
        await send(message)

    return with_files_counted


def _with_headers(scope: Scope, send: Send) -> Send:
    async def with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name in [name for name in headers if name.startswith("access-control-")]:
                del headers[name]
            headers.update(HEADERS)
            if scope["path"].startswith(API + "file"):
                headers["Content-Security-Policy"] = FILE_POLICY
        await send(message)

    return with_headers


@asynccontextmanager
async def _lifespan(app: Starlette) -> AsyncIterator[None]:
    # Middleware that is given to Gradio would stand behind Gradio's own, which answers other sites' preflights.
    app.router.routes.insert(0, downloads.ROUTE)
    app.middleware_stack = Door(app.middleware_stack, app.get_blocks()._queue)
    lines.arrange(app.get_blocks())
    forgetting = asyncio.create_task(lines.forget(app.get_blocks()._queue))
    yield
    forgetting.cancel()


def _explain(request: Request, error: Exception) -> JSONResponse:
    return _refuse(422, body.UNREADABLE) if isinstance(error, RequestValidationError) else _refuse(500, FAILED)


APP = {"lifespan": _lifespan, "exception_handlers": {Exception: _explain, RequestValidationError: _explain}}
