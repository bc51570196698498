"""What a visitor can do, as plain functions called by the tabs and the named endpoints alike.

A run's id can't be guessed: whoever has it may look at the run and chat with it, and its owner may change it. Nothing
here makes HTML, and nothing heavy is imported before it is needed.
"""

import logging
import secrets
import shutil
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from tuner import gpu, recipe, runs, runs_cleanup
from tuner.errors import TunerError
from tuner.hub.card_data import without_paths
from tuner.methods.registry import METHODS
from tuner.methods.spec import MethodRow
from tuner.models.fetch import is_here, is_shipped
from tuner.recipe import Recipe
from tuner.run_files import check_trained_here, deleted, unless_deleted
from tuner.runs import Run
from tuner.tasks import TaskRow, task_of
from tuner.ui import checking, ownership, progress, run_queue, take_home
from tuner.ui.checking import Entered, check, columns, entered, is_local, preview, read_recipe, survey
from tuner.ui.ownership import EXAMPLE
from tuner.ui.sampling import checked_sampling
from tuner.ui.visitor import ANYBODY, Visitor

__all__ = ["Entered", "check", "columns", "entered", "is_local", "preview", "read_recipe", "survey"]  # and all below
log = logging.getLogger(__name__)

BASE, ADAPTER, MERGED = "base", "adapter", "merged"
MOST_COMPARED = 3  # runs whose adapters answer side by side with the base
MOST_OPEN = 1000  # runs kept open, so that a look at one reads only what is new
_open: OrderedDict[Path, tuple[tuple[int, int], Run]] = OrderedDict()  # folder -> its recipe file's identity, the run
_opening = threading.Lock()


def starting_recipe() -> Recipe:
    """The recipe that the page starts with: the shipped example."""
    return Recipe.load("corporate") if (recipe.EXAMPLES / "corporate.yaml").is_file() else Recipe()


def open_run(run: str) -> Run:
    """The run with this id, opened once; no path is followed. Raises TunerError."""
    opened = runs.open_run(run or "", local=False)
    path, identity = opened.path.absolute(), opened.identity
    with _opening:
        if _open.get(path, (None,))[0] != identity:
            _open[path] = (identity, opened)
        _open.move_to_end(path)
        while len(_open) > MOST_OPEN:
            _open.popitem(last=False)
        return _open[path][1]


def own_run(run: str, visitor: Visitor = ANYBODY) -> Run:
    """The visitor's run with this id, to be changed; the shipped example can't be. Raises TunerError."""
    opened = open_run(run)
    ownership.check_owner(opened, visitor)
    return opened


def install_example() -> None:
    """Copy the shipped finished run into the folder of runs if it is missing there."""
    source, target = recipe.EXAMPLES / "finished", runs.RUNS / EXAMPLE
    if source.is_dir() and not target.exists():
        runs.RUNS.mkdir(parents=True, exist_ok=True)
        partial = runs.RUNS / f".{EXAMPLE}-{secrets.token_hex(4)}"
        shutil.copytree(source, partial)
        try:
            partial.rename(target)
        except OSError:  # another process was faster
            shutil.rmtree(partial)


def has_example() -> bool:
    """Whether the shipped finished run is installed."""
    return (runs.RUNS / EXAMPLE / "recipe.yaml").is_file()


def known_plan(requested: Recipe) -> dict | None:
    """The example run's plan if this is its recipe, so that a first visitor need not wait for imports."""
    if not has_example():
        return None
    example = open_run(EXAMPLE)
    same = requested.model_copy(update={"name": None}) == example.recipe.model_copy(update={"name": None})
    return example.plan if same and example.plan else None


def prepare(requested: Recipe, rows: Entered | None = None, visitor: Visitor = ANYBODY) -> tuple[Run, str]:
    """Create a run for the visitor, whom run_queue.bounds have admitted, and queue it; returns it with its secret.

    Raises TunerError with all problems.
    """
    if removed := runs_cleanup.make_room(keep=run_queue.kept()):
        log.info("deleted %s old runs to make room", len(removed))
    run = checking.write_run(requested, rows, visitor)
    runs_cleanup.make_room_for(run, run_queue.kept())
    secret = ownership.claim(run, visitor)
    run_queue.start(run, visitor, {"event": "queued", "signed_in": visitor.account is not None})
    return run, secret


def resume(run: str, visitor: Visitor = ANYBODY) -> Run:
    """Queue a run for training again. Raises TunerError if it has finished, is damaged, queued or in training."""
    opened = _to_resume(run, visitor)
    with run_queue.bounds.admit(visitor), unless_deleted(opened.path):
        _fetch_base(opened, visitor)
        run_queue.start(opened, visitor, {"event": "queued"})
    return opened


def needs_download(run: str, visitor: Visitor = ANYBODY) -> bool:
    """Whether the base model has to be downloaded before the run is resumed. Raises TunerError."""
    return not is_here(own_run(run, visitor))


def download_base(run: str, visitor: Visitor = ANYBODY) -> None:
    """Download the base model of a run that is to be resumed. Raises TunerError."""
    checking.fetch_base(_to_resume(run, visitor), visitor)


def _to_resume(run: str, visitor: Visitor) -> Run:
    opened = own_run(run, visitor)
    if problems := opened.damage:
        raise TunerError(*problems)
    check_trained_here(opened.plan)
    if progress.read(opened).phase == "finished":
        raise TunerError(
            f"Run {run} has finished, so there is nothing to resume. For longer training, start a run with more steps."
        )
    if opened.is_training or run_queue.queue.holds(run):
        raise TunerError(f"Run {run} is already in training or waiting for its turn.")
    return opened


def _fetch_base(run: Run, visitor: Visitor) -> None:
    """See to it that the run's base model is here before anything is queued: jobs have no visitor's token."""
    from tuner.models.fetch import base_of

    if not is_here(run):
        checking.fetch_base(run, visitor)
    base_of(run, visitor.token or False)


def watch(run: str, visitor: Visitor = ANYBODY) -> Run:
    """The run, for somebody who watches it: as long as its owner does, its next window starts automatically.

    Whoever was given an owner's link has to resume the run first: the GPU time is theirs.
    """
    opened = open_run(run)
    if run not in visitor.by_link and ownership.is_owner(opened, visitor):
        run_queue.start_next_window(opened, visitor)
    return opened


def stop(run: str, visitor: Visitor = ANYBODY) -> str:
    """Stop after the current step, or give up waiting; what was learned is kept. Raises TunerError."""
    opened = own_run(run, visitor)
    starting = run_queue.queue.holds(run) and not run_queue.queue.place(run)
    if opened.is_training or starting:
        opened.stop()
        how = "stopping"
    else:
        how = "withdrawn" if run_queue.withdraw(opened) else ""
    if problem := deleted(opened.path):
        raise problem
    if not how:
        raise TunerError(f"Run {run} is not in training, so there is nothing to stop.")
    return how


def delete(run: str, visitor: Visitor = ANYBODY) -> None:
    """Delete the run for good. Raises TunerError while it is in training or queued."""
    opened = own_run(run, visitor)
    if opened.is_training or run_queue.queue.holds(run):
        raise TunerError(f"Run {run} is in training or waiting for its turn. Stop it first, then delete it.")
    opened.delete()


def merge(run: str, visitor: Visitor = ANYBODY) -> dict:
    """Merge the run's adapter into the 16-bit base; returns the merge check. Raises TunerError."""
    opened = open_run(run) if run == EXAMPLE else own_run(run, visitor)
    gpu.import_core()
    with unless_deleted(opened.path):
        _fetch_base(opened, visitor)
        return _merge(opened)


def _merge(run: Run) -> dict:
    if not run.merged.is_dir():
        runs_cleanup.make_room(keep=run_queue.kept() | {run.id}, needed=runs_cleanup.bytes_to_merge(run.plan))
    return gpu.merge(run)


@dataclass(frozen=True)
class Lineup:
    """The models that answer side by side, by variant: the base, adapters on it, and one run's merged model."""

    adapters: dict[str, Run]
    merged: dict[str, Run]

    @property
    def variants(self) -> list[str]:
        """All variants, the base first."""
        return [BASE, *self.adapters, *self.merged]

    @property
    def task(self) -> TaskRow:
        """The task that all of them were trained for."""
        return task_of(next(iter(self.adapters.values())).plan)


def lineup(ids: list[str], visitor: Visitor = ANYBODY) -> Lineup:
    """Base, adapter and merged model of one run, or the base and the adapter of each of several. Raises TunerError.

    One run's variants are "adapter" and "merged"; those of several are the runs' ids. A merged model is among them if
    the run can be merged and the visitor may do that, or if it is merged already.
    """
    chosen = {run.id: run for run in map(open_run, ids)}
    if not chosen:
        raise TunerError("No run is chosen. Choose one, or train one first.")
    if len(chosen) > MOST_COMPARED:
        raise TunerError(f"{len(chosen)} runs are too many to compare side by side. Choose at most {MOST_COMPARED}.")
    if len(chosen) == 1:
        (run,) = chosen.values()
        # The 16-bit weights of a base that was published quantized are not downloaded for a mere answer.
        merges = ownership.is_shared(run, visitor) and "origin" not in run.plan
        has_merged = can_merge(run) and (is_merged(run) or merges)
        return Lineup({ADAPTER: run}, {MERGED: run} if has_merged else {})
    gpu.import_core()
    from tuner.inference.variants import common_base

    common_base(list(chosen.values()))  # refuses runs on different bases before a GPU is requested
    return Lineup(chosen, {})


def can_merge(run: Run) -> bool:
    """Whether the run's adapter can be merged into its base model."""
    row = METHODS[run.recipe.method.name]
    # A base that was published quantized, and nobody knows of what; or there are no rows to check a merge on.
    if run.plan.get("origin", "") is None or "adopted" in run.plan:
        return False
    # Heavy imports are needed only if the answer depends on the model.
    if not row.mergeable or row.mergeable_on is MethodRow.mergeable_on:
        return row.mergeable
    gpu.import_core()
    from tuner.inference import merge

    return merge.is_mergeable(run)


def is_merged(run: Run) -> bool:
    """Whether the run is merged already."""
    return run.merged.is_dir() and (run.path / "merge_check.json").is_file()


def chat(
    lineup: Lineup, conversations: dict[str, list[dict]], visitor: Visitor = ANYBODY, **sampling: float
) -> Iterator[dict[str, str]]:
    """The answers so far, by variant; a run that has no merged model yet is merged first. Raises TunerError."""
    sampling = checked_sampling(sampling)
    for turn in chain.from_iterable(conversations.values()):
        known = isinstance(turn, dict) and turn.get("role") in ("system", "user", "assistant")
        if not known or not isinstance(turn.get("content"), str):
            raise TunerError(
                'history: a turn is not {"role": "user" or "assistant", "content": text}. Fix the history.'
            )
    with ExitStack() as stack:
        for run in lineup.adapters.values():
            stack.enter_context(unless_deleted(run.path))
        yield from _answers(lineup, conversations, visitor, sampling)


def _answers(lineup: Lineup, conversations: dict, visitor: Visitor, sampling: dict) -> Iterator[dict[str, str]]:
    run = next(iter(lineup.adapters.values()))  # all have the same base
    gpu.import_core()
    _fetch_base(run, visitor)
    # A message may stop a tokenizer or a template that strangers wrote: not here, and not in a GPU's window. Nor is it
    # rendered again here, since a template is a program and may do something else the next time.
    answering = [(lineup.adapters | lineup.merged).get(variant) for variant in conversations]
    foreign = not is_shipped(run.recipe.model.name) or any("adopted" in r.plan for r in lineup.adapters.values())
    if read := foreign and checking.read_prompts(run, list(conversations.values()), answering, visitor):
        conversations, sampling["ends"] = dict(zip(conversations, read["texts"])), tuple(read["ends"])
    for run in lineup.merged.values():
        _merge(run)
    merged = {variant: run.merged for variant, run in lineup.merged.items()}
    yield from gpu.chat(lineup.adapters, merged, conversations, **sampling)


def push(run: str, repository: str, private: bool, visitor: Visitor = ANYBODY, **options: Any) -> str:
    """Push what leaves the run to the visitor's repository; returns its address. Raises TunerError.

    `options` are failed_merge, what, data_name, into and tell, as for hub/push.py; it merges first if need be.
    """
    opened = open_run(run) if run == EXAMPLE else own_run(run, visitor)
    with unless_deleted(opened.path):
        if options.get("what", "adapter") != "adapter" and not is_merged(opened):
            merge(run, visitor)
        return take_home.push(opened, repository or "", visitor, private=private, **options)


def download(run: str, what: str, visitor: Visitor = ANYBODY) -> dict:
    """Offer `what` of the run (see hub/contents.py) for download: its address, name and bytes. Raises TunerError."""
    from tuner.ui import downloads

    opened = open_run(run)
    if not ownership.is_shared(opened, visitor):
        ownership.check_owner(opened, visitor)
    take_home.prepare(opened, what, visitor)
    return downloads.offer(opened, what)


def summary(run: Run) -> dict:
    """A run in a few plain values."""
    if problems := run.damage:
        texts = dict.fromkeys(("model", "quantization", "data", "method"), "")
        return {"run": run.id, "name": None, "status": "damaged", **texts, "scores": None, "problems": problems}
    settings, scores = without_paths(run), run.read_json("evaluation.json")
    return {
        "run": run.id,
        "name": settings.name,
        "status": run.status,
        "model": settings.model.name,
        "quantization": settings.model.quantization,
        "data": settings.data.title,
        "method": settings.method.name,
        "scores": scores and {key: value for key, value in scores.items() if key != "examples"},
        "problems": problems,
    }


def summaries(ids: list[str]) -> list[dict]:
    """The runs with these ids that still exist, and the example."""
    listed = []
    for name in dict.fromkeys([*ids, *([EXAMPLE] if has_example() else [])]):
        with suppress(TunerError):  # there is no such run any more
            listed.append(summary(open_run(name)))
    return listed
