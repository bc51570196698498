"""What a visitor can do with an experiment: ask what it will cost, start, continue, stop and look at one.

Its runs are ordinary runs of the visitor's. One at a time waits or trains, in the queue of all runs, so an experiment
takes no more room than a run does. The next one is begun while its owner's page or program looks, like a run's next
window: GPU time is its owner's.
"""

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from tuner import runs, runs_cleanup
from tuner.errors import TunerError
from tuner.experiments import candidates, experiment
from tuner.experiments.experiment import Experiment
from tuner.experiments.states import State
from tuner.planning.forecast import MAX_SECONDS, duration
from tuner.planning.scoring import seconds_together
from tuner.recipe import Recipe
from tuner.runs import Run
from tuner.ui import actions, checking, ownership, progress, run_queue
from tuner.ui.bounds import Bounds
from tuner.ui.checking import Entered
from tuner.ui.visitor import ANYBODY, Visitor

MOST_METHODS = 6
MOST_RUNS = 12  # seeds or trials
SECONDS = 30  # of training for each run, if nothing else is chosen
ROWS = "rows"  # in the experiment's folder: what the visitor entered, until all runs are prepared
STOPPED = "stopped"  # in the experiment's folder: nothing is begun until its owner resumes it
OVER = ("finished", "failed", "deleted")
MOST_WITH_ROWS = 50  # experiments whose entered rows are kept
ROWS_KEPT = 24 * 3600  # seconds, like an upload
ROWS_GONE = (
    "The rows that you entered for this experiment were deleted after a day. Start a new one with the same rows."
)
NOT_YOURS = "A link to an experiment is for looking. Only whoever started it can stop, resume or delete it."
_advancing: set[Path] = set()
_lock = threading.Lock()


@dataclass(frozen=True)
class Choice:
    """What is to be compared: several methods, the trials of a search, or seeds of each method or of the recipe."""

    methods: tuple[str, ...] = ()
    search: int = 0
    seeds: int = 0
    seconds: float = SECONDS  # of training, for each run

    @property
    def runs(self) -> int:
        """How many runs that takes: seeds are trained of each method."""
        return self.search or max(1, len(self.methods)) * max(1, self.seeds)

    def request(self, recipe: Recipe) -> candidates.Request:
        """The experiment on this recipe. Raises TunerError with all problems."""
        problems = []
        if len(self.methods) > MOST_METHODS:
            problems.append(f"{len(self.methods)} methods are too many here. Choose at most {MOST_METHODS}.")
        if self.runs > MOST_RUNS:
            problems.append(f"{self.runs} runs are too many here. Choose at most {MOST_RUNS}.")
        most = MAX_SECONDS / max(1, self.runs)
        if not 0 < self.seconds <= most:
            problems.append(
                f"The seconds for each run must be more than 0, and at most {most:.0f}: this page trains for at most "
                f"{duration(MAX_SECONDS)}, in one run or in {self.runs} together."
            )
        if problems:
            raise TunerError(*problems)
        chosen = {"search": self.search or None, "seeds": self.seeds or None, "seconds": self.seconds}
        return candidates.request(recipe, list(self.methods) or None, **chosen)


@dataclass(frozen=True)
class Standing:
    """An experiment at one moment."""

    phase: str  # running, next (a run is about to be begun), paused or done
    state: State | None = None  # of the run that waits or trains, or that was the last to do so
    over: tuple[State, ...] = ()  # runs that are
    size: int = 0

    @property
    def done(self) -> int:
        """How many runs are over."""
        return len(self.over)


def cost(choice: Choice, recipe: Recipe, rows: Entered | None = None, visitor: Visitor = ANYBODY) -> dict:
    """What the experiment will take: runs, and seconds in all with start-up and scoring; the runs' notes.

    Raises TunerError with the problems of all candidates.
    """
    request = choice.request(recipe)
    plans, problems = [], []
    for label, candidate in request.recipes().items():
        try:
            plans.append(checking.check(candidate, rows, visitor))
        except TunerError as error:
            named = f"{label}: " if len(request.candidates) > 1 else ""
            problems += [f"{named}{problem}" for problem in error.problems]
    if problems:
        raise TunerError(*problems)
    forecasts = [plan.get("forecast") for plan in plans]
    # Another seed draws other examples.
    seconds = None
    if all(forecasts):
        seconds = seconds_together(forecasts, choice.runs, have_same_examples=not choice.seeds)
    return {"runs": choice.runs, "training": choice.runs * choice.seconds, "seconds": seconds, "notes": request.notes}


def start(
    choice: Choice, recipe: Recipe, rows: Entered | None = None, visitor: Visitor = ANYBODY
) -> tuple[Experiment, str]:
    """A new experiment of the visitor's, with its secret, which its runs have, too.

    Raises TunerError with all problems.
    """
    request = choice.request(recipe)
    with bounds.admit(visitor):
        made = experiment.create(request, check=lambda candidate: checking.check(candidate, rows, visitor))
        try:
            _keep_rows(made, rows)
            secret = ownership.claim(made, visitor)
        except BaseException:
            shutil.rmtree(made.path, ignore_errors=True)
            raise
        bounds.hold(made.id, visitor)
    _clean()
    return made, secret


def open_experiment(name: str) -> Experiment:
    """The experiment with this id; no path is followed. Raises TunerError."""
    return experiment.open_experiment(name or "", local=False)


def is_own(opened: Experiment, visitor: Visitor) -> bool:
    """Whether the experiment is the visitor's to change."""
    return ownership.is_owner(opened, visitor)


def own_experiment(name: str, visitor: Visitor = ANYBODY) -> Experiment:
    """The visitor's experiment with this id, to be changed. Raises TunerError."""
    opened = open_experiment(name)
    if not is_own(opened, visitor):
        raise TunerError(NOT_YOURS)
    return opened


def standing(opened: Experiment) -> Standing:
    """How far the experiment is. Raises TunerError if it can't be read."""
    held = {*run_queue.queue.held()}  # before the states: a run that ends meanwhile has not stopped in its middle
    states = states_of(opened)
    begun = [state for state in states if state.status != "waiting"]
    newest = begun[-1] if begun else None
    # A run that is resumed has failed until it starts again.
    resumable = [state for state in begun if state.status not in ("finished", "deleted")]
    live = next((state for state in resumable if _is_live(state.run, held)), None)
    refused = newest if not live and _failed_on_the_platform(newest) else None
    over = [state for state in states if state.status in OVER and state not in (live, refused)]
    size = max(opened.size, len(states))
    middle = next((state for state in begun if state.status not in OVER), None)
    is_held_up = (middle and middle.status != "prepared") or refused
    if live:
        phase = "running"
    elif len(over) == size and not is_held_up:
        phase = "done"
    elif is_held_up or (opened.path / STOPPED).is_file() or not _is_recent(opened, newest):
        phase = "paused"
    else:
        phase = "next"
    return Standing(phase, live or middle or newest, tuple(over), size)


def advance(name: str, visitor: Visitor = ANYBODY) -> Standing:
    """See to it that the experiment goes on, for its owner who looks at it; for anybody else, only look.

    Raises TunerError if the next run can't be prepared now.
    """
    opened = open_experiment(name)
    now = standing(opened)
    if not is_own(opened, visitor):
        return now
    if now.phase == "running":
        run_queue.start_next_window(now.state.run, visitor)
    elif now.phase == "next":
        with alone(opened.path) as is_alone:
            if is_alone:
                _begin_next(opened, now, visitor)
                now = standing(opened)
    elif now.phase == "done":
        shutil.rmtree(opened.path / ROWS, ignore_errors=True)
    return now


def stop(name: str, visitor: Visitor = ANYBODY) -> None:
    """Stop the run in training after its current step, and begin no other. Raises TunerError."""
    opened = own_experiment(name, visitor)
    (opened.path / STOPPED).touch()
    now = standing(opened)
    if now.phase == "running":
        with suppress(TunerError):  # it has ended meanwhile
            actions.stop(now.state.run.id, _with_run(opened, now.state.run, visitor))


def resume(name: str, visitor: Visitor = ANYBODY) -> None:
    """Go on: with the run in its middle, if there is one, or else with the next. Raises TunerError."""
    opened = own_experiment(name, visitor)
    now = standing(opened)
    if now.phase == "done":
        raise TunerError(f"Experiment {name} is done, so there is nothing to resume.")
    (opened.path / STOPPED).unlink(missing_ok=True)
    (opened.path / experiment.FILE).touch()  # so that it is recent
    if now.phase == "paused" and now.state and now.state.status not in ("prepared", "finished", "deleted"):
        run = now.state.run
        if now.state.status != "failed" or _failed_on_the_platform(now.state):
            actions.resume(run.id, _with_run(opened, run, visitor))


def runs_of(opened: Experiment) -> list[str]:
    """The ids of its runs that were prepared and are still there."""
    return [state.run.id for state in states_of(opened) if state.status not in ("waiting", "deleted")]


def states_of(opened: Experiment) -> list[State]:
    """How far each run is that was made so far. Raises TunerError."""

    def run_at(path: Path) -> Run:
        with suppress(TunerError):
            return actions.open_run(path.name)
        return Run(path)

    return opened.states(run_at)


def _begin_next(opened: Experiment, now: Standing, visitor: Visitor) -> None:
    if opened.is_driven:  # by a terminal
        return
    if now.state and now.state.status == "failed" and not now.state.entry.get("failed"):
        opened.set_aside(now.state.run, progress.read(now.state.run).problems or ["It ended early."])
    runs_cleanup.make_room(keep=run_queue.kept())
    rows = _kept_rows(opened)

    def prepare(recipe: Recipe, path: Path) -> Run:
        run = checking.write_run(recipe, rows, visitor, path)
        runs_cleanup.make_room_for(run, run_queue.kept())
        run.write_json(ownership.FILE, opened.read_json(ownership.FILE))
        return run

    with run_queue.bounds.admit(visitor):
        run = opened.next_run(prepare)
        if run:
            run_queue.start(run, visitor, {"event": "queued", "signed_in": visitor.account is not None})


def _is_live(run: Run, held: set[str]) -> bool:
    return run.id in held or progress.read(run).is_live


def _failed_on_the_platform(state: State | None) -> bool:
    """Whether the newest run got no window on ZeroGPU, where the next one would get none either."""
    if not state or state.status != "failed" or state.entry.get("failed"):
        return False
    return bool((state.run.last_event("error") or {}).get("refused"))


def _is_recent(opened: Experiment, newest: State | None) -> bool:
    """Whether it was begun, resumed or trained so lately that its owner's page is still looking."""
    times = [_touched(opened.path / experiment.FILE)]
    if newest and (event := newest.run.last_event()):
        times.append(event.get("time", 0))
    return abs(time.time() - max(times)) < progress.RECENT


@contextmanager
def alone(path: Path) -> Iterator[bool]:
    """Whether nobody else prepares this experiment's next run at the moment."""
    with _lock:
        is_alone = path not in _advancing
        _advancing.add(path)
    try:
        yield is_alone
    finally:
        if is_alone:
            _advancing.discard(path)


def _keep_rows(made: Experiment, rows: Entered | None) -> None:
    if not rows:
        return
    folder = made.path / ROWS
    folder.mkdir()
    for place, file in enumerate(rows.files or []):
        (folder / f"{place}").mkdir()
        shutil.copyfile(file, folder / f"{place}" / Path(file).name)
    if rows.pasted:
        (folder / "pasted").write_text(rows.pasted, encoding="utf-8")


def _kept_rows(opened: Experiment) -> Entered | None:
    folder = opened.path / ROWS
    if (folder / "pasted").is_file():
        return Entered(pasted=(folder / "pasted").read_text(encoding="utf-8"))
    files = sorted(folder.glob("*/*"), key=lambda file: int(file.parent.name))
    if folder.is_dir() and not files:
        raise TunerError(ROWS_GONE)
    return Entered([str(file) for file in files]) if files else None


def _clean() -> None:
    """Delete experiments of which nothing is left, and the oldest rows that were kept for one."""
    experiment.delete_orphans()
    touched = {folder: _touched(folder.parent / experiment.FILE) for folder in runs.RUNS.glob(f"*/{ROWS}")}
    newest = sorted(touched, key=touched.__getitem__)[-MOST_WITH_ROWS:]
    for folder in touched:
        if folder not in newest or time.time() - touched[folder] > ROWS_KEPT:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()  # which tells that there were rows


def _touched(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


def is_in_progress(name: str) -> bool:
    """Whether one of its runs waits, trains or is about to be begun; not if it can't be read."""
    try:
        return standing(open_experiment(name)).phase in ("running", "next")
    except TunerError:
        return False


bounds = Bounds(is_in_progress)


def _with_run(opened: Experiment, run: Run, visitor: Visitor) -> Visitor:
    """The visitor with the secret of the experiment for its run."""
    return replace(visitor, secrets={**visitor.secrets, run.id: visitor.secrets.get(opened.id, "")})
