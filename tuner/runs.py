"""The run folder: the only state that the page, the terminal, a resumed window and another machine share.

    recipe.yaml      what was asked, every default written out     events.jsonl     what happened, one JSON object a
    line plan.json        what was promised and chosen                  checkpoints/     enough to go on bit for bit,
    newest last data/            tokenised rows, held-out prompts              adapter/         PEFT's own format
    evaluation.json  scores with intervals                         merged/          the merged model, when asked for

Nothing here knows torch. Files are written beside their place and then renamed, so a reader never sees half of one.
"""

import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tuner.errors import TunerError
from tuner.recipe import Recipe

RUNS = Path(os.environ.get("TUNER_RUNS", "runs"))
ENDINGS = {"steps": "finished", "clock": "finished", "stopped": "stopped", "window": "paused"}
OTHER_ENDINGS = {"start": "interrupted", "died": "paused", "error": "failed"}
FORMAT = 2  # of the folder; told in plan.json, where it is missing it is 1


class Run:
    """One recipe's execution, as its folder tells it."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self.id = self.path.name
        self.adapter = self.path / "adapter"
        self.merged = self.path / "merged"
        self.data = self.path / "data"
        self.checkpoints = self.path / "checkpoints"

    @property
    def recipe(self) -> Recipe:
        return Recipe.load(self.path / "recipe.yaml")

    @property
    def plan(self) -> dict:
        return self.read_json("plan.json") or {}

    @property
    def status(self) -> str:
        """prepared, training, paused (its window closed), interrupted (its process died), stopped, finished or
        failed."""
        return "training" if self.is_training else self.ending

    @property
    def ending(self) -> str:
        """How the last window ended; interrupted while one is open."""
        if self.is_trained and (self.path / "evaluation.json").is_file():
            return "finished"
        last = self.last_event("start", "end", "unscored", "died", "error")
        if last is None:
            return "prepared"
        ending = ENDINGS[last["reason"]] if "reason" in last else OTHER_ENDINGS[last["event"]]
        return "interrupted" if ending == "finished" else ending  # trained, and not scored

    @property
    def is_trained(self) -> bool:
        """Whether the budget is spent, so that only the scoring may be left to do."""
        last = self.last_event("start", "end")
        return last is not None and last["event"] == "end" and ENDINGS[last["reason"]] == "finished"

    @property
    def is_training(self) -> bool:
        """Whether a living process holds the run; the lock dies with its process, however it ends."""
        with open(self.path / "lock", "a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            # Closing alone would leave it locked where a worker was forked meanwhile, which holds the file open too.
            fcntl.flock(lock, fcntl.LOCK_UN)
        return False

    @contextmanager
    def training(self) -> Iterator[None]:
        """Hold the run for training. Raises TunerError if another process holds it, or if a newer Tuner made it."""
        if self.plan.get("format", 1) > FORMAT:
            raise TunerError(
                f"Run {self.id} was made by a newer version of Tuner, which lays a run out otherwise. Go on with it "
                "there, or train its recipe anew here."
            )
        with open(self.path / "lock", "a") as lock:
            # A reader of `is_training` holds the lock for an instant, a trainer for long: a second tells them apart.
            deadline = time.monotonic() + 1
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise TunerError(
                            f"Run {self.id} is in training already. Watch it, or stop it first."
                        ) from None
                    time.sleep(0.02)
            self._forget_old_stop()
            try:
                yield
            finally:
                (self.path / "stop").unlink(missing_ok=True)

    def _forget_old_stop(self) -> None:
        """A stop that was asked for since the run was to start counts; one that is left over does not."""
        stop, starting = self.path / "stop", self.last_event("starting")
        if stop.exists() and (starting is None or stop.stat().st_mtime < starting["time"]):
            stop.unlink()

    def stop(self) -> None:
        """Ask the process that trains to stop after its step; what was learned is kept."""
        (self.path / "stop").touch()

    @property
    def is_asked_to_stop(self) -> bool:
        return (self.path / "stop").exists()

    def append(self, event: dict) -> dict:
        """Write one event down, with the time, and return it."""
        event = {"event": event["event"], "time": round(time.time(), 3), **event}
        with open(self.path / "events.jsonl", "ab+") as file:
            # A process that was killed may have left half a line: it is closed, and skipped by the readers.
            if file.tell() and not _ends_a_line(file):
                file.write(b"\n")
            file.write(json.dumps(event).encode() + b"\n")
        return event

    def events(self, start: int = 0) -> list[dict]:
        """The events from number `start` on."""
        try:
            lines = (self.path / "events.jsonl").read_bytes().split(b"\n")[:-1]
        except FileNotFoundError:
            return []
        # A torn line is no event, and must not move the numbers of those behind it.
        whole = [line for line in lines if line.startswith(b"{") and line.endswith(b"}")]
        return [event for line in whole[start:] if (event := _event(line))]

    def last_event(self, *kinds: str) -> dict | None:
        """The newest event of one of these kinds."""
        return next((e for e in reversed(self.events()) if e["event"] in kinds), None)

    def read_json(self, name: str):
        """What the named file holds, or None where there is none."""
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None

    def write_json(self, name: str, value) -> None:
        self.write_text(name, json.dumps(value, indent=1, ensure_ascii=False) + "\n")

    def write_text(self, name: str, text: str) -> None:
        beside = self.path / f".{name.replace('/', '-')}.part"
        beside.write_text(text, encoding="utf-8")
        beside.replace(self.path / name)

    @contextmanager
    def folder(self, name: str) -> Iterator[Path]:
        """A folder to fill, which takes the name's place only when it is whole."""
        beside, target, old = (self.path / part for part in (f".{name.replace('/', '-')}.part", name, ".old"))
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        yield beside
        target.parent.mkdir(exist_ok=True)
        if target.exists():
            target.replace(old)
        beside.replace(target)
        shutil.rmtree(old, ignore_errors=True)


def create(recipe: Recipe, root: Path | None = None, path: Path | None = None) -> Run:
    """A new run folder: at `path`, or under `root` (default RUNS) with an id that can't be guessed."""
    path = Path(path or Path(root or RUNS) / secrets.token_urlsafe(12).replace("-", "x").replace("_", "y"))
    path.mkdir(parents=True, exist_ok=True)
    run = Run(path)
    run.data.mkdir(exist_ok=True)
    run.write_text("recipe.yaml", recipe.to_yaml())
    return run


def open_run(name: str | Path, root: Path | None = None, *, local: bool = True) -> Run:
    """The run with this id, or at this path where `local` allows paths. Raises TunerError where there is none."""
    root = Path(root or RUNS)
    is_id = Path(name).name == str(name) and str(name) not in (".", "..")
    for path in [root / name] * is_id + [Path(name)] * local:
        if (path / "recipe.yaml").is_file():
            return Run(path)
    raise TunerError(f"There is no run '{name}'. Look among your runs for its id, or train one.")


def list_runs(root: Path | None = None) -> list[Run]:
    """The runs under `root`, newest first."""
    found = Path(root or RUNS).glob("*/recipe.yaml")
    return [Run(f.parent) for f in sorted(found, key=lambda f: f.stat().st_mtime, reverse=True)]


def _ends_a_line(file) -> bool:
    file.seek(-1, os.SEEK_END)
    return file.read(1) == b"\n"


def _event(line: bytes) -> dict | None:
    try:
        return json.loads(line)
    except ValueError:
        return None
