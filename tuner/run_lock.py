"""The lock of a run's folder: which process trains it. It dies with its process, however that ends."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout, lock_descriptor, unlock_descriptor


def take(folder: Path, release: bool = False) -> FileLock | None:
    """The folder's lock, taken now; None if somebody holds it. With `release`, it is given back at once.

    Raises OSError if the folder is gone or can't be written to.
    """
    if not folder.is_dir():  # FileLock would make it
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    # Every look takes the lock for an instant. Looks pass one at a time, so none is mistaken for a trainer.
    with FileLock(folder / "lock.look", poll_interval=0.002, thread_local=False):
        lock = FileLock(folder / "lock", timeout=0, thread_local=False)
        try:
            lock.acquire()
        except Timeout:
            return None
        if release:
            # Closing the file is not enough: a worker that was forked meanwhile has it open, too.
            lock.release()
        return lock


@contextmanager
def merging(folder: Path) -> Iterator[None]:
    """Wait until no other process merges the run, and hold it: two would write into one folder."""
    with FileLock(folder / "lock.merge", thread_local=False):
        yield


def is_held(folder: Path) -> bool:
    """Whether a living process holds the lock."""
    try:
        return take(folder, release=True) is None
    except OSError:
        return _is_locked(folder / "lock")


def _is_locked(path: Path) -> bool:
    """Whether a file is locked, told without writing: on a read-only or a full disk."""
    try:
        file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return False
    try:
        if is_free := lock_descriptor(file, blocking=False):
            unlock_descriptor(file)
        return not is_free
    finally:
        os.close(file)
