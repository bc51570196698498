"""What the attack sends over HTTP: every endpoint and every handler of the page with wrong inputs, paths to files,
uploads, requests that are no HTTP, foreign pages, and the recipes and files that are also tried without HTTP."""

import contextlib
import http.client
import json
import random
import socket
import threading
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit

import attack_cases
import attack_files
from attack_cases import ACCEPT, REFUSE, Case

PATIENCE = 150  # seconds in which each request must be answered, more than a job with limits has
FOREIGN = "https://evil.example"
FAULT = "fault"


@dataclass
class Answer:
    """What came back: accept, refuse, or a fault of the server."""

    outcome: str
    text: str
    status: int = 200


class Attacker:
    """Somebody with many connections, who knows the page's own configuration and, from a link, the id of a run."""

    def __init__(self, url: str, victim: str, folder: str):
        self.url, self.host, self.victim, self.folder = url, urlsplit(url).netloc, victim, folder
        _, _, config = self.send("GET", "/config")
        self.handlers = [d for d in json.loads(config)["dependencies"] if d["backend_fn"]]
        components = {c["id"]: c for c in json.loads(config)["components"]}
        self.defaults = {d["id"]: [components[i]["props"].get("value") for i in d["inputs"]] for d in self.handlers}
        self.by_name = {d["api_name"]: d["id"] for d in self.handlers}
        self.slow: list[socket.socket] = []

    def send(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """One request: status, headers, body."""
        connection = http.client.HTTPConnection(self.host, timeout=PATIENCE)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, dict[str, str], bytes]:
        """JSON to a path."""
        headers = {"Content-Type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
        return self.send("POST", path, json.dumps(body).encode(), headers)

    def call(self, function: int, data: Any, session: str, enough: int = 3, **more: Any) -> Answer:
        """Join the queue as the page does, and read what is told until the end, or until it has told enough."""
        body = {"data": data, "fn_index": function, "session_hash": session, **more}
        status, _, said = self.post("/gradio_api/queue/join", body)
        if status != 200:
            return _answered(status, said)
        connection = http.client.HTTPConnection(self.host, timeout=PATIENCE)
        connection.request("GET", f"/gradio_api/queue/data?session_hash={quote(session)}")
        told, messages = connection.getresponse(), []
        try:
            for line in told:
                if not line.startswith(b"data: "):
                    continue
                message = json.loads(line[6:])
                if message["msg"] in ("process_generating", "process_completed", "unexpected_error", "alert"):
                    messages.append(message)
                if (
                    message["msg"] in ("process_completed", "close_stream", "unexpected_error")
                    or len(messages) >= enough
                ):
                    break
        finally:
            connection.close()
        return _judged(messages)

    def upload(self, name: str, content: bytes, quoted_name: str | None = None) -> tuple[int, bytes]:
        """Upload a file under this name."""
        shown = name.encode("utf-8", "surrogatepass") if quoted_name is None else quoted_name.encode()
        head = b'--X\r\nContent-Disposition: form-data; name="files"; filename="' + shown + b'"\r\n\r\n'
        body = head + content + b"\r\n--X--\r\n"
        kind = {"Content-Type": "multipart/form-data; boundary=X"}
        status, _, said = self.send("POST", "/gradio_api/upload", body, kind)
        return status, said

    def raw(self, data: bytes, wait: float = 5) -> bytes:
        """Bytes as they are; what comes back until the server closes, or in so many seconds."""
        with socket.create_connection(self.host.split(":"), timeout=wait) as line:
            said = b""
            try:
                line.sendall(data)
                line.shutdown(socket.SHUT_WR)
                while part := line.recv(65536):
                    said += part
            except OSError:
                pass
            return said

    def do(self, case: Case) -> Answer:
        """Do a case."""
        return getattr(self, f"_{case.call}")(case.given, f"{case.family}{case.number}x{time.monotonic_ns()}")

    # -- the ways in which cases are done

    def _endpoint(self, given: dict, session: str) -> Answer:
        function, data = self.by_name[given["name"]], self._filled(given["data"])
        if not given.get("exact"):  # what a case says nothing about is left empty, as a program leaves it
            data += [""] * (len(self.defaults[function]) - len(data))
        return self.call(function, data, session)

    def _handler(self, given: dict, session: str) -> Answer:
        rng = random.Random(given["choice"])
        handler = self.handlers[given["number"] % len(self.handlers)]
        data = self._filled(spoiled(rng, self.defaults[handler["id"]]))
        event = rng.choice(
            (None, None, {}, [], {"run": rng.choice(attack_cases.NAMES[:60])}, {"index": 10**9}, "x", {"method": []})
        )
        if not handler["queue"] and rng.random() < 0.5:
            body = {"data": data, "fn_index": handler["id"], "session_hash": session, "event_data": event}
            status, _, said = self.post("/gradio_api/run/predict", body)
            return _answered(status, said)
        return self.call(handler["id"], data, session, event_data=event, trigger_id=rng.choice((None, -1, 10**9)))

    def _filled(self, data: Any) -> Any:
        return json.loads(json.dumps(data).replace("VICTIM", self.victim).replace("FOLDER", self.folder))

    def _json(self, given: dict, session: str) -> Answer:
        status, _, said = self.post(given["path"], self._filled(given["body"]), **given.get("headers", {}))
        return _answered(status, said)

    def _get(self, given: dict, session: str) -> Answer:
        path = given["path"].replace("VICTIM", self.victim).replace("FOLDER", self.folder)
        status, _, said = self.send(given.get("method", "GET"), path)
        return _answered(status, said)

    def _raw(self, given: dict, session: str) -> Answer:
        said = self.raw(given["data"])
        status = int(said[9:12]) if said[9:12].isdigit() else 400  # a connection that is closed is a refusal
        return _answered(status, said)

    def _slow(self, given: dict, session: str) -> Answer:
        for _ in range(given["count"]):
            line = socket.create_connection(self.host.split(":"), timeout=PATIENCE)
            line.sendall(given["data"])
            self.slow.append(line)  # open until the attack ends
        return Answer(REFUSE, "")

    def _upload(self, given: dict, session: str) -> Answer:
        status, said = self.upload(given["name"], given.get("content", b"a,b\n"), given.get("quoted"))
        return _answered(status, said)

    def _file(self, given: dict, session: str) -> Answer:
        content = given["content"]() if callable(given["content"]) else given["content"]
        content = content if isinstance(content, bytes) else content.encode()
        status, said = self.upload(given["name"], content)
        if status != 200:
            return _answered(status, said)
        file = {"path": json.loads(said)[0], "orig_name": given["name"], "meta": {"_type": "gradio.FileData"}}
        return self.call(self.by_name["check"], [attack_cases.GOOD, file, ""], session)

    def _check(self, given: dict, session: str) -> Answer:
        rows = given.get("rows", attack_cases.ROWS)
        rows = {"chat": attack_files.CHAT, "check": attack_cases.ROWS}.get(rows, rows)
        return self.call(
            self.by_name["check"], [given["recipe"].replace("FIFO", f"{self.folder}/fifo"), None, rows], session
        )

    def _pasted(self, given: dict, session: str) -> Answer:
        text = given["text"]() if callable(given["text"]) else given["text"]
        return self.call(self.by_name["check"], [attack_cases.GOOD, None, text], session)

    def _flood(self, given: dict, session: str) -> Answer:
        """Many at once, whose answers nobody waits for: joins of an endpoint, reads of a path, or bodies of bytes."""

        def send(name: str) -> None:
            if "name" in given:
                body = {"data": self._filled(given["data"]), "fn_index": self.by_name[given["name"]]}
                self.post("/gradio_api/queue/join", body | {"session_hash": name})
            else:
                content, headers = given.get("content"), {"Content-Type": "application/json"}
                self.send("POST" if content else "GET", given["path"], content, headers)

        def send_some(number: int) -> None:
            for i in range(given["count"] // at_once):
                with contextlib.suppress(OSError, http.client.HTTPException):
                    send(f"{session}-{number}-{i}")

        at_once = given.get("at_once", 20)
        crowd = [threading.Thread(target=send_some, args=(number,)) for number in range(at_once)]
        for one in crowd:
            one.start()
        for one in crowd:
            one.join()
        return Answer(REFUSE, "")


def _answered(status: int, said: bytes) -> Answer:
    text = said.decode("utf-8", "replace")
    # Gradio answers 500 with a sentence, too; without one it is its own fault.
    fault = status >= 500 and status != 503 and '"error":' not in text
    return Answer(FAULT if fault else ACCEPT if status < 400 else REFUSE, text, status)


def _judged(messages: list[dict]) -> Answer:
    text = json.dumps(messages)
    if not messages:
        return Answer(REFUSE, text)
    last = messages[-1]
    if last["msg"] == "unexpected_error":
        return Answer(FAULT, text)
    if not last.get("success", True):
        return Answer(REFUSE, text)
    return Answer(REFUSE if '"problems": ["' in text else ACCEPT, text)


def spoiled(rng: random.Random, values: list) -> list:
    """The inputs of a handler with some of them replaced, left out or added."""
    odd: tuple = (
        None,
        [],
        {},
        0,
        -1,
        1e300,
        "",
        "x",
        "\0",
        "VICTIM",
        "example",
        "../example",
        [None],
        {"a": {"b": []}},
        True,
    )
    odd += (
        "a" * 3000,
        ["example"] * 200,
        {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}},
        [[1]],
        "\ud800",
    )
    odd += (
        {"path": "FOLDER/canary.csv", "url": "http://127.0.0.1:9/x", "meta": {"_type": "gradio.FileData"}},
        10**400,
        "nan",
    )
    odd += (
        {"runs": ["VICTIM"] * 50, "shown": "VICTIM"},
        {"runs": "x", "shown": []},
        {"runs": [None, 1, {}], "shown": {}},
    )
    odd += (
        {"__type__": "update", "value": "x"},
        [{"role": "user", "content": None}],
        [{"role": 1}],
        "<script>",
        2**63,
    )
    values = list(values)
    for _ in range(rng.choice((1, 1, 2, 3, 50))):
        if values:
            values[rng.randrange(len(values))] = rng.choice(odd)
    shape = rng.random()
    if shape < 0.1:
        return values[: rng.randrange(len(values) + 1)]
    return values + [rng.choice(odd)] * rng.choice((1, 500)) if shape < 0.15 else values
