"""The locks of a run's folder: which process trains it, and which merges it. They die with their process.

The locks are filelock's, its FileLock is not: that makes a folder again that was deleted, takes 20 times as long, and
passes through a lock that all of its process share.
"""

import errno
import math
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import lock_descriptor, unlock_descriptor

from tuner.errors import TunerError
from tuner.run_files import reason

# A FIFO in the file's place keeps nobody waiting, and a link leads nowhere.
ASIDE = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0)
WRITING = os.O_RDWR | os.O_CREAT | ASIDE
PATIENCE = 1.0  # seconds for which others' looks are waited for: one may be that of a process that was stopped

_open: set["Lock"] = set()
_forking = threading.RLock()  # so that no process is forked between the opening of a file and its entry in the set


class Lock:
    """The lock on one open file."""

    def __init__(self, path: Path, flags: int):
        self.path = path
        with _forking:
            self.file = os.open(path, flags, 0o644)
            _open.add(self)

    def acquire(self, patience: float, poll: float) -> bool:
        """Whether it is had within so many seconds. Raises OSError if the file's folder is gone by then."""
        deadline = time.monotonic() + patience
        while not lock_descriptor(self.file, blocking=False):
            if time.monotonic() >= deadline:
                return False
            time.sleep(poll)
        if not os.path.samestat(os.stat(self.path), os.fstat(self.file)):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self.path))
        return True

    def release(self) -> None:
        """Let others have it; nothing happens if it is released already, or another process's."""
        with _forking:
            if self not in _open:
                return
            _open.remove(self)
            try:
                # Closing the file is not enough: what was forked by other means than Python's has it open, too.
                unlock_descriptor(self.file)
            finally:
                os.close(self.file)


def take(folder: Path) -> Lock | None:
    """The folder's lock, taken now; None if somebody holds it.

    Raises OSError if the folder is gone or can't be written to.
    """
    with _alone(folder):
        return _acquired(folder / "lock")


@contextmanager
def merging(folder: Path) -> Iterator[None]:
    """Wait until no other process merges the run, and hold it: two would write into one folder.

    Raises TunerError if the run is deleted meanwhile, or if its folder can't be written to.
    """
    try:
        lock = _acquired(folder / "lock.merge", patience=math.inf, poll=0.05)
    except FileNotFoundError:
        raise TunerError(f"Run {folder.name} was deleted meanwhile, so it can't be merged.") from None
    except OSError as error:
        why = f"its folder can't be written to ({reason(error)})"
        raise TunerError(f"Run {folder.name} can't be merged: {why}.") from None
    try:
        yield
    finally:
        lock.release()


def is_held(folder: Path) -> bool:
    """Whether a living process holds the lock."""
    try:
        with _alone(folder):
            return is_locked(folder / "lock")
    except OSError:  # on a read-only or a full disk nobody can train anyway
        return is_locked(folder / "lock")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Every look takes the lock for an instant. Looks pass one at a time, so none is mistaken for a trainer."""
    look = _acquired(folder / "lock.look", PATIENCE)
    try:
        yield
    finally:
        if look:
            look.release()


def is_locked(path: Path) -> bool:
    """Whether a file is locked, told without writing."""
    try:
        lock = _acquired(path, flags=os.O_RDONLY | ASIDE)
    except OSError:
        return False
    if lock:
        lock.release()
    return not lock


def _acquired(path: Path, patience: float = 0, poll: float = 0.002, flags: int = WRITING) -> Lock | None:
    """The lock on this file, None if others hold it for so many seconds. Raises OSError if its folder is gone."""
    lock, is_acquired = Lock(path, flags), False
    try:
        is_acquired = lock.acquire(patience, poll)
    finally:
        if not is_acquired:
            lock.release()
    return lock if is_acquired else None


def _close_inherited() -> None:
    """In a process that was just forked: locks are their owner's, and must not outlive it here."""
    for lock in _open:
        os.close(lock.file)
    _open.clear()
    _forking.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_forking.acquire, after_in_parent=_forking.release, after_in_child=_close_inherited)
