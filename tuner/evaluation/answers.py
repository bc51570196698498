"""Answers to the held-out prompts, and their scores.

Base and adapter answer every held-out prompt, in one batch if PEFT can switch adapters row by row. Answers are kept
in the run as they come, so that scoring resumes in the next window.
"""

import gc
import time
from collections.abc import Iterator
from typing import Protocol

import torch
from datasets import load_from_disk

from tuner import runs
from tuner.errors import TunerError
from tuner.evaluation.score import score
from tuner.inference import generate
from tuner.inference.variants import LoadedVariants, load_variants
from tuner.metrics import Metric, chosen
from tuner.models.device import device_type
from tuner.models.device_errors import is_out_of_memory
from tuner.models.losses import heldout_loss
from tuner.planning.pace import PACES, pace_key, remember
from tuner.runs import Run

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
    metrics = chosen(run.recipe.evaluation.metrics, loaded.base.row)
    answers = run.read_json(ANSWERS) or {}
    rows = heldout_rows(run)[: run.recipe.evaluation.rows]
    yield from _answer_all(run, rows, answers, loaded, stop)
    if stop and stop.is_set():
        yield run.append({"event": "unscored", "reason": stop.reason, "row": len(answers), "rows": len(rows)})
        return
    scores = _scored(metrics, rows, [answers[str(i)] for i in range(len(rows))])
    for variant, loss in _losses(run, loaded).items():
        scores[variant]["loss"] = loss
    run.write_json("evaluation.json", scores)
    (run.path / ANSWERS).unlink(missing_ok=True)
    yield run.append({"event": "evaluation", **{key: value for key, value in scores.items() if key != "examples"}})


def _losses(run: Run, loaded: LoadedVariants) -> dict[str, float]:
    """Held-out loss by variant, in nats per token."""
    rows = load_from_disk(str(run.data / "heldout"))
    rows = rows.select(range(min(len(rows), run.recipe.evaluation.rows)))
    # What fits in training fits here.
    size = (run.last_event("micro_batch") or {"rows": run.plan["settings"]["batch_size"]})["rows"]
    padding = loaded.tokenizer.pad_token_id or 0
    losses = {}
    for active in loaded.sharing_base:
        for variant in active.variants:
            with active.model_for(variant) as model:
                losses[variant] = round(heldout_loss(loaded.base.row.objective, model, rows, size, padding), 5)
    return losses


def _answer_all(
    run: Run, rows: list[dict], answers: dict[str, dict], loaded: LoadedVariants, stop: Stop | None
) -> Iterator[dict]:
    """Fill in `answers`, row number to text by variant, and keep them in the run."""
    # Rows of similar length together need the least padding.
    order = sorted(range(len(rows)), key=lambda i: len(str(rows[i]["messages"])))
    unanswered = [i for i in order if str(i) not in answers]
    ends = tuple(run.plan.get("stop_ids", ()))
    sampling = generate.Sampling(max_new_tokens=run.recipe.evaluation.max_new_tokens, ends=ends)
    size = _batch_size(run)
    while unanswered:
        yield run.append({"event": "evaluating", "row": len(answers), "rows": len(rows)})
        batch = unanswered[:size]
        began = time.monotonic()
        texts = _answer_if_they_fit([rows[i] for i in batch], loaded, sampling, stop)
        if stop and stop.is_set():
            return  # the answers of this batch may be cut short
        if texts is None:
            size = len(batch) // 2
            continue
        del unanswered[:size]
        answers |= {str(i): answer for i, answer in zip(batch, texts)}
        run.write_json(ANSWERS, answers)
        pace = round((time.monotonic() - began) / len(batch), 4)
        key = pace_key(device_type(), run.recipe)
        remember(runs.RUNS / PACES, key, {"seconds_per_answer": pace})
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


def _answer_if_they_fit(rows: list[dict], *arguments) -> list[dict[str, str]] | None:
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
    rows: list[dict], loaded: LoadedVariants, sampling: generate.Sampling, stop: Stop | None
) -> list[dict[str, str]]:
    """The answers of base and adapter to each row."""
    answers: list[dict[str, str]] = [{} for _ in rows]
    for active in loaded.sharing_base:
        variants = [v for v in active.variants for _ in rows]
        conversations = [row.get("text", row["messages"]) for row in rows] * len(active.variants)
        texts = generate.answer(loaded, active, variants, conversations, sampling, stop=stop)
        for number, (variant, text) in enumerate(zip(variants, texts)):
            answers[number % len(rows)][variant] = text
    return answers


def _scored(metrics: list[Metric], rows: list[dict], answers: list[dict[str, str]]) -> dict:
    if not rows:
        # Plain text has no prompts to answer: it is judged by its loss alone.
        return {"metric": metrics[0].name, "rows": 0, "base": {}, "adapter": {}, "gain": None, "examples": []}
    scores = score(metrics, [row["reference"] for row in rows], answers)
    each = scores.pop("each")
    scores["examples"] = [
        {
            "prompt": row["messages"][-1]["content"],
            "reference": row["reference"],
            **answer,
            **{f"{variant}_{scores['metric']}": each[variant][i] for variant in each},
        }
        for i, (row, answer) in enumerate(zip(rows[:SHOWN], answers))
    ]
    return scores
