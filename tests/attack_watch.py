"""The watchdog: another visitor, from another network address, who keeps asking for something cheap and notes each
wait; and the memory of the app with its children.

    python attack_watch.py http://127.0.0.1:7860/ PID    # until its standard input ends; then it prints what it saw
"""

import contextlib
import http.client
import json
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import psutil

PAUSE = 0.02  # seconds between two questions
PATIENCE = 60  # seconds, after which a question counts as not answered
HEADERS = {"X-Forwarded-For": "203.0.113.9", "Content-Type": "application/json"}


class Stalls(threading.Thread):
    """How much later than it asked this process was woken: what the machine, and not the app, was slow by."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.late: list[tuple[float, float]] = []

    def run(self) -> None:
        """Sleep and look at the clock."""
        while True:
            before = time.time()
            time.sleep(PAUSE)
            if (late := time.time() - before - PAUSE) > PAUSE:
                self.late.append((before, late))

    @staticmethod
    def of_app(pid: int) -> dict[str, int]:
        """Nanoseconds for which each thread of the app was ready to run, and no core was free."""
        delays = {}
        for file in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):  # the thread has ended
                delays[file.parent.name] = int(file.read_text().split()[1])
        return delays

    def between(self, start: float, end: float) -> float:
        """Seconds by which the machine was slow meanwhile."""
        return sum(late for when, late in self.late if start - 1 <= when <= end)


class OtherVisitor:
    """Somebody with a page open. One connection for each question, as a new visitor would have."""

    def __init__(self, url: str, pid: int):
        self.host, self.pid, self.asked = urlsplit(url).netloc, pid, 0

    def _ask(self, method: str, path: str, body: dict | None = None) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection(self.host, timeout=PATIENCE)
        content = json.dumps(body) if body is not None else None
        connection.request(method, path, content, HEADERS)
        return connection.getresponse()

    def page(self) -> bool:
        """The page itself."""
        answer = self._ask("GET", "/")
        return answer.status == 200 and b"Tuner" in answer.read()

    def file(self) -> bool:
        """One of the page's own files."""
        answer = self._ask("GET", "/theme.css")
        return answer.status == 200 and bool(answer.read())

    def status(self) -> bool:
        """/status of the example."""
        answer = self._ask("POST", "/gradio_api/call/status", {"data": ["example"]})
        if answer.status != 200:
            return False
        event = json.loads(answer.read())["event_id"]
        return b"event: complete" in self._ask("GET", f"/gradio_api/call/status/{event}").read()

    def watch(self, stop: threading.Event) -> list[dict]:
        """Ask in turn until told to stop; each question with its time, its wait, and whether it was answered."""
        waits = []
        while not stop.wait(PAUSE):
            question = (self.status, self.file, self.page)[self.asked % 3]
            self.asked += 1
            before, started = Stalls.of_app(self.pid), time.time()
            try:
                answered = question()
            except (OSError, ValueError, http.client.HTTPException):
                answered = False
            took, after = time.time() - started, Stalls.of_app(self.pid)
            starved = max((after[thread] - before.get(thread, 0) for thread in after), default=0) / 1e9
            waits.append(
                {"what": question.__name__, "at": started, "took": took, "starved": starved, "answered": answered}
            )
        return waits


class Memory(threading.Thread):
    """The most memory that the process of the app and its children held together."""

    def __init__(self, pid: int):
        super().__init__(daemon=True)
        self.app, self.most, self.first, self.over = psutil.Process(pid), 0, 0, threading.Event()

    def run(self) -> None:
        """Look twice a second."""
        while not self.over.wait(0.5):
            now = self.held()
            self.first, self.most = self.first or now, max(self.most, now)

    def held(self) -> int:
        """Bytes of each process that it shares with no other, and its part of what is shared."""
        total = 0
        for process in [self.app, *self._children()]:
            try:
                total += process.memory_full_info().pss
            except psutil.Error:  # it has ended
                continue
        return total

    def _children(self) -> list[psutil.Process]:
        try:
            return self.app.children(recursive=True)
        except psutil.Error:
            return []


def main() -> None:
    """Watch until standard input ends."""
    stalls, stop, waits = Stalls(), threading.Event(), []
    stalls.start()
    watcher = threading.Thread(target=lambda: waits.extend(OtherVisitor(sys.argv[1], int(sys.argv[2])).watch(stop)))
    watcher.start()
    sys.stdin.read()
    stop.set()
    watcher.join()
    for wait in waits:
        own = stalls.between(wait["at"], wait["at"] + wait["took"])
        wait["stalled"] = own + wait["starved"]
    print(json.dumps(waits))


if __name__ == "__main__":
    main()
