"""The run folder: the only state shared by the page, the terminal, a resumed window and another machine.

    recipe.yaml      the settings, every default written out
    plan.json        estimates, and the settings that were chosen
    data/            tokenized rows and held-out prompts
    events.jsonl     what happened, one JSON object per line
    checkpoints/     what the next window needs to resume, newest last
    adapter/         the adapter in PEFT's own format
    merged/          the merged model, once it is requested
    evaluation.json  scores with their intervals
    owner.json       whose run it is on the page: a secret's hash, and the account

Nothing here imports torch. Files are written under another name and then renamed, so a reader never sees half of one.
"""

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tuner.errors import TunerError
from tuner.events import EventLog, EventReader
from tuner.recipe import Recipe

RUNS = Path(os.environ.get("TUNER_RUNS", "runs"))
ENDINGS = {"steps": "finished", "clock": "finished", "stopped": "stopped", "window": "paused"}
OTHER_ENDINGS = {"start": "interrupted", "died": "paused", "error": "failed"}
FORMAT = 2  # of the folder, as written in plan.json; a plan without it has format 1
# What to do about a file that is missing or damaged.
REPAIRS = {
    "plan.json": "Prepare the run again with: tuner train RECIPE --out RUN",
    "evaluation.json": "Delete that file, then score the run again with: tuner evaluate RUN",
    "answers.json": "Delete that file, then score the run again with: tuner evaluate RUN",
    "merge_check.json": "Delete that file, then merge the run again with: tuner merge RUN",
}
OTHER_REPAIR = "Train its recipe again in a new run."


class Plan(dict):
    """What plan.json holds. Asking for an entry that it lacks raises TunerError: the file is missing or incomplete."""

    def __init__(self, run: str, entries: dict):
        super().__init__(entries)
        self.run = run

    def __missing__(self, key: str) -> None:
        raise _damaged(self.run, "plan.json", f"incomplete (it has no '{key}')" if self else "missing")


def _damaged(run: str, name: str, how: str) -> TunerError:
    return TunerError(f"Run {run}: its {name} is {how}. {REPAIRS.get(name, OTHER_REPAIR)}")


class Run:
    """One execution of a recipe, known by its folder. Recipe and plan are read once; threads may share a run."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self.id = self.path.name
        self.adapter = self.path / "adapter"
        self.merged = self.path / "merged"
        self.data = self.path / "data"
        self.checkpoints = self.path / "checkpoints"
        self.log = EventLog(self.path / "events.jsonl")
        self._read: dict[str, Any] = {}  # recipe.yaml and plan.json as they were read

    @property
    def recipe(self) -> Recipe:
        """The settings, every default filled in. Raises TunerError if this version can't read them."""
        if "recipe.yaml" not in self._read:
            try:
                self._read["recipe.yaml"] = Recipe.load(self.path / "recipe.yaml")
            except TunerError as error:
                problems = " ".join(error.problems)
                raise _damaged(self.id, "recipe.yaml", f"damaged, or of another version. {problems}") from None
        return self._read["recipe.yaml"]

    @property
    def plan(self) -> Plan:
        """Estimates and chosen settings; empty before the run is prepared. Raises TunerError if it is damaged."""
        if not self._read.get("plan.json"):
            self._read["plan.json"] = Plan(self.id, self.read_json("plan.json") or {})
        return self._read["plan.json"]

    @property
    def damage(self) -> list[str]:
        """Sentences about what keeps the run from being used or listed; none if its files can be read."""
        needed = (lambda: self.recipe, lambda: self.plan["settings"], lambda: self.read_json("evaluation.json"))
        problems = []
        for read in needed:
            try:
                read()
            except TunerError as error:
                problems += error.problems
        return problems

    @property
    def status(self) -> str:
        """training, or how the last window ended: see `ending`."""
        return "training" if self.is_training else self.ending

    @property
    def ending(self) -> str:
        """prepared, paused (its window closed), interrupted (its process died), stopped, finished or failed.

        It does not check whether the window is still open: such a run counts as interrupted.
        """
        if self.is_trained and (self.path / "evaluation.json").is_file():
            return "finished"
        last = self.last_event("start", "end", "unscored", "died", "error")
        if last is None:
            return "prepared"
        ending = ENDINGS[last["reason"]] if "reason" in last else OTHER_ENDINGS[last["event"]]
        return "interrupted" if ending == "finished" else ending  # trained, but not scored

    @property
    def is_trained(self) -> bool:
        """Whether the budget is used up, so that at most the scoring is left."""
        last = self.last_event("start", "end")
        return last is not None and last["event"] == "end" and ENDINGS[last["reason"]] == "finished"

    @property
    def is_training(self) -> bool:
        """Whether a living process holds the run; the lock dies with its process, however it ends."""
        return not self._try_lock(release=True)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Hold the run for training. Raises TunerError if another process holds it, or if a newer Tuner made it."""
        if self.plan.get("format", 1) > FORMAT:
            raise TunerError(
                f"Run {self.id} was made by a newer version of Tuner, which this version can't read. Update Tuner, or "
                "train the recipe again here."
            )
        lock = self._try_lock()
        if not lock:
            raise TunerError(f"Run {self.id} is already in training. Watch it, or stop it first.")
        try:
            self._forget_old_stop()
            yield
        finally:
            (self.path / "stop").unlink(missing_ok=True)
            lock.release()

    def _try_lock(self, release: bool = False) -> FileLock | None:
        """The run's lock, taken now; None if a trainer holds it. With `release`, the lock is given back at once."""
        # Every look takes the lock for an instant. Looks pass one at a time, so none is mistaken for a trainer.
        with FileLock(self.path / "lock.look", poll_interval=0.002, thread_local=False):
            lock = FileLock(self.path / "lock", timeout=0, thread_local=False)
            try:
                lock.acquire()
            except Timeout:
                return None
            if release:
                # Closing the file is not enough: a worker that was forked meanwhile has it open, too.
                lock.release()
            return lock

    def _forget_old_stop(self) -> None:
        """Drop a stop left from an earlier window; one requested since this window was begun counts."""
        stop, starting = self.path / "stop", self.last_event("starting")
        if stop.exists() and (starting is None or stop.stat().st_mtime < starting["time"]):
            stop.unlink()

    def stop(self) -> None:
        """Ask the training process to stop after its current step; what was learned is kept."""
        (self.path / "stop").touch()

    @property
    def is_asked_to_stop(self) -> bool:
        """Whether a stop was requested that the training process has not acted on yet."""
        return (self.path / "stop").exists()

    def append(self, event: dict) -> dict:
        """Write one event with its time and return it."""
        return self.log.append(event)

    def events(self) -> list[dict]:
        """All events, read from the start; `last_event` and `reader` read only what is new."""
        return self.reader().read()

    def reader(self) -> EventReader:
        """A reader of the events, from the first one on."""
        return EventReader(self.log.path)

    def last_event(self, *kinds: str) -> dict | None:
        """The newest event of these kinds."""
        return self.log.newest(*kinds)

    def read_json(self, name: str) -> dict | None:
        """What the named file holds, or None if there is no such file. Raises TunerError if it is damaged."""
        try:
            value = json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError:  # not JSON, or not text
            value = None
        if not isinstance(value, dict):
            raise _damaged(self.id, name, "damaged")
        return value

    def write_json(self, name: str, value: Any) -> None:
        """Write the named file as JSON, all of it or nothing."""
        self.write_text(name, json.dumps(value, indent=1, ensure_ascii=False) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write the named file, all of it or nothing."""
        partial = self.path / f".{name.replace('/', '-')}.part"
        partial.write_text(text, encoding="utf-8")
        partial.replace(self.path / name)
        self._read.pop(name, None)

    @contextmanager
    def folder(self, name: str) -> Iterator[Path]:
        """A folder to fill; it gets its name, and replaces an older one, only when it is complete."""
        partial, target, old = (self.path / part for part in (f".{name.replace('/', '-')}.part", name, ".old"))
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        yield partial
        target.parent.mkdir(exist_ok=True)
        if target.exists():
            target.replace(old)
        partial.replace(target)
        shutil.rmtree(old, ignore_errors=True)


def create(recipe: Recipe, root: Path | None = None, path: Path | None = None) -> Run:
    """A new run folder: at `path`, or under `root` (default RUNS) with an id that can't be guessed.

    Raises TunerError if there can't be a folder, or none can be written to.
    """
    path = Path(path or Path(root or RUNS) / secrets.token_urlsafe(12).replace("-", "x").replace("_", "y"))
    run = Run(path)
    try:
        run.data.mkdir(parents=True, exist_ok=True)
        run.write_text("recipe.yaml", recipe.to_yaml())
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        reason = (error.strerror or type(error).__name__).lower()
        raise TunerError(f"{path} can't be the run's folder: {reason}. Choose another folder.") from None
    return run


def open_run(name: str | Path, root: Path | None = None, *, local: bool = True) -> Run:
    """The run with this id, or at this path if `local` allows paths. Raises TunerError if there is none."""
    root = Path(root or RUNS)
    is_id = Path(name).name == str(name) and str(name) not in ("", ".", "..")
    for path in [root / name] * is_id + [Path(name)] * local:
        if (path / "recipe.yaml").is_file():
            return Run(path)
    raise TunerError(f"There is no run '{name}'. Check the id in your list of runs, or train a new one.")


def list_runs(root: Path | None = None) -> list[Run]:
    """The runs under `root`, newest first."""
    recipes = Path(root or RUNS).glob("*/recipe.yaml")
    return [Run(f.parent) for f in sorted(recipes, key=lambda f: f.stat().st_mtime, reverse=True)]
