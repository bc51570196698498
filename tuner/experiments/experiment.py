"""An experiment: several runs of one recipe that are held against each other, such as methods, seeds or a search.

It is a folder beside the runs. Its experiment.json says what was asked for and which runs were made for it; how far
they are, and what they scored, stands in the runs' own folders. So it resumes after a kill: runs that have finished
are not trained again, a run in its middle resumes from its checkpoint, and what is missing is prepared.

    experiment = create(request(recipe, ["lora", "ia3"], seconds=30))
    while run := experiment.next_run():
        for event in train(run): ...

Whoever trains the runs, the terminal or the page's queue, decides what a failure means: `set_aside` says that a run
failed for reasons of its own, and the experiment goes on without it; otherwise `next_run` returns it again.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tuner import run_lock, runs
from tuner.errors import TunerError
from tuner.experiments import candidates, search
from tuner.experiments.candidates import Request
from tuner.experiments.states import ASKED, FILE, FORMAT, Asked, Entry, State, new_entry, seconds_of, state_of
from tuner.recipe import Recipe
from tuner.run_files import damage_of, read_object, reason, unless_deleted
from tuner.runs import Run

ORPHANED = 24 * 3600  # seconds after which an experiment without runs is deleted
SPARE_SECONDS = 0.5  # which a run may take more than its budget
Prepare = Callable[[Recipe, Path], Run]


class Experiment:
    """One experiment, known by its folder. Threads may share it; one of them drives it (see `driving`)."""

    def __init__(self, path: Path):
        self.path = Path(path)
        self.id = self.path.name
        self._folder = Run(path)  # which reads and writes files as those of a run
        self._changing = threading.RLock()

    @property
    def asked(self) -> Asked:
        """What experiment.json says. Raises TunerError if it can't be read."""
        try:
            asked = read_object(self.path / FILE)
            if isinstance(version := asked.get("format"), int) and version > FORMAT:
                raise TunerError(f"Experiment {self.id} was made by a newer version of Tuner. Update Tuner.")
            return ASKED.validate_python(asked)
        except (OSError, ValueError) as error:
            how = damage_of(error)
        raise self._damaged(how)

    def _damaged(self, how: str) -> TunerError:
        return TunerError(
            f"Experiment {self.id}: its {FILE} is {how}. Its runs are kept: `tuner runs` lists them, and "
            "`tuner compare RUN RUN` compares them."
        )

    @property
    def recipe(self) -> Recipe:
        """The recipe that all runs share. Raises TunerError if this version can't read it."""
        return Recipe.parse(self.asked["recipe"], FILE)

    @property
    def folder(self) -> Path | None:
        """Where the recipe's relative paths start."""
        folder = self.asked["folder"]
        return None if folder is None else Path(folder)

    def read_json(self, name: str) -> dict | None:
        """What the named file of the folder holds, None if there is none. Raises TunerError if it is damaged."""
        return self._folder.read_json(name)

    def write_json(self, name: str, value: Any) -> None:
        """Write the named file as JSON, all of it or nothing."""
        self._folder.write_json(name, value)

    @property
    def is_driven(self) -> bool:
        """Whether a living process trains its runs."""
        return run_lock.is_held(self.path)

    @contextmanager
    def driving(self) -> Iterator[None]:
        """Hold the experiment while its runs are trained. Raises TunerError if somebody else does.

        Candidates that could not be prepared are tried again: what was missing may be there now.
        """
        with self._held():
            for state in self.states():
                if state.entry.get("failed") and not state.entry["prepared"]:
                    self._note(state.run.id, failed=[])
            yield

    @contextmanager
    def _held(self) -> Iterator[None]:
        try:
            lock = run_lock.take(self.path)
        except OSError as error:
            raise TunerError(f"Experiment {self.id} can't be written to ({reason(error)}).") from None
        if not lock:
            raise TunerError(f"Experiment {self.id} is in progress already, in another process. Stop that first.")
        try:
            yield
        finally:
            lock.release()

    def states(self, opened: Callable[[Path], Run] = Run) -> list[State]:
        """How far each run is that was made so far, in the order of their training. Raises TunerError.

        `opened` gives the run of a folder. One that is open already reads only what is new of its log.
        """
        return [state_of(self.path.parent, entry, opened) for entry in self.asked["runs"]]

    @property
    def size(self) -> int:
        """How many runs it has when it is done."""
        asked = self.asked
        return asked["trials"] if asked["kind"] == "search" else len(asked["runs"])

    @property
    def unbegun(self) -> int:
        """How many runs are left that don't fit into the seconds any more."""
        states = self.states()
        left = [state for state in states if state.status == "waiting"]
        missing = len(left) + max(0, self.size - len(states))
        return 0 if self._has_seconds(states) else missing

    def next_run(self, prepare: Prepare | None = None) -> Run | None:
        """The run to train next, prepared: one in its middle before a new one; None if the experiment is done.

        `prepare` writes a recipe's run to a path, `plan.prepare` by default. A candidate that can't be prepared is
        set aside. A search asks for its next trial here, so call this when the run before has ended.
        Raises TunerError if experiment.json can't be read.
        """
        with self._changing:
            while (state := self._next()) is not None:
                if state.status != "waiting":
                    return state.run
                try:
                    self._prepare(state, prepare or self._prepare_here)
                except TunerError as error:
                    self.set_aside(state.run, error.problems)
                    continue
                return state.run
        return None

    def set_aside(self, run: Run, problems: tuple[str, ...] | list[str]) -> None:
        """Go on without this run, which failed for these reasons; if it is finished after all, it counts again."""
        self._note(run.id, failed=list(problems))

    def delete(self) -> None:
        """Delete the experiment; its runs are kept. Raises TunerError while its runs are trained."""
        with self._held():
            runs.remove(self.path)

    def _next(self) -> State | None:
        states = self.states()
        begun = next((s for s in states if s.status not in ("finished", "failed", "deleted", "waiting")), None)
        if begun or not self._has_seconds(states):
            return begun
        waiting = next((state for state in states if state.status == "waiting"), None)
        asked = self.asked
        if waiting or asked["kind"] != "search" or len(states) >= asked["trials"]:
            return waiting
        asked["runs"].append(self._next_trial(asked, states))
        self.write_json(FILE, asked)
        return state_of(self.path.parent, asked["runs"][-1])

    def _next_trial(self, asked: Asked, states: list[State]) -> Entry:
        trials, seed = _trials(states), self.recipe.seed
        try:
            settings = search.propose(asked["space"], asked["trials"], seed, trials)
        except (LookupError, TypeError, ValueError) as error:  # the trials don't fit the space, or it has no width
            raise self._damaged(damage_of(error)) from error
        return new_entry(self.path.parent, f"trial {len(states) + 1}", settings)

    def _has_seconds(self, states: list[State]) -> bool:
        """Whether another run fits into the seconds of all."""
        total, each = self.asked["total_seconds"], self.asked["seconds"]
        if total is None or each is None:
            return True
        return sum(min(each, seconds_of(state.run)) for state in states) + each <= total + SPARE_SECONDS

    def _prepare(self, state: State, prepare: Prepare) -> None:
        if not (state.run.path / "plan.json").is_file():  # which is written last
            prepare(
                candidates.with_settings(self.recipe, state.entry["settings"], state.entry["label"]), state.run.path
            )
        from tuner.evaluation import untuned

        # Before the run counts as prepared, so that after a kill this is done again.
        untuned.share(state.run, [other.run for other in self.states() if other.status == "finished"])
        self._note(state.run.id, prepared=True)

    def _prepare_here(self, recipe: Recipe, path: Path) -> Run:
        from tuner.planning import plan

        return plan.prepare(recipe, base=self.folder, path=path)

    def _note(self, run: str, **facts: Any) -> None:
        with self._changing, unless_deleted(self.path):
            asked = self.asked
            for entry in asked["runs"]:
                if entry["run"] == run:
                    entry.update(facts)
            self.write_json(FILE, asked)


def create(
    request: Request,
    folder: Path | None = None,
    root: Path | None = None,
    check: Callable[[Recipe], dict] | None = None,
) -> Experiment:
    """A new experiment under `root` (default RUNS), with an id that can't be guessed; nothing is trained yet.

    `check` gives a recipe's plan, by default that of `plan.check` with paths relative to `folder`.
    Raises TunerError with the problems of all candidates, before anything is written.
    """
    plans = _check_all(request, check or _checker(folder))
    path = runs.new_path(root)
    entries = [new_entry(path.parent, *given) for given in request.entries()]
    asked = {
        "format": FORMAT,
        "kind": request.kind,
        "recipe": request.recipe.model_dump(),
        "folder": None if folder is None else str(folder.resolve()),
        "candidates": [{"label": c.label, "settings": c.settings} for c in request.candidates],
        "space": search.space_of(request, plans) if request.kind == "search" else {},
        "trials": request.trials,
        "seconds": request.seconds,
        "total_seconds": request.total_seconds,
        "notes": request.notes,
        "runs": entries,
    }
    try:
        path.mkdir(parents=True)
        Run(path).write_json(FILE, asked)
    except OSError as error:
        raise TunerError(
            f"There can't be a new experiment: {path.parent} can't be written to ({reason(error)})."
        ) from None
    return Experiment(path)


def open_experiment(name: str | Path, root: Path | None = None, *, local: bool = True) -> Experiment:
    """The experiment with this id, or at this path if `local` allows paths. Raises TunerError if there is none."""
    root = Path(root or runs.RUNS)
    is_id = runs.ID.fullmatch(str(name)) is not None
    paths = [root / name] * is_id + [Path(name)] * local
    for path in paths:
        if os.path.isfile(path / FILE):
            return Experiment(path)
    shown = "".join(c for c in str(name)[:80] if c.isprintable())
    raise TunerError(f"There is no experiment '{shown}'. Check its id, or start a new one.")


def delete_orphans(root: Path | None = None, seconds: float = ORPHANED) -> list[str]:
    """Delete the experiments of which no run is left, and nothing has happened for so long; returns their ids."""
    deleted = []
    for file in Path(root or runs.RUNS).glob(f"*/{FILE}"):
        experiment = Experiment(file.parent)
        with suppress(TunerError, OSError):  # it is damaged, or in progress
            idle = time.time() - os.stat(file).st_mtime
            if idle > seconds and not any(state.run.path.is_dir() for state in experiment.states()):
                experiment.delete()
                deleted.append(experiment.id)
    return deleted


def _trials(states: list[State]) -> list[search.Trial]:
    """The trials so far, each with the score by which a search chooses."""
    from tuner.experiments.compared import Compared

    finished = [state.run for state in states if state.status == "finished"]
    scores: dict[str, float | None] = {}
    if finished:
        compared = Compared("search", finished)
        scores = {run.id: compared.choosing(run.id) for run in finished}
    signed = {run: compared.sign * score for run, score in scores.items() if score is not None}
    return [search.Trial(state.entry["settings"], signed.get(state.run.id)) for state in states]


def _check_all(request: Request, check: Callable[[Recipe], dict]) -> dict[str, dict]:
    """The plan of each candidate by its label. Raises TunerError with the problems of all."""
    plans, problems = {}, []
    for label, recipe in request.recipes().items():
        try:
            plans[label] = check(recipe)
        except TunerError as error:
            problems += [
                f"{label}: {problem}" if len(request.candidates) > 1 else problem for problem in error.problems
            ]
    if problems:
        raise TunerError(*problems)
    return plans


def _checker(folder: Path | None) -> Callable[[Recipe], dict]:
    from tuner.planning import plan

    return lambda recipe: plan.check(recipe, base=folder).plan
