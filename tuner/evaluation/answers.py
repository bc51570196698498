"""Answers to the held-out prompts, and their scores.

Base and adapter answer every held-out prompt, in one batch if PEFT can switch adapters row by row. The base answers it
with examples in the prompt as well, in batches of their own, because those prompts are longer. Answers are kept in the
run as they come, so that scoring resumes in the next window.
"""

import gc
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import accumulate, product
from math import inf
from typing import Protocol

import numpy as np
import torch
from datasets import Dataset, load_from_disk

from tuner import runs
from tuner.data.baseline import baseline_answer
from tuner.data.tags import spelled_letters
from tuner.errors import TunerError
from tuner.evaluation import results
from tuner.evaluation.facts import facts_of
from tuner.evaluation.groups import Group, finished, next_batch, seconds_spent
from tuner.evaluation.score import Losses
from tuner.evaluation.untuned import Untuned
from tuner.inference import generate
from tuner.inference.variants import BASE, ActiveModel, LoadedVariants, load_variants
from tuner.metrics import FEWEST_ROWS, chosen
from tuner.models.device import device_type
from tuner.models.device_errors import is_out_of_memory
from tuner.models.ends import end_tokens
from tuner.models.losses import row_losses
from tuner.planning import few_shot
from tuner.planning.answering import UNCUT, answer_limit
from tuner.planning.heads import find_rival
from tuner.planning.pace import ANSWER_PACES, EXAMPLES_PACE, EXAMPLES_TOKENS, PACES, pace_key, remember
from tuner.runs import Run
from tuner.tasks import task_of

BATCH = 32  # rows answered together
ANSWERS = "answers.json"  # of an unfinished evaluation
NO_TIME = (
    "There was no time to answer with examples in the prompt (evaluation.seconds): it went to the base model and the "
    "adapter, since fewer than {fewest} of their answers would say nothing."
)
NO_MEMORY = (
    "The device has too little memory to answer with these examples in the prompt, even one row at a time. Set "
    "evaluation.few_shot to fewer."
)


class Stop(Protocol):
    """Says whether to leave early, and why."""

    @property
    def reason(self) -> str | None:
        """stopped or window; None while there is time."""

    @property
    def left(self) -> float:
        """Seconds until the window is over."""

    def is_set(self) -> bool:
        """Whether to leave now."""


def evaluate(run: Run, loaded: LoadedVariants | None = None, stop: Stop | None = None) -> Iterator[dict]:
    """Answer the held-out rows and score them; yields progress and at last {"event": "evaluation", ...}.

    The scores are also written to the run's evaluation.json. If `stop` is set before the end, the answers so far
    are kept, and the next call resumes there. Raises TunerError for metrics that don't exist or don't fit the task.
    """
    loaded = loaded or load_variants({"adapter": run})
    find_rival(run, loaded.base)
    if "baseline" in run.plan:  # what an untrained head answers says nothing, nor does its loss
        loaded = replace(loaded, sharing_base=[active for active in loaded.sharing_base if active.variants != (BASE,)])
    metrics = chosen(run.recipe.evaluation.metrics, loaded.base.row)
    answers = run.read_json(ANSWERS) or {}
    rows = heldout_rows(run)[: run.recipe.evaluation.rows]
    untuned = Untuned(run, loaded.base)
    untuned.copy_to(rows, answers)
    yield from _answer_all(run, rows, answers, loaded, stop)
    if stop and stop.is_set():
        done = len(finished(_groups(run, loaded, rows, answers), rows, answers))
        yield run.append({"event": "unscored", "reason": stop.reason, "row": done, "rows": len(rows)})
        return
    groups = _groups(run, loaded, rows, answers)
    names = [variant for group in groups for variant in group.variants]
    asked, rows = len(rows), rows[: len(finished(groups, rows, answers))]
    yield run.append({"event": "evaluating", "row": len(rows), "rows": asked})  # losses and scores are left
    given = [
        {key: value for key, value in answers[str(i)].items() if key in (*names, "cut", "lost", "costs")}
        | _baseline(run, row)
        for i, row in enumerate(rows)
    ]
    tokenized, parts = _tokenized(run, len(rows) or run.recipe.evaluation.rows)
    losses = _losses(run, loaded, tokenized, untuned)
    scores, answered = results.scores_of(metrics, rows, given, _together(losses, parts))
    scores |= results.cut_of(run, rows, given) | facts_of(run)
    if task_of(run.plan).generates and (costs := results.costs_of(given)):
        scores["costs"] = costs
        scores |= {"copied": copied} if (copied := untuned.sources(rows)) else {}
    if len(rows) < asked:
        scores["short"] = {"asked": asked, "seconds": run.recipe.evaluation.seconds}
    if "prompting" in run.plan and rows:
        is_dropped = "why_not" not in run.plan["prompting"] and not {*few_shot.VARIANTS} & {*names}
        why_not = NO_TIME.format(fewest=FEWEST_ROWS) if few_shot.VARIANTS[0] in rows[0] else NO_MEMORY
        scores["prompting"] = {"why_not": why_not} if is_dropped else run.plan["prompting"]
    if answered:
        results.write_rows(run, answered)
    untuned.keep(rows, given, tokenized, losses.get(BASE))
    run.write_json("evaluation.json", scores)
    (run.path / ANSWERS).unlink(missing_ok=True)
    yield run.append({"event": "evaluation", **{key: value for key, value in scores.items() if key != "examples"}})


def _baseline(run: Run, row: dict) -> dict[str, str]:
    """The answer that stands in for that of a base whose head is untrained."""
    label = run.plan.get("baseline")
    if label is None:
        return {}
    label = spelled_letters(run.plan.get("labels", ())).get(label, label)  # in runs of earlier versions
    return {"base": baseline_answer(task_of(run.plan).name, label, row["messages"][-1]["content"])}


def _tokenized(run: Run, number: int) -> tuple[Dataset, list[int]]:
    """The first held-out rows as they are learned from, and of how many of these each row consists: a conversation has
    one for each of its answers."""
    rows = load_from_disk(str(run.data / "heldout"))
    parts = run.plan.get("heldout_parts", [1] * len(rows))[:number]
    return rows.select(range(sum(parts))), parts


def _losses(run: Run, loaded: LoadedVariants, rows: Dataset, untuned: Untuned) -> Losses:
    """By variant the nats and the labels of each of these rows."""
    # What fits in training fits here.
    size = (run.last_event("micro_batch") or {"rows": run.plan["settings"]["batch_size"]})["rows"]
    padding = loaded.tokenizer.pad_token_id or 0
    losses = {}
    for active in loaded.sharing_base:
        for variant in active.variants:
            if variant == BASE and (known := untuned.losses(rows)):
                losses[variant] = known
                continue
            with active.model_for(variant) as model:
                losses[variant] = row_losses(loaded.base.row.objective, model, rows, size, padding)
    return losses


def _together(losses: Losses, parts: list[int]) -> Losses:
    """The sums over the parts of each held-out row."""
    starts = [0, *accumulate(parts[:-1])]
    return {
        variant: tuple(np.add.reduceat(of_parts, starts).tolist() for of_parts in found)
        for variant, found in losses.items()
    }


def _groups(run: Run, loaded: LoadedVariants, rows: list[dict], answers: dict[str, dict]) -> list[Group]:
    """Who answers the rows. Examples in the prompt are dropped if there is no time for FEWEST_ROWS rows."""
    own = Group(tuple((a, a.variants) for a in loaded.sharing_base), ANSWER_PACES["baseline" not in run.plan])
    if not rows or not all(variant in row for row in rows for variant in few_shot.VARIANTS):
        return [own]
    active = next(active for active in loaded.sharing_base if BASE in active.variants)
    # Without the adapter, not beside it as in the batches of both, which costs time.
    alone = ActiveModel((BASE,), partial(active.model_for, BASE))
    groups, limit = [own, Group(((alone, few_shot.VARIANTS),), EXAMPLES_PACE)], run.recipe.evaluation.seconds
    fewest = min(FEWEST_ROWS, len(rows))
    is_late = limit is not None and seconds_spent(answers) >= limit and len(finished(groups, rows, answers)) < fewest
    return [own] if is_late else groups


def _answer_all(
    run: Run, rows: list[dict], answers: dict[str, dict], loaded: LoadedVariants, stop: Stop | None
) -> Iterator[dict]:
    """Fill in `answers`, row number to text by variant, and keep them in the run."""
    sampling = generate.Sampling(max_new_tokens=answer_limit(run), ends=_ends(run, loaded))
    # An encoder's texts are cut as in training; a conversation may be as long as the context allows.
    longest = UNCUT if loaded.base.row.chats else run.plan["settings"]["max_length"]
    size, key = _batch_size(run), pace_key(device_type(), run.recipe)
    while following := next_batch(
        run, rows, answers, groups := _groups(run, loaded, rows, answers), size, stop.left if stop else inf
    ):
        group, batch = following
        yield run.append({"event": "evaluating", "row": len(finished(groups, rows, answers)), "rows": len(rows)})
        reach = UNCUT if group.pace == EXAMPLES_PACE else longest  # examples were fitted when the run was prepared
        asked = [(rows[i], group.lacking(answers.get(str(i), {}))) for i in batch]
        answered = _answer_if_they_fit(asked, group, loaded, sampling, reach, stop)
        if stop and stop.is_set():
            return  # the answers of this batch may be cut short
        if answered is None:
            if len(batch) == 1:
                for row, variant in product(rows, few_shot.VARIANTS):
                    row.pop(variant, None)
            size = max(1, len(batch) // 2)
            continue
        for i, answer in zip(batch, answered, strict=True):
            answers[str(i)] = _joined(answers.get(str(i), {}), answer)
        run.write_json(ANSWERS, answers)
        remember(runs.RUNS / PACES, key, _pace(group, answers), run.id)
        pace = _pace(group, {str(i): answers[str(i)] for i in batch})[group.pace]
        yield run.append({"event": "answered", "row": len(finished(groups, rows, answers)), group.pace: pace})


def _pace(group: Group, answers: dict[str, dict]) -> dict[str, float]:
    """What is remembered of a group's answers, for estimates of later runs."""
    costs = [answer["costs"] for answer in answers.values() if {*group.variants} <= answer.get("costs", {}).keys()]
    tokens, _, seconds = (sum(cost[v][k] for cost in costs for v in group.variants) / len(costs) for k in range(3))
    length = {EXAMPLES_TOKENS: tokens / len(group.variants)} if group.pace == EXAMPLES_PACE else {}
    return {name: round(value, 4) for name, value in {group.pace: seconds, **length}.items()}


def _joined(one: dict, other: dict) -> dict:
    """What is kept of a row's answers, with that of other variants."""
    cut = [*one.get("cut", ()), *other.get("cut", ())]
    costs = {**one.get("costs", {}), **other["costs"]}
    return {**one, **other, "costs": costs} | ({"cut": cut} if cut else {})


def _batch_size(run: Run) -> int:
    """Prompts answered together: halved after each window that closed before a batch was answered.

    Raises TunerError if a window is too short for a single answer.
    """
    cuts = 0
    for event in reversed(run.events()):
        if event["event"] in ("answered", "queued"):
            break
        cuts += event["event"] == "unscored" and event["reason"] == "window"
    if BATCH >> cuts < 1:
        raise TunerError(
            f"Run {run.id} can't be scored: one answer takes longer than a window. Its adapter is trained, and you "
            "can chat with it. To get a score, train again with a smaller evaluation.max_new_tokens or "
            "evaluation.few_shot."
        )
    return BATCH >> cuts


def heldout_rows(run: Run) -> list[dict]:
    """The held-out prompts with their references. Raises TunerError if the run has none."""
    rows = run.heldout()
    if rows is None:
        raise TunerError(f"Run {run.id} has no held-out rows. Train its recipe again in a new run.")
    return rows


def _answer_if_they_fit(asked: list[tuple[dict, list[str]]], group: Group, *arguments) -> list[dict] | None:
    """The answers of a group; None if they ran out of memory together.

    Raises what a single row raises, but for one with examples in the prompt, without which there is still a score.
    """
    try:
        return _answer(asked, group, *arguments)
    except RuntimeError as error:
        if not is_out_of_memory(error) or (len(asked) == 1 and group.pace != EXAMPLES_PACE):
            raise
    # Outside the handler: the exception's frames hold the key-value cache.
    gc.collect()
    torch.cuda.empty_cache()
    return None


def _answer(
    asked: list[tuple[dict, list[str]]],
    group: Group,
    loaded: LoadedVariants,
    sampling: generate.Sampling,
    longest: int,
    stop: Stop | None,
) -> list[dict]:
    """The answers to each row by those of a group who are asked, what was cut, and what they cost: {"base": ...,
    "adapter": ...} and more."""
    answers: list[dict] = [{"costs": {}} for _ in asked]
    for active, names in group.actives:
        began = time.monotonic()
        pairs = [(name, number) for name in names for number, (_, lacking) in enumerate(asked) if name in lacking]
        if not pairs:
            continue
        rows = [asked[number][0] for _, number in pairs]
        variants = [name if name in active.variants else BASE for name, _ in pairs]
        prompts = [row.get(name, row.get("text", row["messages"])) for (name, _), row in zip(pairs, rows)]
        written = generate.answer(loaded, active, variants, prompts, sampling, longest=longest, stop=stop)
        seconds = round((time.monotonic() - began) / len(written), 6)
        for (name, number), answer in zip(pairs, written, strict=True):
            given = answers[number]
            given[name] = answer.text
            given["costs"][name] = [answer.read, answer.written, seconds]
            if answer.is_cut:
                given.setdefault("cut", []).append(name)
            if answer.lost:
                given["lost"] = answer.lost
    return answers


def _ends(run: Run, loaded: LoadedVariants) -> tuple[int, ...]:
    """The tokens that end an answer. Runs of earlier versions left out those that the model names."""
    if not loaded.base.row.generates or "end_tokens" in run.plan:
        return tuple(run.plan.get("end_tokens", ()))
    return tuple(end_tokens(loaded.base, loaded.tokenizer, known=run.plan.get("stop_ids", ())))
