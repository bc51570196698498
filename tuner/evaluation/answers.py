"""Answers to the held-out prompts, and their scores.

Base and adapter answer every held-out prompt, in one batch if PEFT can switch adapters row by row. Answers are kept
in the run as they come, so that scoring resumes in the next window.
"""

import gc
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol

import torch
from datasets import load_from_disk

from tuner import runs
from tuner.data.baseline import baseline_answer
from tuner.data.chat import without_thought
from tuner.data.tags import spelled_letters
from tuner.errors import TunerError
from tuner.evaluation.facts import facts_of
from tuner.evaluation.score import Losses, score
from tuner.inference import generate
from tuner.inference.variants import BASE, LoadedVariants, load_variants
from tuner.metrics import Metric, chosen
from tuner.models.device import device_type
from tuner.models.device_errors import is_out_of_memory
from tuner.models.ends import end_tokens
from tuner.models.losses import row_losses
from tuner.planning.answering import UNCUT, answer_limit
from tuner.planning.heads import find_rival
from tuner.planning.pace import ANSWER_PACES, PACES, pace_key, remember
from tuner.runs import Run
from tuner.tasks import task_of

VARIANTS = ("base", "adapter")
BATCH = 32  # prompts answered together by base and adapter
ANSWERS = "answers.json"  # of an unfinished evaluation
SHOWN = 8  # rows kept with their answers for the page and the card


class Stop(Protocol):
    """Says whether to leave early, and why."""

    @property
    def reason(self) -> str | None:
        """stopped or window; None while there is time."""

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
    yield from _answer_all(run, rows, answers, loaded, stop)
    if stop and stop.is_set():
        yield run.append({"event": "unscored", "reason": stop.reason, "row": len(answers), "rows": len(rows)})
        return
    given = [answers[str(i)] | _baseline(run, row) for i, row in enumerate(rows)]
    scores = _scored(metrics, rows, given, _losses(run, loaded)) | _cut(run, rows, given) | facts_of(run)
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


def _losses(run: Run, loaded: LoadedVariants) -> dict[str, tuple[list[float], list[int]]]:
    """By variant the nats and the labels of each held-out row."""
    rows = load_from_disk(str(run.data / "heldout"))
    rows = rows.select(range(min(len(rows), run.recipe.evaluation.rows)))
    # What fits in training fits here.
    size = (run.last_event("micro_batch") or {"rows": run.plan["settings"]["batch_size"]})["rows"]
    padding = loaded.tokenizer.pad_token_id or 0
    losses = {}
    for active in loaded.sharing_base:
        for variant in active.variants:
            with active.model_for(variant) as model:
                losses[variant] = row_losses(loaded.base.row.objective, model, rows, size, padding)
    return losses


def _answer_all(
    run: Run, rows: list[dict], answers: dict[str, dict], loaded: LoadedVariants, stop: Stop | None
) -> Iterator[dict]:
    """Fill in `answers`, row number to text by variant, and keep them in the run."""
    # Rows of similar length together need the least padding.
    order = sorted(range(len(rows)), key=lambda i: len(str(rows[i]["messages"])))
    unanswered = [i for i in order if str(i) not in answers]
    sampling = generate.Sampling(max_new_tokens=answer_limit(run), ends=_ends(run, loaded))
    # An encoder's texts are cut as in training; a conversation may be as long as the context allows.
    longest = UNCUT if loaded.base.row.chats else run.plan["settings"]["max_length"]
    size = _batch_size(run)
    while unanswered:
        yield run.append({"event": "evaluating", "row": len(answers), "rows": len(rows)})
        batch = unanswered[:size]
        began = time.monotonic()
        answered = _answer_if_they_fit([rows[i] for i in batch], loaded, sampling, longest, stop)
        if stop and stop.is_set():
            return  # the answers of this batch may be cut short
        if answered is None:
            size = len(batch) // 2
            continue
        del unanswered[:size]
        answers |= {str(i): answer for i, answer in zip(batch, answered)}
        run.write_json(ANSWERS, answers)
        pace = round((time.monotonic() - began) / len(batch), 4)
        key = pace_key(device_type(), run.recipe)
        remember(runs.RUNS / PACES, key, {ANSWER_PACES["baseline" not in run.plan]: pace}, run.id)
        yield run.append({"event": "answered", "row": len(answers), "seconds_per_answer": pace})


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
            "can chat with it. To get a score, train again with a smaller evaluation.max_new_tokens."
        )
    return BATCH >> cuts


def heldout_rows(run: Run) -> list[dict]:
    """The held-out prompts with their references. Raises TunerError if the run has none."""
    rows = run.heldout()
    if rows is None:
        raise TunerError(f"Run {run.id} has no held-out rows. Train its recipe again in a new run.")
    return rows


def _answer_if_they_fit(rows: list[dict], *arguments) -> list[dict] | None:
    """The answers of base and adapter; None if they ran out of memory together. Raises what a single row raises."""
    try:
        return _answer(rows, *arguments)
    except RuntimeError as error:
        if len(rows) == 1 or not is_out_of_memory(error):
            raise
    # Outside the handler: the exception's frames hold the key-value cache.
    gc.collect()
    torch.cuda.empty_cache()
    return None


def _answer(
    rows: list[dict], loaded: LoadedVariants, sampling: generate.Sampling, longest: int, stop: Stop | None
) -> list[dict]:
    """The answers of base and adapter to each row, and what was cut: {"base": ..., "adapter": ...} and more."""
    answers: list[dict] = [{} for _ in rows]
    for active in loaded.sharing_base:
        variants = [v for v in active.variants for _ in rows]
        conversations = [row.get("text", row["messages"]) for row in rows] * len(active.variants)
        written = generate.answer(loaded, active, variants, conversations, sampling, longest=longest, stop=stop)
        for number, (variant, answer) in enumerate(zip(variants, written)):
            row = answers[number % len(rows)]
            row[variant] = answer.text
            if answer.is_cut:
                row.setdefault("cut", []).append(variant)
            if answer.lost:
                row["lost"] = answer.lost
    return answers


def _ends(run: Run, loaded: LoadedVariants) -> tuple[int, ...]:
    """The tokens that end an answer. Runs of earlier versions left out those that the model names."""
    if not loaded.base.row.generates or "end_tokens" in run.plan:
        return tuple(run.plan.get("end_tokens", ()))
    return tuple(end_tokens(loaded.base, loaded.tokenizer, known=run.plan.get("stop_ids", ())))


def _cut(run: Run, rows: list[dict], answers: list[dict]) -> dict:
    """How many answers reached the limit of tokens, and how many prompts were cut, now or when the run was prepared;
    nothing if none was."""
    limited = {variant: sum(variant in answer.get("cut", ()) for answer in answers) for variant in VARIANTS}
    prompts = sum("lost" in answer or row.get("cut", False) for row, answer in zip(rows, answers, strict=True))
    if not prompts and not any(limited.values()):
        return {}
    return {"cut": {"max_new_tokens": answer_limit(run), "answers": limited, "prompts": prompts}}


def _scored(metrics: list[Metric], rows: list[dict], answers: list[dict], losses: Losses) -> dict:
    # Thoughts are no part of an answer, and rows that were prepared earlier may have them in their references.
    final = [{**a, **{v: without_thought(a[v]) for v in VARIANTS}} for a in answers]
    right = [[*map(without_thought, row.get("references", ()))] or without_thought(row["reference"]) for row in rows]
    scores = score(metrics, right, final, losses)
    each = scores.pop("each")[scores["metric"]]
    scores["examples"] = [
        {
            "prompt": row["messages"][-1]["content"],
            "reference": row["reference"],
            **{variant: answer[variant] for variant in VARIANTS},
            **{f"{variant}_{scores['metric']}": each[variant][i] for variant in each},
        }
        for i, (row, answer) in enumerate(zip(rows[:SHOWN], answers))
    ]
    return scores
