"""Reads the files of a run's folder as they are found: of a bounded size, and with entries of the right kind.

Whoever writes them may be killed, disks break, and people edit them by hand.
"""

import json
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tuner.errors import TunerError
from tuner.metrics import FEWEST_ROWS
from tuner.run_shapes import PROMPT, SHAPES
from tuner.tasks import DEFAULT_TASK, TASKS

MOST_BYTES = 64 * 2**20  # of a file that is read as a whole

# What to do about a file that is missing or damaged.
REPAIRS = {
    "plan.json": "Prepare the run again with: tuner train RECIPE --out RUN",
    "evaluation.json": "Delete that file, then score the run again with: tuner evaluate RUN",
    "answers.json": "Delete that file, then score the run again with: tuner evaluate RUN",
    "owner.json": "Nobody can change or delete the run any more. It is deleted once its space is needed: to go on, "
    "train its recipe again in a new run.",
    "receipt.json": "Delete that file; it is written again.",
    "merge_check.json": "Delete that file, then merge the run again with: tuner merge RUN",
}
OTHER_REPAIR = "Train its recipe again in a new run."


class Plan(dict):
    """What plan.json holds. Asking for an entry that it lacks raises TunerError: the file is missing or incomplete."""

    def __init__(self, run: str, entries: dict):
        super().__init__(entries)
        self.run = run

    def __missing__(self, key: str) -> None:
        raise damaged(self.run, "plan.json", f"incomplete (it has no '{key}')" if self else "missing")


def check_trained_here(plan: Plan) -> None:
    """Raise TunerError if the run with this plan is an adapter of the Hub, which has no rows to train or score on."""
    if adopted := plan.get("adopted"):
        raise TunerError(
            f"Run {plan.run} is {adopted['adapter']}, an adapter of the Hub, with nothing to train or to score. To "
            "train on from it, name it in a recipe as method.start_from."
        )


def damage_of(error: Exception) -> str:
    """What is the matter with a file that can't be read: it is ..."""
    if isinstance(error, FileNotFoundError):
        return "missing"
    return f"unreadable ({reason(error)})" if isinstance(error, OSError) else "damaged"


def reason(error: OSError) -> str:
    """The system's own words for the error, without the path."""
    return (error.strerror or type(error).__name__).lower()


def damaged(run: str, name: str, how: str) -> TunerError:
    """That the named file of a run can't be used, and what to do."""
    return TunerError(f"Run {run}: its {name} is {how}. {REPAIRS.get(name, OTHER_REPAIR)}")


def deleted(folder: Path) -> TunerError | None:
    """That the run with this folder was deleted, if so."""
    return None if os.path.isdir(folder) else TunerError(f"Run {folder.name} was deleted.")


@contextmanager
def unless_deleted(folder: Path) -> Iterator[None]:
    """Do something with a run. If that breaks and the run is gone, raises a TunerError that says so instead."""
    try:
        yield
    except Exception:
        if error := deleted(folder):
            raise error from None
        raise


def appendable(path: Path) -> Path:
    """The path of a run's file, which need not be there yet. Raises TunerError if something else is in its place."""
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise damaged(path.parent.name, path.name, "no file")
    return path


def forget(path: Path) -> None:
    """Delete a run's file, if there is one."""
    with suppress(IsADirectoryError):
        path.unlink(missing_ok=True)


def read_text(path: Path) -> str:
    """The text of a file. Raises ValueError if it is no text, no file or too large, and OSError as `open`."""
    # A pipe would block the opening, and a device may be endless.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or status.st_size > MOST_BYTES:
            raise ValueError("no file, or too large")
        return file.read(MOST_BYTES).decode("utf-8")


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds. Raises ValueError if it can't be used, and OSError as `open`."""
    try:
        value = json.loads(read_text(path))
        if value and path.name in SHAPES:
            SHAPES[path.name].validate_python(value, strict=True)
    except (RecursionError, ValidationError) as error:
        raise ValueError("not as it was written") from error
    if not isinstance(value, dict) or (value and path.name == "evaluation.json" and not _is_scored(value)):
        raise ValueError("not as it was written")
    if path.name != "evaluation.json":
        return value
    doubts = {"unknown_head": True} if _has_unknown_head(value, path.with_name("plan.json")) else {}
    return (_without_intervals(value) if _has_few_rows(value) else value) | doubts


def read_prompts(path: Path, most: int | None) -> list[dict[str, Any]]:
    """Held-out prompts with their references, one to a line. Raises ValueError if they can't be used, and OSError."""
    lines = [line for line in read_text(path).split("\n") if line][:most]
    try:
        return [PROMPT.validate_python(json.loads(line)) for line in lines]
    except (RecursionError, ValidationError) as error:
        raise ValueError("not as it was written") from error


def _has_few_rows(scores: dict) -> bool:
    return scores.get("rows", FEWEST_ROWS) < FEWEST_ROWS


def _has_unknown_head(scores: dict, plan_file: Path) -> bool:
    """Whether the scores are of an earlier version, which let a base answer even if its head was untrained."""
    if scores.keys() & {"baseline", "heldout_rows"}:
        return False  # scores of this version have the number of held-out rows
    try:
        plan = read_object(plan_file)
    except (OSError, ValueError):
        return False  # whoever reads the plan is told what is the matter with it
    task = TASKS.get(plan.get("task", DEFAULT_TASK))
    return "baseline" in plan or bool(task and not task.generates and "scored_rows" not in plan)


def _without_intervals(scores: dict) -> dict:
    """The scores of few rows as they are written now: earlier versions gave them intervals."""

    def bare(part: dict) -> dict:
        kept = {
            variant: {key: value for key, value in part[variant].items() if not key.endswith(("_low", "_high"))}
            for variant in ("base", "adapter")
        }
        gain = {key: value for key, value in (part["gain"] or {}).items() if key not in ("low", "high")}
        return {**part, **kept, "gain": gain or None}

    others = {"other_metrics": [bare(other) for other in scores["other_metrics"]]} if "other_metrics" in scores else {}
    return bare(scores) | others


def _is_scored(scores: dict) -> bool:
    """Whether each metric has its three figures; a text without prompts has none, and few rows have no interval."""
    if scores["gain"] is None:
        return all(isinstance(scores[variant].get("loss"), float) for variant in ("base", "adapter"))
    parts = [scores, *scores.get("other_metrics", [])]
    names = [part.get("metric", "rougeL") for part in parts]
    figures = [part[key].get(name) for part, name in zip(parts, names) for key in ("base", "adapter")]
    few = [
        _has_few_rows(scores) or min(part.get(key, FEWEST_ROWS) for key in ("rows", "fewest_rows")) < FEWEST_ROWS
        for part in parts
    ]
    keys = [(name,) if is_few else (name, "low", "high") for name, is_few in zip(names, few)]
    gains = [(part["gain"] or {}).get(key) for part, wanted in zip(parts, keys) for key in wanted]
    return all(figure is not None and math.isfinite(figure) for figure in figures + gains)


def content(path: Path) -> str | None:
    """The text of a file; None if it can't be read."""
    with suppress(OSError, ValueError):
        return read_text(path)
    return None
