"""Keeps room on a Space's disk: of the base models in the Hub's cache, those used longest ago are removed first.

Strangers name models there, and each is downloaded. On any other machine nothing is touched: its cache serves other
programs, too. A version of a model was used when its folder of links was changed: by its download, and by `use`.
"""

import logging
import os
import shutil
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tuner import run_lock

if TYPE_CHECKING:
    from huggingface_hub import CachedRepoInfo, CachedRevisionInfo, DeleteCacheStrategy, HFCacheInfo

log = logging.getLogger(__name__)

KEPT = 3600  # seconds: who was given a model may be reading it so long, and a visitor's download take so long
PATIENCE = 60  # seconds
LOCKS = ".locks"  # huggingface_hub's folder in the cache


class _Version(NamedTuple):
    """A version of a model that may be removed."""

    is_base: bool  # of a run
    last_use: float
    revision: "CachedRevisionInfo"
    model: "CachedRepoInfo"


def free_disk(path: Path | str) -> int:
    """Free bytes on the disk that holds `path`, or will hold it."""
    return shutil.disk_usage(_existing(path)).free


def use(find: Callable[[], Path | None]) -> Path | None:
    """The folder in the cache that `find` returns, for somebody who is going to read it."""
    with _alone():
        folder = find()
        if folder and _is_shared():
            with suppress(OSError):
                os.utime(folder)
    return folder


def begin_download(storage: Path) -> None:
    """Note that a model is going to be downloaded into this folder of the cache, or a version of it."""
    if _is_shared():
        with _alone(), suppress(OSError):
            _locks(storage).mkdir(parents=True, exist_ok=True)
            os.utime(_locks(storage))


def make_room(path: Path, needed: int, bases: Callable[[], dict[str, bool]], keep: Path | None = None) -> None:
    """Remove models until `needed` bytes are free on the disk that holds `path`; none if all were not enough.

    Those stay that somebody may be reading or downloading, and the version at `keep`. `bases` tells the revisions that
    runs were prepared on, which go last, and whether one of those runs waits or is in training: then they stay, too.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import CacheNotFound

    cache = Path(constants.HF_HUB_CACHE)
    if not _is_shared() or free_disk(path) >= needed or _disk(path) != _disk(cache):
        return
    in_use = bases()
    with _alone(), suppress(OSError, CacheNotFound):
        while (free := free_disk(path)) < needed:
            _remove(needed - free, cache, in_use, keep)
            if free_disk(path) <= free:  # nothing may go, or it is in the image from which the Space was started
                return


def _is_shared() -> bool:
    """Whether strangers have models downloaded here, and nobody else uses the cache."""
    return "SPACE_ID" in os.environ


def _existing(path: Path | str) -> Path:
    return next(folder for folder in (Path(path), *Path(path).resolve().parents) if folder.exists())


def _disk(path: Path) -> int:
    return _existing(path).stat().st_dev


def _locks(storage: Path) -> Path:
    return storage.parent / LOCKS / storage.name


@contextmanager
def _alone() -> Iterator[None]:
    """On a Space, let nobody look for a model to use while another one removes models."""
    from filelock import FileLock
    from huggingface_hub import constants

    with ExitStack() as held:
        if _is_shared():
            place = Path(constants.HF_HUB_CACHE) / LOCKS
            with suppress(OSError):  # nothing can be written, or whoever has the lock was stopped
                place.mkdir(parents=True, exist_ok=True)
                held.enter_context(FileLock(place / "tuner.lock", timeout=PATIENCE))
        yield


def _remove(missing: int, cache: Path, in_use: dict[str, bool], keep: Path | None) -> None:
    """Remove what broken downloads left; if nothing did, the versions used longest ago that free so many bytes."""
    from huggingface_hub import scan_cache_dir

    found = scan_cache_dir(cache)
    partial = {file.file_path for file in found.incomplete_files}
    broken = {file for file in partial if not _is_being_written(file)}
    for file in broken:
        file.unlink(missing_ok=True)
    if broken:
        return
    downloading = {file.parent.parent for file in partial}
    versions = sorted(_removable(found, downloading, in_use, keep), key=lambda version: version[:2])

    def deletion(count: int) -> "DeleteCacheStrategy":
        return found.delete_files(*(file for version in versions[:count] for file in version.revision.files))

    counts = range(len(versions) + 1)
    count = bisect_left(counts, missing, key=lambda count: deletion(count).expected_freed_size)
    if count in counts:
        # The list of a version's files stays: by it, huggingface_hub knows that they are not here, or not all.
        deletion(count).execute()
        log.info("removed %s to make room", ", ".join(version.model.repo_id for version in versions[:count]))


def _removable(
    found: "HFCacheInfo", downloading: set[Path], in_use: dict[str, bool], keep: Path | None
) -> Iterator[_Version]:
    for model in found.repos:
        if model.repo_type != "model" or model.repo_path in downloading or _is_recent(_locks(model.repo_path)):
            continue
        for revision in model.revisions:
            folder, name = revision.snapshot_path, revision.commit_hash
            if revision.files and folder != keep and not in_use.get(name) and not _is_recent(folder):
                yield _Version(name in in_use, folder.stat().st_mtime, revision, model)


def _is_recent(folder: Path) -> bool:
    # By either sign: a clock may be set.
    return folder.exists() and abs(time.time() - folder.stat().st_mtime) < KEPT


def _is_being_written(partial: Path) -> bool:
    """Whether a process that lives downloads to this file, BLOB.RANDOM.incomplete."""
    return run_lock.is_locked(_locks(partial.parent.parent) / f"{partial.name.rsplit('.', 2)[0]}.lock")
