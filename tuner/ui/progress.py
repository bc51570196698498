"""What a run's folder says of its way so far: its phase, its curves, its time to go. Knows nothing of drawing."""

import time
from dataclasses import dataclass, field

from tuner.runs import Run

LIVE = ("waiting", "starting", "training", "scoring", "continuing")
CAN_GO_ON = ("prepared", "paused", "stopped", "interrupted", "failed")
NOW = {"start": "training", "step": "training", "end": "scoring", "evaluating": "scoring", "answered": "scoring"}
# Seconds after which a run that was to start is taken for forgotten: its page was closed, or the app restarted.
SOON = {"queued": ("waiting", 3600), "continued": ("waiting", 3600), "starting": ("starting", 120)}
# Seconds in which a run whose window closed goes on by itself if somebody looks. A browser's hidden tab looks once a
# minute; who comes back later is asked first, because it is their quota.
RECENT = 90


@dataclass(frozen=True)
class Progress:
    phase: str  # one of LIVE or CAN_GO_ON, or finished
    step: int = 0
    steps: int | None = None
    losses: list[tuple[float, float]] = field(default_factory=list)  # (step, loss)
    heldout: list[tuple[float, float]] = field(default_factory=list)
    last: dict = field(default_factory=dict)  # the newest step's event
    scored: tuple[int, int] = (0, 0)  # held-out rows answered, and how many there are
    problems: list[str] = field(default_factory=list)
    seconds: float | None = None  # of training
    stopping: bool = False

    @property
    def is_live(self) -> bool:
        return self.phase in LIVE


def curve(events: list[dict]) -> list[dict]:
    """The step and held-out events that count: a window that starts at step s takes back what came after s."""
    kept: list[dict] = []
    for event in events:
        if event["event"] == "start":
            kept = [e for e in kept if e["step"] <= event["step"]]
        elif event["event"] in ("step", "heldout"):
            kept.append(event)
    return kept


def read(run: Run) -> Progress:
    """The run's progress."""
    training, events = run.is_training, run.events()
    kept = curve(events)
    steps = [e for e in kept if e["event"] == "step"]
    last = steps[-1] if steps else {}
    scoring = next((e for e in reversed(events) if e["event"] in ("evaluating", "evaluation")), {})
    ended = next((e for e in reversed(events) if e["event"] == "end"), {})
    error = next((e for e in reversed(events) if e["event"] in ("error", "start", "queued")), {})
    planned = next((e["steps"] for e in reversed(events) if e["event"] in ("start", "schedule") and e["steps"]), None)
    return Progress(
        phase=_phase(run, events, training),
        step=last.get("step", 0),
        steps=last.get("steps") or planned or run.plan.get("steps"),
        losses=[(e["step"], e["loss"]) for e in steps],
        heldout=[(e["step"], e["loss"]) for e in kept if e["event"] == "heldout"],
        last=last,
        scored=(scoring.get("row", 0), scoring.get("rows", 0)),
        problems=error.get("problems", []),
        seconds=ended.get("seconds", last.get("seconds")),
        stopping=training and run.is_asked_to_stop,
    )


def _phase(run: Run, events: list[dict], training: bool) -> str:
    """Waiting and starting are told by our own events, the rest by the trainer's."""
    named = [e["event"] for e in events if e["event"] not in ("checkpoint", "heldout", "schedule")]
    newest = named[-1] if named else ""
    if training:
        return NOW.get(newest, "starting")
    phase, patience = SOON.get(newest, ("", 0))
    since = time.time() - events[-1]["time"] if events else 0.0
    if patience and since < patience:
        return phase
    if run.ending == "paused" and newest in ("end", "unscored", "died") and since < RECENT:
        return "continuing"
    return run.ending
