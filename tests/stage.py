"""A stand-in for ZeroGPU's device API on loopback, for the real `spaces` client.

with Stage(kill_after=[2]) as stage:
    subprocess.run([sys.executable, "tests/on_stage.py", "app.py"], env=os.environ | stage.environment)

It grants and refuses windows as the platform does; a worker whose granted seconds are over is killed.
"""

import json
import math
import os
import select
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

PING = 0.5  # seconds between the pings to those who wait
BIRTH = 60  # seconds that a new worker may take until it tells its pid

# Why a window is refused: status, the platform's name for it, and `wait` where its value has a meaning.
REFUSALS = {
    "quota": (429, "quota-exceeded", None),
    "runs": (429, "runs-exceeded", 0),
    "pending": (429, "pending-overquota-exceeded", None),
    "duration": (429, "illegal-duration", -1),
    "unavailable": (503, None, None),
    "expired": (401, None, None),
}


@dataclass
class Window:
    """A granted window. `how` it ended: released, failed, killed (by the stage), unused (no worker ever came)."""

    token: str | None
    requested: int
    index: int
    key: str  # the allowToken
    task: str  # spaces' name for the decorated function
    lives: float  # seconds until the worker is killed
    began: float  # when it was granted; for a new worker, when it told its pid
    pid: int | None = None
    ended: float | None = None
    how: str | None = None
    killed_at: float | None = None


class Stage:
    """Grants `gpus` windows at a time. All attributes may be changed while it runs.

    quota: token -> seconds left ("" is the token of requests without one, others have none); None is endless.
    longest: the largest duration that may be asked for.
    kill_after: seconds after which each granted window's worker is killed, one by one (None: not early); an iterator.
    grace: seconds on top of the granted ones. queue_patience: seconds that a request waits in line.
    wait: seconds until a spent quota returns.
    refuse: None, a name in REFUSALS, or "queue timeout": how every further request is refused.
    """

    def __init__(
        self,
        gpus: int = 1,
        quota: dict[str, int] | None = None,
        longest: int | None = None,
        kill_after: Iterable[float | None] | None = None,
        *,
        grace: float = 0.0,
        queue_patience: float = 60.0,
    ):
        self.gpus, self.quota, self.longest, self.kill_after = gpus, quota, longest, iter(kill_after or ())
        self.grace, self.queue_patience, self.wait = grace, queue_patience, 19920  # 5:32:00
        self.refuse: str | None = None
        self.windows: list[Window] = []
        self._changed = threading.Condition(threading.RLock())
        self._line: list[object] = []
        self._timers: dict[str, threading.Timer] = {}
        self._workers: dict[int, _Worker] = {}  # by GPU, the last one
        self._closing = False

    def __enter__(self) -> "Stage":
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.stage = self
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.environment = {"SPACES_ZERO_GPU": "true", "SPACES_ZERO_DEVICE_API_URL": self.url, "NO_PROXY": "127.0.0.1"}
        return self

    def __exit__(self, *_) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._server.shutdown()
        self._server.server_close()
        self.end_workers()  # which ends the windows, and their timers with them
        for index in list(self._workers):
            self._forget(index)

    @property
    def waiting(self) -> int:
        """How many requests stand in line."""
        return len(self._line)

    def wait_until(self, true: Callable[[], bool], seconds: float = 60) -> None:
        """Return as soon as `true()`, which is asked whenever a window or the line changes."""
        with self._changed:
            assert self._changed.wait_for(true, seconds), "the stage did not get there"

    def end_workers(self) -> None:
        """Kill all workers, busy ones too: the next windows start cold."""
        with self._changed:
            for window in self.windows:
                self._kill(window)
            for worker in self._workers.values():
                worker.kill()

    cold = end_workers

    def _refusal(self, token: str | None, seconds: int) -> str | None:
        if self.refuse:
            return self.refuse
        if self.longest is not None and seconds > self.longest:
            return "duration"
        return "quota" if seconds > self._left(token) else None

    def _left(self, token: str | None) -> float:
        return math.inf if self.quota is None else self.quota.get(token or "", 0)

    def _free(self) -> list[int]:
        taken = {w.index for w in self.windows if not w.ended}
        return [index for index in range(self.gpus) if index not in taken]

    @contextmanager
    def _in_line(self, place: object) -> Iterator[None]:
        self._line.append(place)
        try:
            yield
        finally:
            with self._changed:
                self._line.remove(place)
                self._changed.notify_all()

    def _turn(self, place: object, timeout: float) -> bool:
        with self._changed:
            self._changed.notify_all()  # the line has grown, perhaps
            self._changed.wait_for(lambda: self._closing or (self._line[0] is place and self._free()), timeout)
            return bool(not self._closing and self._line[0] is place and self._free())

    def _grant(self, token: str | None, seconds: int, task: str) -> dict:
        with self._changed:
            free = self._free()
            warm = [i for i, w in self._workers.items() if i in free and w.task == task and w.alive()]
            index = (warm or [i for i in free if i not in self._workers] or free)[0]
            early = next(self.kill_after, None)
            lives = min(seconds + self.grace, math.inf if early is None else early)
            window = Window(token, seconds, index, uuid.uuid4().hex, task, lives, began=time.monotonic())
            if warm:
                window.pid = self._workers[index].pid
            elif index in self._workers:  # another function's: one process per GPU, as memory would run out otherwise
                self._forget(index)
            self.windows.append(window)
            self._arm(window, lives if warm else BIRTH)
            self._changed.notify_all()
        return {"idle": bool(warm), "nvidiaIndex": index, "nvidiaUUID": f"GPU-{index}", "allowToken": window.key}

    def _arm(self, window: Window, seconds: float) -> None:
        if window.key in self._timers:
            self._timers[window.key].cancel()
        timer = self._timers[window.key] = threading.Timer(seconds, self._kill, [window])
        timer.daemon = True
        timer.start()

    def _open(self, key: str) -> Window | None:
        return next((w for w in self.windows if w.key == key and not w.ended), None)

    def _allow(self, key: str, pid: int) -> int:
        with self._changed:
            if not (window := self._open(key)):
                return 404
            self._forget(window.index)
            self._workers[window.index] = _Worker(pid, window.task)
            window.pid, window.began = pid, time.monotonic()
            self._arm(window, window.lives)
            self._changed.notify_all()
        return 200

    def _release(self, key: str, fail: bool) -> int:
        with self._changed:
            if not (window := self._open(key)):
                return 404
            if fail:  # spaces never comes back to such a worker, but leaves it alive
                self._forget(window.index)
            self._end(window, "failed" if fail else "released")
        return 200

    def _kill(self, window: Window) -> None:
        with self._changed:
            if window.ended:
                return
            if window.pid:
                window.killed_at = time.monotonic()
                self._workers[window.index].kill()
            self._end(window, "killed" if window.pid else "unused")

    def _forget(self, index: int) -> None:
        if worker := self._workers.pop(index, None):
            worker.kill()
            worker.close()

    def _end(self, window: Window, how: str) -> None:
        self._timers.pop(window.key).cancel()
        window.ended, window.how = time.monotonic(), how
        if self.quota is not None and window.pid:
            self.quota[window.token or ""] = max(0, self._left(window.token) - (window.ended - window.began))
        self._changed.notify_all()


class _Worker:
    """A process that is held by a descriptor: a zombie counts as dead, and a pid used again is never hit."""

    def __init__(self, pid: int, task: str):
        self.pid, self.task, self._handle = pid, task, os.pidfd_open(pid)

    def alive(self, seconds: float = 0) -> bool:
        return not select.select([self._handle], [], [], seconds)[0]

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._handle, signal.SIGKILL)
        self.alive(10)

    def close(self) -> None:
        os.close(self._handle)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        address, stage = urlsplit(self.path), self.server.stage
        query = dict(parse_qsl(address.query))
        if address.path == "/schedule":
            self._schedule(query.get("token"), int(query.get("durationSeconds", 60)), query["taskId"])
        elif address.path == "/allow":
            self._answer(stage._allow(query["allowToken"], int(query["pid"])))
        elif address.path == "/release":
            self._answer(stage._release(query["allowToken"], query.get("fail") == "true"))
        else:
            self._answer(200 if address.path == "/startup-report" else 404)

    def _schedule(self, token: str | None, seconds: int, task: str) -> None:
        stage, streams = self.server.stage, False
        if why := stage._refusal(token, seconds):
            return self._refuse(why, stage._left(token))
        impatient = time.monotonic() + stage.queue_patience
        # OSError: the one who waited has gone.
        with suppress(OSError), stage._in_line(self):
            while not stage._turn(self, PING if streams else 0):
                if not streams:
                    self._open_stream()
                    streams = True
                if stage._closing or time.monotonic() >= impatient:
                    return self._event("failed")
                self._event("ping")
            if not self._gone():
                grant = stage._grant(token, seconds, task)
                self._event("succeeded", f"data: {json.dumps(grant)}\n") if streams else self._answer(200, grant)

    def _refuse(self, why: str, left: float) -> None:
        if why == "queue timeout":
            self._open_stream()
            return self._event("failed")
        status, name, wait = REFUSALS[why]
        wait = self.server.stage.wait if wait is None else wait
        self._answer(status, {"left": 0 if left == math.inf else int(left), "wait": wait}, name)

    def _answer(self, status: int, content: dict | None = None, result: str | None = None) -> None:
        body = json.dumps(content or {}).encode()
        self._head(status, "application/json", {"Content-Length": str(len(body)), "X-Approve-Result": result})
        self.wfile.write(body)

    def _open_stream(self) -> None:
        self._head(200, "text/event-stream", {"Transfer-Encoding": "chunked", "X-Queuing-Reason": "node"})

    def _event(self, name: str, data: str = "") -> None:
        event = f"event: {name}\n{data}\n".encode()
        # The client takes what one chunk holds for one event.
        self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))

    def _head(self, status: int, kind: str, headers: dict[str, str | None]) -> None:
        self.send_response(status)
        for name, value in ({"Content-Type": kind, "Connection": "close"} | headers).items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()

    def _gone(self) -> bool:
        readable = select.select([self.connection], [], [], 0)[0]
        return bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)

    def log_message(self, *_) -> None: ...
