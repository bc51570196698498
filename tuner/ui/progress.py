"""How far a run has come, read from its folder: phase, loss curves, time to go. Knows nothing about HTML."""

import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field

from tuner.errors import TunerError
from tuner.evaluation.verdict import needs_scoring
from tuner.runs import Run
from tuner.ui.series import Series

LIVE = ("waiting", "starting", "training", "scoring", "continuing")
WATCHED = ("waiting", "continuing")  # what needs its owner's page, unless the run is in the queue
RESUMABLE = ("prepared", "paused", "stopped", "interrupted", "failed", "unjudged")
SCORED = ("finished", "unjudged")  # unjudged: by an earlier version, in a way that leaves the verdict open
NOW = {"start": "training", "step": "training", "end": "scoring", "evaluating": "scoring", "answered": "scoring"}
SILENT = (
    "checkpoint",
    "heldout",
    "best",
    "schedule",
    "micro_batch",
    "skipped",
    "untracked",
    "overfitting",
)  # events that leave the phase as it is
# Seconds after which a run that was about to start counts as abandoned: its page was closed, or the app restarted.
SOON = {"queued": ("waiting", 3600), "continued": ("waiting", 3600), "starting": ("starting", 120)}
# Seconds in which a run whose window closed resumes automatically if somebody looks. A hidden browser tab looks once a
# minute; a visitor who comes back later has to press Resume, because the quota is theirs.
RECENT = 90


@dataclass(frozen=True)
class Progress:
    """A run at one moment."""

    phase: str  # one of LIVE or RESUMABLE, or finished
    step: int = 0
    steps: int | None = None
    losses: list[tuple[float, float]] = field(default_factory=list)  # (step, loss), as a Series keeps them
    heldout: list[tuple[float, float]] = field(default_factory=list)
    last: dict = field(default_factory=dict)  # the newest step's event
    scored: tuple[int, int] = (0, 0)  # held-out rows answered, and how many there are
    problems: list[str] = field(default_factory=list)
    failed_again: bool = False  # with the same problems as last time, nothing learned in between
    seconds: float | None = None  # of training
    kept: int | None = None  # the step of the adapter's weights, once there is one
    stopping: bool = False
    overfitting: dict = field(default_factory=dict)  # the event that says so, while it holds and training may go on

    @property
    def is_live(self) -> bool:
        """Whether something happens without anybody pressing a button."""
        return self.phase in LIVE


class Curve:
    """A fold of the events: the steps that count. A window that starts at step s discards every step after s."""

    def __init__(self):
        self._losses = Series()
        self._heldout = Series()
        self.step = 0  # the newest that counts
        self.last: dict = {}  # the newest step's event
        self.planned: int | None = None  # steps
        self.failures: list[list[str]] = []  # problems of each failure since something was learned
        self._measured: deque[dict] = deque(maxlen=8)  # the latest held-out losses, each before what it shows
        self._saved: deque[dict] = deque(maxlen=8)  # the steps at the latest checkpoints, where a window may start

    @property
    def losses(self) -> list[tuple[float, float]]:
        """(step, loss), as a Series keeps them."""
        return self._losses.points()

    @property
    def heldout(self) -> list[tuple[float, float]]:
        """(step, held-out loss), as a Series keeps them."""
        return self._heldout.points()

    @property
    def overfitting(self) -> dict:
        """The event that says that the latest held-out loss shows it; empty if it does not."""
        newest = self._measured[-1] if self._measured else {}
        return newest if newest.get("event") == "overfitting" else {}

    def add(self, event: dict) -> None:
        """Take the next event into account."""
        kind = event["event"]
        if kind in ("heldout", "overfitting"):
            self._measured.append(event)
        if kind == "step":
            if event.get("loss") is not None:
                self._losses.add(event["step"], event["loss"])
            self.step, self.last = event["step"], event
        elif kind == "heldout" and event["loss"] is not None:
            self._heldout.add(event["step"], event["loss"])
        elif kind == "start":
            self._take_back(event["step"])
        elif kind == "checkpoint" and self.last:
            self._saved.append(self.last)
        if kind in ("start", "schedule"):
            self.planned = event.get("steps") or self.planned
        if kind in ("checkpoint", "answered", "end"):
            self.failures = []
        elif kind == "error":
            self.failures = [*self.failures[-1:], event.get("problems", [])]

    def _take_back(self, step: int) -> None:
        self.step = min(self.step, step)
        self._losses.take_back(step)
        self._heldout.take_back(step)
        kept = [event for event in (*self._saved, self.last) if event and event["step"] <= step]
        self.last = max(kept, key=lambda event: event["step"], default={})
        self._saved = deque(kept, self._saved.maxlen)
        self._measured = deque((event for event in self._measured if event["step"] <= step), self._measured.maxlen)


class Latest:
    """A fold of the events: the newest ones."""

    def __init__(self):
        self.events: deque[dict] = deque(maxlen=20)

    def add(self, event: dict) -> None:
        """Take the next event into account."""
        self.events.append(event)


def read(run: Run) -> Progress:
    """The run's progress; of the events, only those since the last look are read."""
    training = run.is_training
    with run.log.lock:
        curve = run.log.fold(Curve)
        scoring = run.last_event("evaluating", "evaluation") or {}
        ended = run.last_event("end") or {}
        error = run.last_event("error", "start", "queued") or {}
        latest = run.last_event("start", "end") or {}
        early = latest.get("reason") == "patience"
        return Progress(
            phase=_phase(run, training),
            step=curve.step,
            # A run that stopped early has done all the steps that it will do.
            steps=curve.step if early else curve.last.get("steps") or curve.planned or run.plan.get("steps"),
            losses=curve.losses,
            heldout=curve.heldout,
            last=curve.last,
            scored=(scoring.get("row", 0), scoring.get("rows", 0)),
            problems=error.get("problems", []),
            failed_again=len(curve.failures) > 1 and curve.failures[-1] == curve.failures[-2],
            seconds=ended.get("seconds", curve.last.get("seconds")),
            kept=latest.get("kept"),
            stopping=training and run.is_asked_to_stop,
            overfitting=curve.overfitting if latest.get("reason", "window") == "window" else {},
        )


def resume_label(phase: str) -> str:
    """The name of the button that resumes a run in this phase."""
    return "Score again" if phase == "unjudged" else "Resume"


def _phase(run: Run, training: bool) -> str:
    """Waiting and starting follow from the page's own events, the rest from the trainer's."""
    newest, named = run.log.newest(), run.log.newest_except(*SILENT)
    kind = named["event"] if named else ""
    if training:
        return NOW.get(kind, "starting")
    phase, patience = SOON.get(kind, ("", 0))
    # If the clock was set back, what seems to be yet to come is as far from now as what is long past.
    since = abs(time.time() - newest.get("time", 0)) if newest else 0.0
    if patience and since < patience:
        return phase
    ending = run.ending
    if ending == "finished" and _is_unjudged(run):
        if kind == "error":
            return "failed"
        ending = "paused" if named.get("reason") == "window" or kind == "died" else "unjudged"
    if ending == "paused" and kind in ("end", "unscored", "died") and since < RECENT:
        return "continuing"
    return ending


def _is_unjudged(run: Run) -> bool:
    with suppress(TunerError):  # its scores are damaged, which whoever shows them is told
        return needs_scoring(run.read_json("evaluation.json"))
    return False
