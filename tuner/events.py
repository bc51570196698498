"""A run's event log, events.jsonl: one JSON object per line, appended to by whoever works on the run.

Readers continue where they stopped last time. They cope with half a line that a killed writer left, and with a new
file under the same name after the run was deleted and created again.
"""

import io
import json
import math
import os
import stat
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TypeVar

from tuner.errors import TunerError


class Fold(Protocol):
    """A summary of a log, built event by event; created without arguments."""

    def add(self, event: dict) -> None:
        """Take the next event into account."""


FoldType = TypeVar("FoldType", bound=Fold)

REPAIR = "Train its recipe again in a new run."
MOST_BYTES = 256 * 2**20  # of a log, which are 800,000 steps; a larger one is damaged
MOST_LINE = 2**20  # bytes; a longer line is skipped
BEGINNING = 4 * 2**10  # bytes
NUMBER, FIGURE = (int, float), (int, float, type(None))  # of which None is missing
# Of what kind these entries are, where an event has them.
KINDS = {"event": str, "time": NUMBER, "reason": str, "problems": list, "loss": FIGURE, "epoch": FIGURE}
KINDS |= dict.fromkeys(("step", "row", "rows", "of"), int)
KINDS |= dict.fromkeys(("steps", "seconds", "seconds_to_go", "seconds_per_step", "start_up"), FIGURE)
KINDS |= dict.fromkeys(("tokens", "tokens_per_second", "peak_memory"), FIGURE)
KINDS |= dict.fromkeys(("since", "lowest"), FIGURE)
KINDS |= dict.fromkeys(("kept", "best", "best_loss", "last_loss", "saved_seconds", "rising_since"), FIGURE)
NEEDED = {"micro_batch": {"rows", "of"}}  # event -> entries without which it says nothing
_decoder = json.JSONDecoder(parse_constant=lambda name: None)  # NaN and Infinity, as older versions wrote them


class EventReader:
    """Reads a log piece by piece; belongs to one thread."""

    def __init__(self, path: Path):
        self.path = path
        self.restarts = 0  # how often the file was replaced or cut short, and read again from its start
        self._offset = 0  # bytes of whole lines read so far
        self._file: int | None = None
        self._seen: tuple[int, int] | None = None

    def read(self) -> list[dict]:
        """The events since the last call; all of them if the file has been replaced or cut short since."""
        try:
            if self._identity(os.stat(self.path)) == self._seen:
                return []
            with open(self.path, "rb", opener=_open_at_once) as file:
                status = os.fstat(file.fileno())
                if self._offset and (status.st_ino != self._file or status.st_size < self._offset):
                    self._restart()
                if not stat.S_ISREG(status.st_mode) or status.st_size > MOST_BYTES:
                    raise TunerError(f"Run {self.path.parent.name}: its {self.path.name} is too large. {REPAIR}")
                file.seek(self._offset)
                new = file.read(MOST_BYTES)
        except OSError as error:
            if self._offset:
                self._restart()
            if isinstance(error, (FileNotFoundError, NotADirectoryError)):
                return []
            why = (error.strerror or type(error).__name__).lower()
            raise TunerError(
                f"Run {self.path.parent.name}: its {self.path.name} is unreadable ({why}). {REPAIR}"
            ) from None
        self._file, self._seen = status.st_ino, self._identity(status)
        whole = new[: new.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [event for line in io.BytesIO(whole) if len(line) <= MOST_LINE and (event := _parse(line))]

    def skip(self) -> None:
        """Pass over the events that there are, without reading them."""
        try:
            with open(self.path, "rb", opener=_open_at_once) as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    return
                file.seek(max(0, status.st_size - MOST_LINE))
                start, last = file.tell(), file.read()
        except OSError:
            return
        self._file = status.st_ino
        self._offset = start + last.rfind(b"\n") + 1

    @staticmethod
    def _identity(status: os.stat_result) -> tuple[int, int]:
        return status.st_ino, status.st_size

    def _restart(self) -> None:
        self.restarts += 1
        self._offset, self._file, self._seen = 0, None, None


class EventLog:
    """A log that keeps its newest events and folds, so each look reads only new events. Threads may share it."""

    def __init__(self, path: Path):
        self.path = path
        self.lock = threading.RLock()  # hold it while reading a fold, so that no other thread changes the fold
        self._folds: dict[type, Fold] = {}
        self._begin()

    def append(self, event: dict) -> dict:
        """Write one event with its time and return it. What is no finite number is written as null: it is missing."""
        event = _finite({"event": event["event"], "time": round(time.time(), 3), **event})
        with open(self.path, "ab+") as file:
            # Half a line of a killed writer becomes a line of its own, which readers skip.
            if file.tell() and not _ends_a_line(file):
                file.write(b"\n")
            file.write(json.dumps(event, allow_nan=False).encode() + b"\n")
        return event

    def newest(self, *kinds: str) -> dict | None:
        """The newest event of these kinds, or of all kinds if none is named."""
        with self.lock:
            self._update()
            return self._last_of(set(kinds) & self._newest.keys() if kinds else self._newest)

    def newest_except(self, *kinds: str) -> dict | None:
        """The newest event of any other kind."""
        with self.lock:
            self._update()
            return self._last_of(self._newest.keys() - set(kinds))

    def _last_of(self, kinds: Iterable[str]) -> dict | None:
        numbered = [self._newest[kind] for kind in kinds]
        return max(numbered, key=lambda pair: pair[0])[1] if numbered else None

    def fold(self, kind: type[FoldType]) -> FoldType:
        """The log's fold of this class, up to date; its first use reads the log from the start."""
        with self.lock:
            if kind not in self._folds:
                self._folds[kind] = kind()
                self._begin()
            self._update()
            return self._folds[kind]

    def _begin(self) -> None:
        self._reader = EventReader(self.path)
        self._forget()

    def _forget(self) -> None:
        self._count, self._restarts = 0, self._reader.restarts
        self._newest: dict[str, tuple[int, dict]] = {}
        self._folds = {kind: kind() for kind in self._folds}

    def _update(self) -> None:
        events = self._reader.read()
        if self._reader.restarts != self._restarts:
            self._forget()
        for event in events:
            self._count += 1
            self._newest[event["event"]] = (self._count, event)
            for fold in self._folds.values():
                with suppress(KeyError, TypeError):  # an event of another version
                    fold.add(event)


def first_events(path: Path) -> list[dict]:
    """The events at the beginning of a log, of which only a little is read; none if it can't be read."""
    with suppress(OSError), open(path, "rb", opener=_open_at_once) as file:
        return [event for line in file.read(BEGINNING).splitlines() if (event := _parse(line))]
    return []


def _finite(value: Any) -> Any:
    """The same value with None for each number that JSON can't hold."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _ends_a_line(file) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # or a pipe would wait for its writer


def _parse(line: bytes) -> dict | None:
    try:
        event = _decoder.decode(line.decode())
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict) or "event" not in event:
        return None
    is_right = all(_is_right(value, KINDS[key]) for key, value in event.items() if key in KINDS)
    return event if is_right and event.keys() >= NEEDED.get(event["event"], set()) else None


def _is_right(value: Any, kind: type | tuple[type, ...]) -> bool:
    if not isinstance(value, kind) or isinstance(value, bool):
        return False
    if isinstance(value, list):
        return all(isinstance(item, str) for item in value)
    return math.isfinite(value) if isinstance(value, float) else not isinstance(value, int) or abs(value) < 2**63
