"""The tables of what the attack sends over HTTP; attack_requests.py sends it."""

import random
from typing import Any

import attack_cases
import attack_files
from attack_cases import ACCEPT, REFUSE, Case
from attack_requests import FOREIGN

JOIN, CALL, RUN = "/gradio_api/queue/join", "/gradio_api/call", "/gradio_api/run"
ENDPOINTS = {
    "check": 3,
    "preview": 3,
    "train": 3,
    "status": 1,
    "rows": 1,
    "runs": 1,
    "resume": 1,
    "stop": 1,
    "delete": 1,
    "chat": 8,
    "merge": 1,
    "push": 4,
    "download": 2,
    "import_run": 1,
    "adopt": 2,
    "compare": 9,
    "comparison": 1,
}
# What is sent beside the odd value: of /compare nothing that could be trained.
BESIDE = {"chat": ["example", "hi", None, "", 0, 1, 2, 0], "compare": ["", None, "", "", 0, 0, 1, "", ""]}
OTHERS = ["", None, "", 0, 0, 1, 1, 0]
ODD: tuple = (None, [], {}, 0, -1, 1e300, True, "\0", "\ud800", [None], {"a": 1}, "../example", "x" * 3000, 10**400)
ODD += (
    [["a"]] * 50,
    {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}},
    {"__type__": "update"},
    "nan",
    "1; ls",
)


def endpoints() -> list[tuple]:
    """Each named endpoint with wrong counts and types of inputs."""
    rows = []
    for name, count in ENDPOINTS.items():
        for extra in ([], ["x"] * (count + 7), ["x"] * 2000):
            # Of more inputs than these have, Gradio leaves the rest out.
            expect = None if name in ("status", "runs", "rows", "comparison") and extra else REFUSE
            given = {"name": name, "data": extra, "exact": True}
            rows.append((f"/{name} with {len(extra)} inputs", expect, "endpoint", given))
        for place in range(count):
            for value in ODD:
                filled: list = list(BESIDE.get(name, OTHERS[:count]))
                filled[place] = value
                sure = name in (
                    "status",
                    "rows",
                    "resume",
                    "stop",
                    "delete",
                    "merge",
                    "push",
                    "download",
                    "import_run",
                    "adopt",
                    "compare",
                    "comparison",
                ) or (name == "chat" and place in (0, 2))
                harmless = name == "chat" and place == 2 and value in (None, {})
                expect = REFUSE if sure and not harmless else None
                rows.append(
                    (f"/{name} input {place}: {ascii(value)[:30]}", expect, "endpoint", {"name": name, "data": filled})
                )
    paths = (
        "/etc/passwd",
        "FOLDER/canary.csv",
        "FOLDER/runs/VICTIM/recipe.yaml",
        "../canary.csv",
        "http://127.0.0.1:9/x.csv",
    )
    for path in paths:
        for name in ("check", "preview", "train"):
            data = [attack_cases.GOOD, {"path": path, "meta": {"_type": "gradio.FileData"}}, ""]
            rows.append((f"/{name} of the file {path}", REFUSE, "endpoint", {"name": name, "data": data}))
    histories: tuple = (
        {"base": 1},
        {"base": [1]},
        {"base": [{"role": "x", "content": "y"}]},
        {"adapter": [{"content": 1}]},
        [1],
    )
    for history in histories:
        data = ["example", "hi", history, "", 0, 1, 2, 0]
        rows.append((f"/chat with the history {history}", REFUSE, "endpoint", {"name": "chat", "data": data}))
    for name in attack_cases.NAMES:
        for call in ("status", "stop", "delete"):
            rows.append((f"/{call} of {ascii(name)[:40]}", REFUSE, "endpoint", {"name": call, "data": [name]}))
    rows.append(("good: /status", ACCEPT, "endpoint", {"name": "status", "data": ["example"]}))
    rows.append(("good: /runs", ACCEPT, "endpoint", {"name": "runs", "data": [[]]}))
    return [
        *rows,
        ("good: /check", ACCEPT, "endpoint", {"name": "check", "data": [attack_cases.GOOD, None, attack_cases.ROWS]}),
    ]


def links() -> list[tuple]:
    """What somebody tries who has a run's link, and neither its owner's secret nor account."""
    rows: list[tuple] = []
    secrets = ([], [""], ["x"], [None], ["a" * 5000], [{"$ne": None}], ["VICTIM"], ["0" * 64], [[]], [True])
    for call in ("stop", "delete", "resume"):
        rows += [
            (f"/{call} of another's run with {s}"[:60], REFUSE, "endpoint", {"name": call, "data": ["VICTIM", *s]})
            for s in secrets
        ]
    for secret in secrets:
        data = ["VICTIM", "alice/stolen", "", True, *secret]
        rows.append((f"/push of another's run with {secret}"[:60], REFUSE, "endpoint", {"name": "push", "data": data}))
    rows.append(("/status of another's run by its link", ACCEPT, "endpoint", {"name": "status", "data": ["VICTIM"]}))
    return rows


def requests() -> list[tuple]:
    """JSON of the wrong shape to each of Gradio's own addresses, made-up events and foreign sessions."""
    bodies: tuple = (
        None,
        1,
        "x",
        [],
        {},
        {"data": None},
        {"data": 1},
        {"data": "x"},
        {"data": []},
        {"data": {}, "fn_index": 0},
    )
    bodies += ({"data": [], "fn_index": 10**9, "session_hash": "q"}, {"data": [], "fn_index": -1, "session_hash": "q"})
    bodies += ({"data": [], "fn_index": "x", "session_hash": "q"}, {"data": [], "fn_index": 3, "session_hash": {}})
    bodies += (
        {"data": [], "fn_index": 3, "session_hash": "a" * 100_000},
        {"data": [], "fn_index": 1.5, "session_hash": "q"},
    )
    bodies += (
        {"data": [], "fn_index": 3, "session_hash": "q", "event_id": "../x"},
        {"data": [[]] * 10_000, "fn_index": 3},
    )
    bodies += (
        {"event_id": "none", "session_hash": "none", "fn_index": 3},
        {"event_id": 1, "session_hash": [], "fn_index": "x"},
    )
    bodies += ({"session_hash": "q", "component_id": 1, "fn_name": "__init__", "data": None},)
    bodies += (
        {"session_hash": "q", "component_id": 10**9, "fn_name": "ls", "data": "/"},
        {"event_id": "\0"},
        {"prompt": "x"},
        {"code": "x"},
    )
    paths = (
        JOIN,
        "/gradio_api/cancel",
        "/gradio_api/reset",
        "/gradio_api/component_server",
        "/gradio_api/stream/x",
        "/login",
    )
    paths += (
        f"{RUN}/predict",
        f"{RUN}/status",
        f"{RUN}/nothing",
        f"{RUN}/../x",
        f"{CALL}/status",
        f"{CALL}/nothing",
        f"{CALL}/v2/status",
    )
    paths += (
        "/gradio_api/stream/x/close",
        "/gradio_api/api/status",
        "/gradio_api/vibe-code",
        "/gradio_api/vibe-edit",
        "/gradio_api/undo-vibe-edit",
    )
    paths += (
        "/gradio_api/process_recording",
        "/gradio_api/run-history/connect",
        "/gradio_api/upload",
        "/gradio_api/vibe-starter-queries",
    )
    harmless = ("/gradio_api/reset", "/gradio_api/cancel", CALL)  # which say yes to made-up events, and do nothing
    rows: list[tuple] = []
    for path in paths:
        for body in bodies:
            sure = not path.startswith(harmless) and not (isinstance(body, dict) and body.get("fn_index") == 3)
            about = f"{path} {ascii(body)[:40]}"
            rows.append((about, REFUSE if sure else None, "json", {"path": path, "body": body}))
    return rows


def origins() -> list[tuple]:
    """What a page of another origin has a visitor's browser send; and the same from a program."""
    rows: list[tuple] = []
    calls = {
        JOIN: {"data": [[]], "fn_index": 4, "session_hash": "o"},
        f"{CALL}/runs": {"data": [[]]},
        f"{RUN}/runs": {"data": [[]]},
        f"{CALL}/v2/runs": {"runs": []},
        "/gradio_api/cancel": {"session_hash": "o", "fn_index": 4, "event_id": "o"},
        "/gradio_api/upload": {},
        "/gradio_api/component_server": {},
    }
    cookie = {"Cookie": "session=abc; access-token=abc"}
    for path, body in calls.items():
        for origin in (
            FOREIGN,
            "null",
            "http://localhost.evil.example",
            "http://127.0.0.1.evil.example",
            "file://",
            "x" * 3000,
        ):
            given = {"path": path, "body": body, "headers": {"Origin": origin, **cookie}}
            rows.append((f"{path} from {origin[:40]}", REFUSE, "json", given))
        given = {"path": path, "body": body, "headers": {"Sec-Fetch-Site": "cross-site", **cookie}}
        rows.append((f"{path} from another site without its name", REFUSE, "json", given))
        if path == f"{CALL}/runs":  # what is done at once would go past the queue
            rows.append((f"good: {path} from a program", ACCEPT, "json", {"path": path, "body": body}))
    return rows


FILES = (
    "/etc/passwd",
    "/proc/self/environ",
    "/proc/self/cmdline",
    "FOLDER/canary.txt",
    "FOLDER/runs/VICTIM/recipe.yaml",
    "/dev/zero",
)
FILES += (
    "FOLDER/runs/VICTIM/data/heldout.jsonl",
    "FOLDER/uploads/../canary.txt",
    "runs/VICTIM/recipe.yaml",
    "app.py",
    "../app.py",
)
FILES += (
    "FOLDER/uploads/../../../../../etc/passwd",
    "/etc/",
    "/",
    "~/.ssh/id_rsa",
    "FOLDER/fifo",
    "//etc/passwd",
    "./",
    "FOLDER/link",
)
FILES += (
    "README.md",
    "tuner/recipe.py",
    ".env",
    "C:\\Windows\\win.ini",
    "\\\\host\\share",
    "/etc/passwd%00.png",
    "/etc/passwd\x00.png",
)
FILES += (
    "..%2f..%2f..%2f..%2fetc%2fpasswd",
    "....//....//etc/passwd",
    "%252e%252e%252fetc/passwd",
    "a" * 300,
    "a" * 5000,
    "\u202e",
)
FILES += (
    "http://127.0.0.1:9/x",
    "https://evil.example/",
    "file:///etc/passwd",
    "FOLDER/hub/token",
    "//evil.example/x",
)


def paths() -> list[tuple]:
    """Addresses of files that are nobody's business."""
    from urllib.parse import quote

    prefixes = (
        "/gradio_api/file=",
        "/gradio_api/file/",
        "/static/",
        "/assets/",
        "/svelte/",
        "/gradio_api/proxy=",
        "/gradio_api/",
    )
    prefixes += (
        "/gradio_api/custom_component/1/server/component/",
        "/gradio_api/stream/q/1/1/playlist.m3u8?",
        "/pwa_icon/",
    )
    rows: list[tuple] = []
    for prefix in prefixes:
        for file in FILES:
            raw = quote(file, safe="/%:~\\=.", errors="surrogatepass")
            for shown in dict.fromkeys((raw, quote(raw, safe=""))):
                sure = prefix.endswith("=") or file in ("/etc/passwd", "FOLDER/canary.txt", "app.py")
                rows.append((f"GET {prefix}{shown}"[:70], REFUSE if sure else None, "get", {"path": prefix + shown}))
    others = (
        "/gradio_api/queue/data",
        "/gradio_api/queue/data?session_hash=none",
        "/gradio_api/call/status/none",
        "/monitoring",
    )
    others += (
        "/gradio_api/queue/data?session_hash=" + "a" * 5000,
        "/monitoring/summary",
        "/monitoring/x",
        "/gradio_api/upload_progress",
    )
    others += (
        "/gradio_api/upload_progress?upload_id=none",
        "/gradio_api/deep_link?session_hash=x",
        "/?deep_link=../../x",
        "/?run=../x",
    )
    others += (
        "/?__theme=x",
        "/?view=x",
        "/gradio_api/info?all_endpoints=true",
        "/gradio_api/dev/reload",
        "/gradio_api/token",
        "/user",
    )
    others += (
        "/gradio_api/app_id",
        "/gradio_api/openapi.json",
        "/nothing",
        "/config?deep_link=x",
        "/" + "a/" * 3000,
        "/%00",
        "/%ff",
        "/?" + "a=b&" * 9000,
    )
    others += (
        "/gradio_api/heartbeat/" + "a" * 3000,
        "/logout",
        "/login/huggingface?_target_url=//evil.example",
        "/gradio_api/vibe-code",
    )
    slow = (
        "heartbeat",
        "session_hash=a",
        "session_hash=none",
        "upload_id=none",
    )  # answered bit by bit, for as long as one likes
    rows += [
        (f"GET {path}"[:70], None, "get", {"path": path}) for path in others if not any(part in path for part in slow)
    ]
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "FOO", "a" * 3000):
        for path in ("/", "/gradio_api/queue/join", "/gradio_api/file=/etc/passwd"):
            rows.append(
                (
                    f"{method[:9]} {path}",
                    REFUSE if method != "OPTIONS" else None,
                    "get",
                    {"path": path, "method": method},
                )
            )
    return rows


def uploads() -> list[tuple]:
    """Uploads under names that lead elsewhere, and bodies that are no form."""
    rows: list[tuple] = []
    for name in (
        *attack_cases.NAMES,
        "../../owned.csv",
        "/FOLDER/owned.csv",
        ".htaccess",
        "x.html",
        "x.svg",
        "a" * 255 + ".csv",
    ):
        rows.append((f"an upload named {ascii(name)[:40]}", None, "upload", {"name": name}))
    for quoted in (
        "..\\\" ; filename*=UTF-8''%2e%2e%2fowned",
        'a"; filename="../owned',
        "\r\nX: y",
        "",
        "%2e%2e%2fowned",
    ):
        rows.append((f"an upload with the header {quoted[:30]!r}", None, "upload", {"name": "x", "quoted": quoted}))
    page = b"<script>alert(1)</script>"
    return [*rows, ("an upload of a page", None, "upload", {"name": "x.html", "content": page})]


def wires() -> list[tuple]:
    """Bytes that are no HTTP, or hardly."""
    head = b"POST /gradio_api/queue/join HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    part, last = b"Connection: close\r\nContent-Length: ", b"Connection: close\r\n\r\n"
    form = b"POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=X\r\n"
    pieces = {
        "nothing": b"",
        "zeros": bytes(100),
        "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        "a word": b"hello\r\n\r\n",
        "a huge address": b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        "a huge header": b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
        "10,000 headers": b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 10_000 + b"\r\n",
        "a wrong length": head + b"Content-Length: -5\r\n\r\n{}",
        "no number as length": head + b"Content-Length: x\r\n\r\n{}",
        "two lengths": head + b"Content-Length: 2\r\nContent-Length: 9\r\n\r\n{}",
        "half a body": head + b'Content-Length: 900\r\n\r\n{"data": [',
        "broken JSON": head + b'Content-Length: 5\r\nConnection: close\r\n\r\n{"a":',
        "no UTF-8": head + b"Content-Length: 2\r\nConnection: close\r\n\r\n\xff\xfe",
        "deep JSON": head + b"Content-Length: 100000\r\nConnection: close\r\n\r\n" + b"[" * 100_000,
        "a deep object": head + b"Content-Length: 500000\r\nConnection: close\r\n\r\n" + b'{"a":' * 100_000,
        "wrong chunks": head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
        "chunks and a length": head
        + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\nGET / HTTP/1.1\r\n\r\n",
        "a form without an end": form + b"Content-Length: 9\r\nConnection: close\r\n\r\n--X\r\nabcd",
        "a form of nothing": form + b"Content-Length: 0\r\nConnection: close\r\n\r\n",
        "a form without a boundary": form.replace(b"; boundary=X", b"") + b"Content-Length: 2\r\n" + last + b"ab",
        "a form of many parts": form
        + part
        + b"520000\r\n\r\n"
        + b'--X\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n' * 10_000,
        "a form with a long name": form
        + part
        + b"300100\r\n\r\n"
        + b'--X\r\nContent-Disposition: form-data; name="files"; filename="'
        + b"a" * 300_000
        + b'"\r\n\r\nx\r\n--X--\r\n',
        "an HTTP of the future": b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
        "no host": b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n",
        "a foreign host": b"GET / HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
        "an odd host": b"GET / HTTP/1.1\r\nHost: \xff<script>\r\nConnection: close\r\n\r\n",
        "a forwarded host": b"GET /config HTTP/1.1\r\nHost: x\r\nX-Forwarded-Host: evil.example\r\n"
        + b"X-Forwarded-Proto: javascript\r\n"
        + last,
        "an odd cookie": b"GET / HTTP/1.1\r\nHost: x\r\nCookie: \xff\xfe=;;;===\r\nConnection: close\r\n\r\n",
        "a websocket": b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        + b"Sec-WebSocket-Key: eA==\r\nSec-WebSocket-Version: 13\r\n\r\n",
        "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "a foreign address": b"GET http://evil.example/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        "a huge range": b"GET /theme.css HTTP/1.1\r\nHost: x\r\nRange: bytes="
        + b"0-1," * 5000
        + b"2-3\r\nConnection: close\r\n\r\n",
    }
    rows: list[tuple] = [(f"bytes: {what}", None, "raw", {"data": data}) for what, data in pieces.items()]
    rows.append(
        ("60 bodies that do not end", None, "slow", {"data": head + b"Content-Length: 900\r\n\r\n{", "count": 60})
    )
    rows.append(
        ("60 headers that do not end", None, "slow", {"data": b"GET / HTTP/1.1\r\nHost: x\r\nA: ", "count": 60})
    )
    return [*rows, ("60 connections that say nothing", None, "slow", {"data": b"", "count": 60})]


def floods() -> list[tuple]:
    """Many requests at once."""
    deep = '{"a":' * 1000
    hidden = ('{"data": ["\u2201", [' + "[]," * 10**6 + "0]]}").encode("utf-16")
    return [
        ("1,000 joins of /status", None, "flood", {"name": "status", "data": ["VICTIM"], "count": 1000}),
        ("1,000 joins of /check", None, "flood", {"name": "check", "data": [deep, None, ""], "count": 1000}),
        (
            "400 joins of /check with 1 MB each",
            None,
            "flood",
            {"name": "check", "data": ["a: " + "x" * 10**6, None, ""], "count": 400},
        ),
        ("300 reads of the page", None, "flood", {"path": "/", "count": 300, "at_once": 300}),
        ("100 bodies in UTF-16", None, "flood", {"path": "/gradio_api/call/runs", "content": hidden, "count": 100}),
    ]


def handler(rng: random.Random, number: int) -> tuple:
    """One of the page's own handlers with spoiled inputs."""
    return f"handler {number} spoiled", None, "handler", {"number": number, "choice": rng.random()}


TABLES = {
    "endpoint": endpoints,
    "link": links,
    "request": requests,
    "origin": origins,
    "path": paths,
    "upload": uploads,
    "wire": wires,
    "flood": floods,
}
_made: dict[str, list[tuple[Any, ...]]] = {}


def rows_of(family: str) -> list[tuple[Any, ...]]:
    """The table of a family, made once; families that are tried both ways share theirs."""
    if family not in _made:
        other = family.removeprefix("http-")
        _made[family] = attack_cases.rows_of(other) if other != family else TABLES[family]()
        if other == "name":
            _made[family] = [row for row in _made[family] if row[2] == "check"]
    return _made[family]


def make(family: str, number: int, seed: int) -> Case:
    """The case of this number: a row of the table, or behind its end a variation."""
    rng = random.Random(f"{seed}/{family}/{number}")
    if family == "handler":
        return Case(family, number, *handler(rng, number))
    rows, other = rows_of(family), family.removeprefix("http-")
    if number < len(rows):
        return Case(family, number, *rows[number])
    if family == "http-file":
        return Case(family, number, *attack_files.mutation(rng))
    return Case(family, number, *attack_cases.mutated_row(rng, attack_cases.short_rows(other)))
