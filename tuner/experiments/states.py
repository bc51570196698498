"""What experiment.json holds, and how far each of its runs is."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, JsonValue, TypeAdapter
from typing_extensions import NotRequired, TypedDict

from tuner import runs
from tuner.errors import TunerError
from tuner.experiments import search
from tuner.runs import Run

FILE = "experiment.json"
FORMAT = 1

Name = Annotated[str, Field(pattern=f"^{runs.ID.pattern}$")]
Settings = dict[str, JsonValue]


class Candidate(TypedDict):
    """One of the methods: its name, and the settings that are changed in the common recipe."""

    label: str
    settings: Settings


class Entry(TypedDict):
    """A run that was made, or will be, for an experiment."""

    run: Name
    label: str
    candidate: NotRequired[str]  # the label of its candidate, if each is trained with several seeds
    settings: Settings
    prepared: bool
    failed: NotRequired[list[str]]  # why the experiment goes on without it


class Asked(TypedDict):
    """experiment.json."""

    format: int
    kind: Literal["methods", "seeds", "search"]
    recipe: dict[str, JsonValue]
    folder: str | None  # where the recipe's relative paths start
    candidates: list[Candidate]
    space: search.Space
    trials: int
    seconds: float | None  # for each run
    total_seconds: float | None
    notes: list[str]
    runs: list[Entry]


ASKED = TypeAdapter(Asked)


class State(NamedTuple):
    """How far one of the runs is: finished, failed, deleted, waiting, or a run's own status."""

    entry: Entry
    run: Run
    status: str
    problems: list[str]


def new_entry(root: Path, label: str, settings: Settings, candidate: str | None = None) -> Entry:
    """The entry of a run that is not prepared yet."""
    entry: Entry = {"run": runs.new_path(root).name, "label": label, "settings": settings, "prepared": False}
    return entry | ({} if candidate is None else {"candidate": candidate})


def seconds_of(run: Run) -> float:
    """The seconds that a run has trained for, as far as its log tells."""
    with suppress(TunerError):
        newest = run.last_event("end", "step", "checkpoint")
        return (newest or {}).get("seconds") or 0.0
    return 0.0


class Scoring:
    """A fold of a run's events: the seconds in which its held-out rows were answered and scored."""

    def __init__(self):
        self.seconds = 0.0
        self._began: float | None = None  # the last moment at which it is known to have been scored

    def add(self, event: dict) -> None:
        """Take the next event into account. Each process begins with `evaluating`, so no pause is counted."""
        kind, now = event["event"], event.get("time")
        if kind in ("answered", "unscored", "evaluation") and None not in (now, self._began):
            self.seconds += max(0.0, now - self._began)  # a clock may be set
        self._began = now if kind in ("evaluating", "answered") else None


def scoring_seconds(run: Run) -> float:
    """The seconds that a run was scored for, as far as its log tells; answers that were copied took none."""
    with suppress(TunerError):
        return run.log.fold(Scoring).seconds
    return 0.0


def state_of(root: Path, entry: Entry, opened: Callable[[Path], Run] = Run) -> State:
    """How far the run of an entry is, as its folder under `root` tells; `opened` is a run that may be open already."""
    run, failed = opened(root / entry["run"]), entry.get("failed", [])
    if not entry["prepared"]:
        return State(entry, run, "failed" if failed else "waiting", failed)
    if not os.path.isdir(run.path):
        return State(entry, run, "deleted", failed)
    if damage := run.damage:
        return State(entry, run, "failed", damage)
    if run.ending == "finished":
        return State(entry, run, "finished", [])
    if failed:
        return State(entry, run, "failed", failed)
    status = run.status
    error = run.last_event("error") if status == "failed" else None
    return State(entry, run, status, error["problems"] if error else [])
