"""The lock of a run's folder: which process trains it. It dies with its process, however that ends."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout, lock_descriptor, unlock_descriptor

ASIDE = getattr(os, "O_NONBLOCK", 0)  # a FIFO in the file's place keeps nobody waiting


def take(folder: Path) -> FileLock | None:
    """The folder's lock, taken now; None if somebody holds it.

    Raises OSError if the folder is gone or can't be written to.
    """
    with _alone(folder):
        lock = FileLock(folder / "lock", timeout=0, thread_local=False)
        try:
            lock.acquire()
        except Timeout:
            return None
        return lock


@contextmanager
def merging(folder: Path) -> Iterator[None]:
    """Wait until no other process merges the run, and hold it: two would write into one folder."""
    with FileLock(folder / "lock.merge", thread_local=False):
        yield


def is_held(folder: Path) -> bool:
    """Whether a living process holds the lock."""
    try:
        with _alone(folder):
            return _is_locked(folder / "lock")
    except OSError:  # on a read-only or a full disk nobody can train anyway
        return _is_locked(folder / "lock")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Every look takes the lock for an instant. Looks pass one at a time, so none is mistaken for a trainer.

    A FileLock would take 20 times as long, and pass through a lock that all of its process share.
    """
    file = os.open(folder / "lock.look", os.O_RDWR | os.O_CREAT | ASIDE, 0o644)
    try:
        lock_descriptor(file, poll_interval=0.002)
        try:
            yield
        finally:
            # Closing the file is not enough: a worker that was forked meanwhile has it open, too.
            unlock_descriptor(file)
    finally:
        os.close(file)


def _is_locked(path: Path) -> bool:
    """Whether a file is locked, told without writing."""
    try:
        file = os.open(path, os.O_RDONLY | ASIDE)
    except OSError:
        return False
    try:
        if is_free := lock_descriptor(file, blocking=False):
            unlock_descriptor(file)
        return not is_free
    finally:
        os.close(file)
