"""The run folder: the only state shared by the page, the terminal, a resumed window and another machine.

    recipe.yaml      the settings, every default written out
    plan.json        estimates, and the settings that were chosen
    data/ start/     tokenized rows and held-out prompts; the weights that training starts from, if there are some
    events.jsonl     what happened, one JSON object per line
    checkpoints/     what the next window needs to resume, newest last
    adapter/         the adapter in PEFT's own format
    merged/          the merged model, once it is requested
    evaluation.json  scores with their intervals
    evaluation_rows.jsonl  each scored row with its answers
    untuned.json     what the base answered, for the other runs of an experiment
    owner.json       whose run it is on the page: a secret's hash, and the account

Nothing here imports torch. Files are written under another name and then renamed, so a reader never sees half of one.
"""

import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tuner import run_files, run_lock
from tuner.errors import TunerError
from tuner.events import EventLog, EventReader
from tuner.recipe import Recipe
from tuner.run_files import Plan, damage_of, damaged, reason

RUNS = Path(os.environ.get("TUNER_RUNS", "runs"))
ID = re.compile(r"[A-Za-z0-9_-]([A-Za-z0-9_.-]{0,62}[A-Za-z0-9_-])?")  # of what a visitor may name
PARTS = ("recipe.yaml", "plan.json", "events.jsonl")  # a folder with one of them is a run, if perhaps a damaged one
DELETED = ".deleted-"  # how the names of folders begin that are being deleted
ENDINGS = {"steps": "finished", "clock": "finished", "patience": "finished", "stopped": "stopped", "window": "paused"}
OTHER_ENDINGS = {"start": "interrupted", "died": "paused", "error": "failed", "adopted": "adopted"}
FORMAT = 2  # of the folder, as written in plan.json; a plan without it has format 1


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
                text = run_files.read_text(self.path / "recipe.yaml")
                self._read["recipe.yaml"] = Recipe.from_yaml(text, "recipe.yaml")
            except TunerError as error:
                problems = " ".join(error.problems).removesuffix(".")
                raise damaged(self.id, "recipe.yaml", f"damaged, or of another version. {problems}") from None
            except (OSError, ValueError, RecursionError) as error:
                raise damaged(self.id, "recipe.yaml", damage_of(error)) from None
        return self._read["recipe.yaml"]

    @property
    def plan(self) -> Plan:
        """Estimates and chosen settings; empty before the run is prepared.

        Raises TunerError if it is damaged, or if a newer Tuner made it.
        """
        if not self._read.get("plan.json"):
            plan = Plan(self.id, self.read_json("plan.json") or {})
            if plan.get("format", 1) > FORMAT:
                raise TunerError(
                    f"Run {self.id} was made by a newer version of Tuner, which this version can't read. Update "
                    "Tuner, or train the recipe again here."
                )
            self._read["plan.json"] = plan
        return self._read["plan.json"]

    @property
    def damage(self) -> list[str]:
        """Sentences about what keeps the run from being used or listed; none if its files can be read."""
        needed = (
            lambda: self.recipe,
            lambda: self.plan["settings"],
            lambda: self.read_json("evaluation.json"),
            lambda: self.ending,
        )
        problems = []
        for read in needed:
            try:
                read()
            except TunerError as error:
                problems += error.problems
        return problems

    @property
    def identity(self) -> tuple[int, int]:
        """What differs once the run was deleted and another made: a number, and when it was made in ns, if known."""
        for name in ("recipe.yaml", "."):
            with suppress(OSError):
                status = os.stat(self.path / name)
                return status.st_ino, status.st_mtime_ns * (name != ".")
        return 0, 0

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
        last = self.last_event("start", "end", "unscored", "died", "error", "adopted")
        if last is None:
            return "prepared"
        ending = ENDINGS.get(last.get("reason")) or OTHER_ENDINGS.get(last["event"], "interrupted")
        return "interrupted" if ending == "finished" else ending  # trained, but not scored

    @property
    def is_trained(self) -> bool:
        """Whether the budget is used up, so that at most the scoring is left."""
        last = self.last_event("start", "end")
        return last is not None and last["event"] == "end" and ENDINGS.get(last.get("reason")) == "finished"

    @property
    def is_training(self) -> bool:
        """Whether a living process holds the run; the lock dies with its process, however it ends."""
        return run_lock.is_held(self.path)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Hold the run for training. Raises TunerError if another process holds it, or if a newer Tuner made it."""
        run_files.check_trained_here(self.plan)  # which also tells whether this version can read it
        lock = self._lock()
        try:
            self._forget_old_stop()
            yield
        finally:
            run_files.forget(self.path / "stop")
            lock.release()

    def delete(self) -> None:
        """Delete the run for good. Raises TunerError while it is in training, or if it can't be deleted."""
        lock = None
        if not self.path.is_symlink():
            with suppress(OSError):  # its lock may be damaged like everything else
                if not (lock := run_lock.take(self.path)):
                    raise TunerError(f"Run {self.id} is in training. Stop it first, then delete it.")
        gone = self.path.with_name(f"{DELETED}{secrets.token_hex(8)}")
        try:
            # At once, so that nobody meets half a run, or looks at it and puts a lock into what is being deleted.
            self.path.rename(gone)
        except FileNotFoundError:
            return  # somebody else was faster
        except OSError as error:
            raise TunerError(f"Run {self.id} can't be deleted: {reason(error)}.") from None
        finally:
            if lock:
                lock.release()
        remove(gone)

    def _lock(self) -> run_lock.Lock:
        """The run's lock. Raises TunerError if a trainer holds it, or if its folder can't be written to."""
        try:
            lock = run_lock.take(self.path)
        except FileNotFoundError:
            raise TunerError(f"Run {self.id} was deleted, so it can't be trained.") from None
        except OSError as error:
            raise TunerError(
                f"Run {self.id} can't be trained: its folder can't be written to ({reason(error)})."
            ) from None
        if not lock:
            raise TunerError(f"Run {self.id} is already in training. Watch it, or stop it first.")
        return lock

    def _forget_old_stop(self) -> None:
        """Drop a stop left from an earlier window; one requested since this window was begun counts."""
        stop, newest = self.path / "stop", self.last_event("starting", "start")
        if newest and newest["event"] == "starting" and run_files.content(stop) == f"{newest['time']}":
            return
        run_files.forget(stop)

    def stop(self) -> None:
        """Ask the training process to stop after its current step; what was learned is kept."""
        # With the window that it is meant for. Times are only compared for being the same: clocks may be set.
        newest = self.last_event("starting", "start") or {}
        with suppress(FileNotFoundError):  # the run was deleted
            self.write_text("stop", f"{newest.get('time')}")

    @property
    def is_asked_to_stop(self) -> bool:
        """Whether a stop was requested that the training process has not acted on yet."""
        return (self.path / "stop").is_file()

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
            return run_files.read_object(self.path / name)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise damaged(self.id, name, damage_of(error)) from None

    def heldout(self, most: int | None = None) -> list[dict] | None:
        """The first held-out prompts with their references; None if there is no such file.

        Raises TunerError if it is damaged.
        """
        try:
            return run_files.read_prompts(self.data / "heldout.jsonl", most)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise damaged(self.id, "data/heldout.jsonl", damage_of(error)) from None

    def write_json(self, name: str, value: Any) -> None:
        """Write the named file as JSON, all of it or nothing."""
        self.write_text(name, json.dumps(value, indent=1, ensure_ascii=False) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write the named file, all of it or nothing."""
        # Under a name of its own, since two processes may write the same file.
        partial = self.path / f".{name.replace('/', '-')}.{secrets.token_hex(4)}.part"
        try:
            partial.write_text(text, encoding="utf-8")
            partial.replace(self.path / name)
        except IsADirectoryError:
            raise damaged(self.id, name, "no file") from None
        finally:
            partial.unlink(missing_ok=True)
        self._read.pop(name, None)

    @contextmanager
    def folder(self, name: str) -> Iterator[Path]:
        """A folder to fill; it gets its name, and replaces an older one, only when it is complete.

        Raises TunerError if the run was deleted meanwhile.
        """
        partial, target, old = (self.path / part for part in (f".{name.replace('/', '-')}.part", name, ".old"))
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        yield partial
        if not _is_run(self.path):  # the libraries that write models make it again
            shutil.rmtree(partial, ignore_errors=True)
            with suppress(OSError):
                self.path.rmdir()
            raise TunerError(f"Run {self.id} was deleted meanwhile, so nothing was saved.")
        target.parent.mkdir(exist_ok=True)
        if target.exists():
            target.replace(old)
        partial.replace(target)
        shutil.rmtree(old, ignore_errors=True)


def new_path(root: Path | None = None) -> Path:
    """Where a new run can be, under `root` (default RUNS), with an id that can't be guessed."""
    return Path(root or RUNS) / secrets.token_urlsafe(12).replace("-", "x").replace("_", "y")


def create(recipe: Recipe, root: Path | None = None, path: Path | None = None) -> Run:
    """A new run folder: at `path`, or under `root` (default RUNS) with an id that can't be guessed.

    Raises TunerError if there can't be a folder, or none can be written to.
    """
    is_chosen = path is not None
    path = Path(path or new_path(root))
    run = Run(path)
    try:
        run.data.mkdir(parents=True, exist_ok=True)
        run.write_text("recipe.yaml", recipe.to_yaml())
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        if is_chosen:
            raise TunerError(f"{path} can't be the run's folder: {reason(error)}. Choose another folder.") from None
        raise TunerError(
            f"There can't be a new run: the folder of runs can't be written to ({reason(error)})."
        ) from None
    return run


def open_run(name: str | Path, root: Path | None = None, *, local: bool = True) -> Run:
    """The run with this id, or at this path if `local` allows paths. Raises TunerError if there is none."""
    root = Path(root or RUNS)
    if local:
        is_id = Path(name).name == str(name) and str(name) not in ("", ".", "..")
        paths = [root / name] * is_id + [Path(name)]
    else:
        paths = [root / name] * bool(ID.fullmatch(name) and _is_spelled_so(root / name))
    for path in paths:
        if _is_run(path):
            return Run(path)
    shown = name if local or ID.fullmatch(name) else "".join(c for c in name[:40] if c.isprintable())
    raise TunerError(f"There is no run '{shown}'. Check the id in your list of runs, or train a new one.")


def _is_run(path: Path) -> bool:
    # Unlike those of Path, the tests of os.path accept names of any length.
    return os.path.isdir(path) and any(os.path.lexists(path / part) for part in PARTS)


def _is_spelled_so(path: Path) -> bool:
    """Whether the folder has this very name: some file systems find it by the same name in other capital letters."""
    return not os.path.lexists(path.with_name(path.name.swapcase())) or path.name in os.listdir(path.parent)


def remove(folder: Path) -> None:
    """Delete a folder, or a link to one, as far as that is possible; what is left goes when room is made."""
    if folder.is_symlink():
        folder.unlink()
    shutil.rmtree(folder, ignore_errors=True)


def list_runs(root: Path | None = None) -> list[Run]:
    """The runs under `root`, newest first, damaged ones included."""
    try:
        with os.scandir(root or RUNS) as entries:
            folders = [Path(entry.path) for entry in entries if not entry.name.startswith(".")]
    except OSError:
        return []
    return sorted((Run(path) for path in folders if _is_run(path)), key=lambda run: run.identity[1], reverse=True)
