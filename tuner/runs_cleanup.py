"""Keeps the folder of runs within a limit: the oldest finished runs are deleted first, and never one in progress."""

import os
import shutil
import threading
import time
from pathlib import Path

from tuner import runs
from tuner.runs import Run

LIMIT = float(os.environ.get("TUNER_MAX_RUNS_GB", 20)) * 2**30  # bytes of all runs together
IN_PROGRESS = 3600  # seconds after its last event in which a run may still wait for its turn or its next window

_one_at_a_time = threading.Lock()


def make_room(root: Path | None = None, keep: frozenset[str] = frozenset(), limit: float | None = None) -> list[str]:
    """Delete runs until the rest take at most `limit` bytes (default LIMIT); returns the deleted ids.

    Anonymous visitors' runs go before those of visitors who signed in, finished ones before others, old before new.
    """
    limit, deleted = LIMIT if limit is None else limit, []
    with _one_at_a_time:
        sizes = {run: _size(run.path) for run in runs.list_runs(root)}
        total = sum(sizes.values())
        for run in sorted(sizes, key=_worth):
            if total <= limit:
                break
            recent = time.time() - _touched(run) < IN_PROGRESS
            if run.id in keep or run.is_training or (recent and run.ending != "finished"):
                continue
            shutil.rmtree(run.path, ignore_errors=True)
            total -= sizes[run]
            deleted.append(run.id)
    return deleted


def _worth(run: Run) -> tuple[bool, bool, float]:
    queued = next((e for e in run.events() if e["event"] == "queued"), {})
    return queued.get("signed_in", False), run.ending != "finished", _touched(run)


def _touched(run: Run) -> float:
    events = run.path / "events.jsonl"
    return (events if events.exists() else run.path).stat().st_mtime


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
