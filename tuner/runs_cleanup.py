"""Keeps the folder of runs within a limit: the oldest finished runs are deleted first, and never one in progress.

Room is counted as the disk does: a sparse file takes what is written, and links are not followed.
"""

import os
import threading
import time
from contextlib import suppress
from pathlib import Path

from tuner import models_cleanup, runs
from tuner.errors import TunerError
from tuner.events import first_events
from tuner.runs import Run

LIMIT = float(os.environ.get("TUNER_MAX_RUNS_GB", 20)) * 2**30  # bytes of all runs together
IN_PROGRESS = 3600  # seconds after its last event in which a run may still wait for its turn or its next window
AHEAD = 86400  # seconds from now on; a run that was written to later than that has the time of a wrong clock
SPARE = 50 * 2**20  # bytes of a disk that are left free, for logs
BLOCK = 512  # bytes, in which a file's size on the disk is counted

_one_at_a_time = threading.Lock()
_STARTED = time.time() - time.monotonic()


def bytes_to_train(plan: dict) -> int:
    """The bytes that a run with this plan writes: in float32, the adapter and two checkpoints of weights and AdamW's
    two moments, with the best weights of each and those that replace them; the rows as pairs of int64."""
    start = 1 if plan.get("start") else 0
    best = 3 if plan.get("measuring", {}).get("keep") == "best" else 0
    return plan.get("trainable_parameters", 0) * 4 * (1 + 2 * 3 + best + start) + plan.get("tokens", 0) * 16


def bytes_to_merge(plan: dict) -> int:
    """The bytes of a merged model, in float32 at most."""
    return plan.get("model_parameters", 0) * 4


def make_room(
    root: Path | None = None,
    keep: frozenset[str] = frozenset(),
    limit: float | None = None,
    needed: int | None = None,
) -> list[str]:
    """Delete runs until the rest take at most `limit` bytes (default LIMIT), and fit on the disk; returns their ids.

    The rest is what is there, what runs in progress will still write, and the bytes `needed` for something new, if
    there is something. Anonymous visitors' runs go before those of visitors who signed in, finished ones before
    others, old before new. Raises TunerError if there is not enough room for something new.
    """
    limit, root, deleted = LIMIT if limit is None else limit, Path(root or runs.RUNS), []
    with _one_at_a_time:
        _finish_deletions(root)
        sizes = {run: _size(run.path) for run in runs.list_runs(root) if not run.path.is_symlink()}
        unfinished = {run: _is_in_progress(run) for run in sizes if not (run.path / "evaluation.json").is_file()}
        to_come = sum(_to_come(run, sizes[run]) for run in unfinished if unfinished[run]) + (needed or 0)
        missing = sum(sizes.values()) + to_come - limit
        if needed is not None:
            # First by what can be downloaded again.
            models_cleanup.make_room(root, to_come + SPARE, lambda: bases(root))
            missing = max(missing, to_come + SPARE - models_cleanup.free_disk(root))
        spare = [run for run in sizes if run.id not in keep and not unfinished.get(run)] if missing > 0 else []
        if needed is not None and missing > sum(sizes[run] for run in spare):
            raise _no_room(missing)  # before any run is deleted in vain
        for run in sorted(spare, key=_worth):
            if missing <= 0:
                break
            if run in unfinished or not _is_in_progress(run):
                with suppress(TunerError):  # it has just been begun, or can't be deleted
                    run.delete()
                    missing -= sizes[run] - _size(run.path)
                    deleted.append(run.id)
    if needed is not None and missing > 0:
        raise _no_room(missing)
    return deleted


def _no_room(missing: float) -> TunerError:
    return TunerError(
        f"There is no room for this: {missing / 2**20:,.0f} MB are missing, and the other runs are in progress or may "
        "not be deleted. Delete runs that you no longer need, or try again later."
    )


def make_room_for(run: Run, keep: frozenset[str] = frozenset()) -> list[str]:
    """Make room for what a run that was just prepared will write; returns the ids of the deleted runs.

    Raises TunerError, and deletes the run again, if there is not enough.
    """
    try:
        return make_room(run.path.parent, keep, needed=0)
    except TunerError:
        run.delete()
        raise


def bases(root: Path | None = None) -> dict[str, bool]:
    """The versions of models on which there are runs, by commit; whether one of those runs waits or trains."""
    found: dict[str, bool] = {}
    for run in runs.list_runs(root):
        with suppress(TunerError):  # nobody can train it
            if commit := run.plan.get("revision"):
                found[commit] = found.get(commit, False) or _will_train(run)
    return found


def _finish_deletions(root: Path) -> None:
    """Delete what is left of runs whose deletion was broken off."""
    for folder in root.glob(f"{runs.DELETED}*"):
        runs.remove(folder)


def _to_come(run: Run, size: int) -> int:
    """The bytes that a run in progress will still write, where its folder has `size` bytes now."""
    try:
        return max(0, bytes_to_train(run.plan) - size)
    except TunerError:
        return 0


def _is_in_progress(run: Run) -> bool:
    age = _age(run)  # before a look at the lock, which may write a file
    try:
        return (-AHEAD < age < IN_PROGRESS and run.ending not in ("finished", "adopted")) or run.is_training
    except TunerError:  # nobody can resume it
        return False


def _will_train(run: Run) -> bool:
    """Whether the run is in progress, or was queued and its turn has not begun, however long ago that was."""
    if (run.path / "evaluation.json").is_file():
        return False
    newest = run.last_event("queued", "continued", "starting", "start", "withdrawn") or {}
    return newest.get("event") in ("queued", "continued") or _is_in_progress(run)


def _worth(run: Run) -> tuple[bool, bool, float]:
    return _is_signed_in(run), not (run.path / "evaluation.json").is_file(), -_age(run)


def _is_signed_in(run: Run) -> bool:
    """Whether somebody who was signed in queued the run first; one of its first events tells."""
    queued = next((event for event in first_events(run.log.path) if event["event"] == "queued"), {})
    return bool(queued.get("signed_in"))


def _age(run: Run) -> float:
    """Seconds since the run was last written to, by the clock that is nearer to it: a clock that was set while Tuner
    ran makes no run old."""
    for name in ("events.jsonl", "."):
        with suppress(OSError):
            touched = os.stat(run.path / name).st_mtime
            return min(time.time() - touched, _STARTED + time.monotonic() - touched, key=abs)
    return 0.0


def _size(folder: Path) -> int:
    """Bytes on the disk, as far as they can be counted."""
    total, folders = 0, [str(folder)]
    while folders:
        with suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                with suppress(OSError):  # it has vanished
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_blocks * BLOCK
    return total
