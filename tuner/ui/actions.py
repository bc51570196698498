"""What a visitor can do, as plain functions: the tabs and the named endpoints call the same ones.

Runs are known by their ids, which can't be guessed: who has the id may see, stop and push the run. Nothing here draws,
and nothing heavy is imported before it is needed.
"""

import logging
import math
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from tuner import gpu, recipe, runs, runs_cleanup
from tuner.data import sources
from tuner.data.parse import Table
from tuner.errors import TunerError
from tuner.methods.registry import METHODS
from tuner.methods.spec import MethodRow
from tuner.recipe import Recipe
from tuner.runs import Run
from tuner.tasks import TaskRow, task_of
from tuner.ui import progress, run_queue

log = logging.getLogger(__name__)

EXAMPLE = "example"  # the id of the shipped, finished run
PREVIEWED = 3  # rows
BASE, ADAPTER, MERGED = "base", "adapter", "merged"
MOST_COMPARED = 3  # runs whose adapters answer beside the base
# Kind, least and most of what a visitor may set; 0.01 because a top-p of 0 leaves no token.
SAMPLING = {
    "temperature": (float, 0, 5),
    "top_p": (float, 0.01, 1),
    "max_new_tokens": (int, 1, 2048),
    "seed": (int, 0, 2**31 - 1),
}


def starting_recipe() -> Recipe:
    """The recipe that the page starts with: the shipped one."""
    return Recipe.load("corporate") if (recipe.EXAMPLES / "corporate.yaml").is_file() else Recipe()


def open_run(run: str) -> Run:
    """The run with this id; no path is followed. Raises TunerError."""
    return runs.open_run((run or "").strip(), local=False)


def own_run(run: str) -> Run:
    """The same, for what changes the run: the shipped example is everybody's. Raises TunerError."""
    if run == EXAMPLE:
        raise TunerError("The example run belongs to everybody. Train one of your own to change it.")
    return open_run(run)


def install_example() -> None:
    """Copy the shipped finished run into the runs' folder, where it is missing."""
    source, target = recipe.EXAMPLES / "finished", runs.RUNS / EXAMPLE
    if source.is_dir() and not target.exists():
        runs.RUNS.mkdir(parents=True, exist_ok=True)
        beside = runs.RUNS / f".{EXAMPLE}-{secrets.token_hex(4)}"
        shutil.copytree(source, beside)
        try:
            beside.rename(target)
        except OSError:  # another process was quicker
            shutil.rmtree(beside)


def has_example() -> bool:
    return (runs.RUNS / EXAMPLE / "recipe.yaml").is_file()


def read_rows(file: str | None, pasted: str | None, max_rows: int | None) -> Table | None:
    """The uploaded or pasted rows; None where the recipe's own source is meant. Raises TunerError."""
    if file:
        return sources.read_file(file, Path(file).name, max_rows)
    return sources.read_pasted(pasted, max_rows) if pasted and pasted.strip() else None


def known_plan(asked: Recipe) -> dict | None:
    """The example run's plan where this is its recipe: a first visitor need not wait for anything to be imported."""
    if not has_example():
        return None
    example = open_run(EXAMPLE)
    same = asked.model_copy(update={"name": None}) == example.recipe.model_copy(update={"name": None})
    return example.plan if same and example.plan else None


def is_at_hand(asked: Recipe) -> bool:
    """Whether base model and rows can be read without fetching anything."""
    from huggingface_hub import try_to_load_from_cache

    from tuner.models.fetch import is_shipped

    model, source = asked.model, asked.data.source
    if "/" in source:
        return False
    try:
        cached = is_shipped(model.name) or isinstance(
            try_to_load_from_cache(model.name, "config.json", revision=model.revision), str
        )
    except ValueError:  # no name that a Hub could have: checking it says so
        cached = True
    return cached


def check(asked: Recipe, table: Table | None = None):
    """plan.check for a visitor: no path is followed. Raises TunerError with all problems."""
    from tuner.planning import plan

    gpu.import_core()
    return plan.check(asked, table, local=False)


def preview(asked: Recipe, table: Table | None = None) -> dict:
    """What the model will see: rows in pieces, the histogram of lengths, and what is cut. Raises TunerError."""
    from tuner.data.encode import preview_pieces
    from tuner.data.tokens import histogram

    checked = check(asked, table)
    train, base, tokenizer = checked.train, checked.base, checked.tokenizer
    return {
        "rows": [preview_pieces(base.task, row, tokenizer, base.labels) for row in train.rows[:PREVIEWED]],
        "histogram": histogram(train.lengths),
        "max_length": train.max_length,
        "longest": max(train.lengths),
        "truncated": train.truncated,
        "lost_tokens": train.lost_tokens,
        "warning": train.warning,
        "format": checked.format.reason,
    }


def prepare(asked: Recipe, visitor: str, table: Table | None = None, *, signed_in: bool = False) -> Run:
    """A run folder of the visitor's, which waits for its turn and then trains. Raises TunerError with all problems."""
    from tuner.planning import plan

    gpu.import_core()
    if gone := runs_cleanup.make_room(keep=frozenset({EXAMPLE, *run_queue.queue.held()})):
        log.info("old runs made room for new ones: %s", len(gone))
    run = plan.prepare(asked, table, local=False)
    run_queue.start(run, visitor, {"event": "queued", "signed_in": signed_in})
    return run


def resume(run: str, visitor: str) -> Run:
    """Let a run wait for its turn again. Raises TunerError where there is nothing to go on with."""
    opened = own_run(run)
    if progress.read(opened).phase == "finished":
        raise TunerError(f"Run {run} has finished.")
    if opened.is_training or run_queue.queue.holds(run):
        raise TunerError(f"Run {run} is in training already, or waits for its turn.")
    run_queue.start(opened, visitor, {"event": "queued"})
    return opened


def watch(run: str, visitor: str) -> Run:
    """The run, for somebody who looks on: as long as somebody does, it goes on in the next window by itself."""
    opened = open_run(run)
    run_queue.goes_on(opened, visitor)
    return opened


def stop(run: str) -> str:
    """Stop after the step at hand; what was learned is kept. Raises TunerError."""
    opened = own_run(run)
    starting = run_queue.queue.holds(run) and not run_queue.queue.place(run)
    if not opened.is_training and not starting:
        if run_queue.withdraw(opened):
            return "withdrawn"
        raise TunerError(f"Run {run} is not in training, so there is nothing to stop.")
    opened.stop()
    return "stopping"


def delete(run: str) -> None:
    """Take the run away for good. Raises TunerError while it trains."""
    opened = own_run(run)
    if opened.is_training or run_queue.queue.holds(run):
        raise TunerError(f"Run {run} is in training. Stop it first, then delete it.")
    shutil.rmtree(opened.path)


def merge(run: str) -> dict:
    """Merge the run's adapter into the 16-bit base, once; returns the merge check. Raises TunerError."""
    opened = open_run(run)
    gpu.import_core()
    return gpu.merge(opened)


@dataclass(frozen=True)
class Party:
    """Who answers side by side: a base, adapters on it, and the merged model of a run that is alone. By variant."""

    adapters: dict[str, Run]
    merged: dict[str, Run]

    @property
    def variants(self) -> list[str]:
        return [BASE, *self.adapters, *self.merged]

    @property
    def task(self) -> TaskRow:
        return task_of(next(iter(self.adapters.values())).plan)


def party(ids: list[str]) -> Party:
    """Base, adapter and merged model of one run, or the base and each adapter of several. Raises TunerError.

    A run's own variants are "adapter" and, where it can be merged, "merged"; those of several are known by their ids.
    """
    chosen = {run.id: run for run in map(open_run, ids)}
    if not chosen:
        raise TunerError("No run is chosen. Train one first, or take the example.")
    if len(chosen) > MOST_COMPARED:
        raise TunerError(f"{len(chosen)} runs are too many to stand side by side. Choose at most {MOST_COMPARED}.")
    if len(chosen) == 1:
        (run,) = chosen.values()
        return Party({ADAPTER: run}, {MERGED: run} if can_merge(run) else {})
    gpu.import_core()
    from tuner.inference.variants import load_variants

    load_variants(chosen)  # loads no weights, and says what does not fit before a GPU is asked for
    return Party(chosen, {})


def can_merge(run: Run) -> bool:
    """Whether there can be a merged model of the run."""
    row = METHODS[run.recipe.method.name]
    # Only where it depends on the model need anything heavy be imported.
    if not row.mergeable or row.mergeable_on is MethodRow.mergeable_on:
        return row.mergeable
    gpu.import_core()
    from tuner.inference import merge

    return merge.is_mergeable(run)


def chat(those: Party, conversations: dict[str, list[dict]], **sampling) -> Iterator[dict[str, str]]:
    """The answers so far, by variant; what has to be merged for them is merged first, once. Raises TunerError."""
    sampling = _checked(sampling)
    for turn in chain.from_iterable(conversations.values()):
        if turn.get("role") not in ("system", "user", "assistant") or not isinstance(turn.get("content"), str):
            raise TunerError('A turn is {"role": "user" or "assistant", "content": text}. Mend the history.')
    gpu.import_core()
    for run in those.merged.values():
        gpu.merge(run)
    merged = {variant: run.merged for variant, run in those.merged.items()}
    return gpu.chat(those.adapters, merged, conversations, **sampling)


def _checked(sampling: dict) -> dict:
    """Sampling settings as the numbers they must be. Raises TunerError with all problems."""
    checked, problems = {}, []
    for name, (kind, low, high) in SAMPLING.items():
        try:
            checked[name] = kind(sampling[name])
        except (TypeError, ValueError, OverflowError):
            checked[name] = math.nan
        if not low <= checked[name] <= high:
            problems.append(f"{name}: {sampling[name]} can't be used. Give a number from {low:g} to {high:g}.")
    if problems:
        raise TunerError(*problems)
    return checked


def push(run: str, repository: str, token: str | None, private: bool) -> str:
    """Push the adapter with its card; returns its address. Raises TunerError."""
    from tuner.hub import push

    return push.push(open_run(run), repository or "", token=(token or "").strip() or None, private=private)


def summary(run: Run) -> dict:
    """A run in a few plain values."""
    asked, scores = run.recipe, run.read_json("evaluation.json")
    return {
        "run": run.id,
        "name": asked.name,
        "status": run.status,
        "model": asked.model.name,
        "quantization": asked.model.quantization,
        "data": asked.data.source,
        "method": asked.method.name,
        "scores": scores and {key: value for key, value in scores.items() if key != "examples"},
    }


def summaries(ids: list[str]) -> list[dict]:
    """The runs with these ids that are still there, and the example."""
    found = []
    for name in dict.fromkeys([*ids, *([EXAMPLE] if has_example() else [])]):
        try:
            found.append(summary(open_run(name)))
        except TunerError:
            continue
    return found
