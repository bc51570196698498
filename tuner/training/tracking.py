"""A run's curve in Trackio, TensorBoard or Weights & Biases, beside the run's own events.jsonl.

transformers' callbacks for them don't fit. Each window is a Trainer of its own, whose steps begin at 0 and whose first
learning rate after a resume is wrong; held-out losses and scores are none of its logs; steps that are trained again
after a kill would stand there twice; and what a killed process had not written yet would be missing.

So each window writes the curve anew, as events.jsonl has it up to the step that the window goes on from, and then adds
its own events. A tracker thus holds one value for each step, however the run was interrupted. Names are those of
transformers, so that other trainings stand in the same charts.
"""

import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from tuner.run_files import reason
from tuner.runs import Run

PROJECT = "tuner"
STEP = {
    "loss": "train/loss",
    "learning_rate": "train/learning_rate",
    "grad_norm": "train/grad_norm",
    "tokens_per_second": "train/tokens_per_second",
}
SCORED = ("base", "few_shot", "few_shot_similar", "adapter", "gain")
WAIT = 1.0  # seconds between two writes to Trackio's database, which lock it
LONGEST_REASON = 200  # characters of a tracker's own message
ONLINE = 30  # seconds for W&B to reach its server, if it is asked to


class Point(NamedTuple):
    """What is tracked of one step."""

    step: int
    time: float  # seconds since 1970
    values: dict[str, float]


class Tracker(NamedTuple):
    """A tracker that is open for a run."""

    log: Callable[[Point], None]  # for steps that never fall
    close: Callable[[], None]


class Curve:
    """The points of a log of events: of each step the newest value. A window discards every step after its start."""

    def __init__(self, events: Iterable[dict] = ()):
        self.step, self._points = 0, {}
        for event in events:
            self.add(event)

    @property
    def points(self) -> list[Point]:
        """One point for each step, in their order."""
        return [self._points[step] for step in sorted(self._points)]

    def add(self, event: dict) -> Point | None:
        """Take the next event into account; what it adds, if anything."""
        with suppress(KeyError, TypeError, AttributeError):  # an event of another version
            if event["event"] == "start":
                self.step = event["step"]
                self._points = {step: point for step, point in self._points.items() if step <= self.step}
            elif values := _values(event):
                self.step = event.get("step", self.step)
                point = Point(self.step, event["time"], values)
                earlier = self._points.get(self.step, point)
                self._points[self.step] = point._replace(values=earlier.values | values)
                return point
        return None


def _values(event: dict) -> dict[str, float]:
    """What is tracked of an event; a figure that was no finite number is missing."""
    kind = event["event"]
    values = {}
    if kind == "step":
        values = {name: event.get(key) for key, name in STEP.items()}
    elif kind == "heldout":
        values = {"eval/loss": event["loss"]}
    elif kind == "evaluation":
        parts = {name: event.get(name) or {} for name in SCORED}
        values = {f"scores/{name}/{key}": value for name, part in parts.items() for key, value in part.items()}
    return {name: value for name, value in values.items() if isinstance(value, int | float)}


@contextmanager
def tracked(run: Run, put: Callable[[dict], None]) -> Iterator[Callable[[dict], None]]:
    """`put` for the events of a window, which reports them to the recipe's tracker as well.

    Whatever fails there is said in one event, and the training goes on without it.
    """
    if run.recipe.tracking == "none":
        yield put
        return
    tracking = _Tracking(run, put)
    try:
        yield tracking.put
    finally:
        tracking.close()


class _Tracking:
    """Feeds a tracker, which is opened at the first event and dropped at the first failure."""

    def __init__(self, run: Run, put: Callable[[dict], None]):
        self.run, self.report = run, put
        self.tracker: Tracker | None = None
        self.curve: Curve | None = None

    def put(self, event: dict) -> None:
        """Report one event of the run, which is in its log already."""
        self.report(event)
        with self._harmless():
            if self.curve is None:
                self.curve = Curve(self.run.events())
                self.tracker = TRACKERS[self.run.recipe.tracking](self.run)
                for point in self.curve.points:
                    self.tracker.log(point)
            elif self.tracker and (point := self.curve.add(event)):
                self.tracker.log(point)

    def close(self) -> None:
        """Write what is not written yet."""
        with self._harmless():
            if self.tracker:
                self.tracker.close()

    @contextmanager
    def _harmless(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # each package has its own
            if broken := self.tracker:
                self.tracker = None
                with suppress(Exception):
                    broken.close()
            said = f"{self.run.recipe.tracking} tracks this run no longer: {_why(error)}. Its training goes on."
            with suppress(OSError):  # the disk is full, or the run was deleted
                self.report(self.run.append({"event": "untracked", "problems": [said]}))


def _why(error: Exception) -> str:
    if isinstance(error, ImportError):
        return f"{error.name or 'a package'} is not installed"
    if isinstance(error, OSError) and error.strerror:
        return reason(error)
    return (str(error).strip() or type(error).__name__).splitlines()[0][:LONGEST_REASON].rstrip(".")


def _identity(run: Run) -> str:
    """An id that no other run has: folders of one name may be on several machines."""
    known = run.read_json("tracking.json")
    if not known:
        known = {"id": secrets.token_hex(8)}
        run.write_json("tracking.json", known)
    return known["id"]


def _settings(run: Run) -> dict:
    """What trackers show beside the curve."""
    return run.recipe.model_dump() | {"chosen": run.plan["settings"]}


def _tensorboard(run: Run) -> Tracker:
    """TensorBoard's file of events.

    torch's `SummaryWriter` writes from a thread of its own, which ends with a traceback if the disk is full.
    """
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    folder = run.path / "tracking"
    folder.mkdir(exist_ok=True)
    began = time.time()
    # A TensorBoard that looks just now reads a folder's files in the order of their names, and would stay with one
    # that is gone.
    for earlier in folder.glob("events.out.tfevents.*"):
        os.truncate(earlier, 0)
    file = RecordWriter((folder / f"events.out.tfevents.{began:.6f}.tuner").open("wb"))

    def write(**entries: Any) -> None:
        file.write(Event(**entries).SerializeToString())
        file.flush()

    write(wall_time=began, file_version="brain.Event:2")
    # It then forgets what the earlier files had.
    write(wall_time=began, session_log=SessionLog(status=SessionLog.START))

    def log(point: Point) -> None:
        values = [Summary.Value(tag=name, simple_value=value) for name, value in point.values.items()]
        write(wall_time=point.time, step=point.step, summary=Summary(value=values))

    return Tracker(log, file.close)


def _trackio(run: Run) -> Tracker:
    """Trackio's database, by the class behind its `import_csv` and `Api`.

    `trackio.init` would ask the Hub who is signed in, log to a Space that the environment names, and print to where
    `--json` does; of a run that is resumed it can take nothing back.
    """
    from trackio import SQLiteStorage

    identity, pending, settings = _identity(run), [], _settings(run)
    name = run.recipe.name or run.id
    written = time.monotonic()
    SQLiteStorage.delete_run(PROJECT, name, run_id=identity)

    def write() -> None:
        nonlocal written, settings
        if pending:
            times = [datetime.fromtimestamp(point.time, timezone.utc).isoformat() for point in pending]
            steps, values = [point.step for point in pending], [point.values for point in pending]
            SQLiteStorage.bulk_log(PROJECT, name, values, steps, times, settings, run_id=identity)
            settings = None  # which are written once
            pending.clear()
        written = time.monotonic()

    def log(point: Point) -> None:
        pending.append(point)
        if time.monotonic() - written >= WAIT:
            write()

    return Tracker(log, write)


def _wandb(run: Run) -> Tracker:
    import wandb

    identity, mode = _identity(run), os.environ.get("WANDB_MODE", "offline")
    root = Path(os.environ.get("WANDB_DIR", run.path / "tracking"))
    root.mkdir(parents=True, exist_ok=True)
    for earlier in root.glob(f"wandb/offline-run-*-{identity}"):
        shutil.rmtree(earlier, ignore_errors=True)
    logged = wandb.init(
        project=os.environ.get("WANDB_PROJECT", PROJECT),
        id=identity,
        name=run.recipe.name or run.id,
        dir=root,
        config=_settings(run),
        mode=mode,
        resume=None if mode == "offline" else "allow",  # an offline run can't be
        reinit="create_new",
        settings=wandb.Settings(console="off", silent=True, disable_git=True, disable_code=True, init_timeout=ONLINE),
    )

    def log(point: Point) -> None:  # W&B itself drops the steps that its server has already
        logged.log(point.values | {"_timestamp": point.time}, step=point.step)

    return Tracker(log, logged.finish)


TRACKERS: dict[str, Callable[[Run], Tracker]] = {
    "trackio": _trackio,
    "tensorboard": _tensorboard,
    "wandb": _wandb,
}
