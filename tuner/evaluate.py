"""Held-out metrics with their uncertainty: did it help, and how sure is that?

Every held-out prompt is answered by base and adapter in one batch. ROUGE-L is Lin's longest-common-subsequence
F-measure (https://aclanthology.org/W04-1013) as computed by Google's `rouge_score`; intervals are 95% percentile
bootstraps over the rows, and the gain's is paired.
"""

import json
import re
import time
from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
from datasets import load_from_disk

from tuner import estimate, generate, models, runs
from tuner.errors import TunerError
from tuner.losses import heldout_loss
from tuner.runs import Run

BATCH = 32  # prompts answered together, by base and adapter
RESAMPLES = 2000
ANSWERS = "answers.json"  # of an evaluation that is not done
SHOWN = 8  # rows kept with their answers for the page and the card


def evaluate(run: Run, loaded: generate.Loaded | None = None, halt=None) -> Iterator[dict]:
    """Answer the held-out rows and score them; yields progress, then {"event": "evaluation", ...}, which is also
    written down.

    Where `halt` (of train) is set before the end, the answers so far are kept, and the next call goes on with them.
    """
    with generate.attached(run) if loaded is None else nullcontext(loaded) as loaded:
        answers = run.read_json(ANSWERS) or {}
        rows = heldout_rows(run)[: run.recipe.evaluation.rows]
        yield from _answer_all(run, rows, answers, loaded, halt)
        if halt and halt.is_set():
            told = {"reason": halt.reason, "row": len(answers), "rows": len(rows)}
            yield run.append({"event": "unscored", **told})
            return
        # Plain text has no prompts to answer: it is judged by its loss alone.
        result = (
            _score(rows, [answers[str(i)] for i in range(len(rows))])
            if rows
            else {"rows": 0, "base": {}, "adapter": {}, "gain": None, "examples": []}
        )
        tokenised = load_from_disk(str(run.data / "heldout"))
        tokenised = tokenised.select(range(min(len(tokenised), run.recipe.evaluation.rows)))
        size = run.plan["settings"]["batch_size"]  # what fits in training fits here
        result["adapter"]["loss"] = round(heldout_loss(loaded.model, tokenised, size), 5)
        with loaded.model.disable_adapter():
            result["base"]["loss"] = round(heldout_loss(loaded.model, tokenised, size), 5)
    run.write_json("evaluation.json", result)
    (run.path / ANSWERS).unlink(missing_ok=True)
    yield run.append({"event": "evaluation", **{k: v for k, v in result.items() if k != "examples"}})


def _answer_all(run: Run, rows: list[dict], answers: dict[str, dict], loaded, halt) -> Iterator[dict]:
    """Fill `answers`, row number to text by variant, and keep them in the run."""
    # Rows of like length together waste least on padding.
    order = sorted(range(len(rows)), key=lambda i: len(str(rows[i]["messages"])))
    left = [i for i in order if str(i) not in answers]
    size = _batch_size(run)
    for start in range(0, len(left), size):
        yield run.append({"event": "evaluating", "row": len(answers), "rows": len(rows)})
        batch = left[start : start + size]
        began = time.monotonic()
        found = _answer([rows[i] for i in batch], loaded, run.recipe.evaluation.max_new_tokens, halt)
        if halt and halt.is_set():
            return  # the answers of this batch may be cut short
        answers |= {str(i): answer for i, answer in zip(batch, found)}
        run.write_json(ANSWERS, answers)
        pace = round((time.monotonic() - began) / len(batch), 4)
        key = estimate.pace_key(models.device(), run.recipe)
        estimate.remember(runs.RUNS / estimate.PACES, key, {"seconds_per_answer": pace})
        yield run.append({"event": "answered", "row": len(answers), "seconds_per_answer": pace})


def _batch_size(run: Run) -> int:
    """Prompts answered together: half as many after each window that was over before a batch was answered.

    Raises TunerError where a window is too short for a single one.
    """
    cuts = 0
    for event in reversed(run.events()):
        if event["event"] in ("answered", "queued"):
            break
        cuts += event["event"] == "unscored" and event["reason"] == "window"
    if BATCH >> cuts < 1:
        raise TunerError(
            f"Run {run.id} can't be scored: one answer takes longer than a window. It is trained, and can be chatted "
            "with; to score it, train it anew with fewer evaluation.max_new_tokens."
        )
    return BATCH >> cuts


def heldout_rows(run: Run) -> list[dict]:
    """The held-out prompts with their references. Raises TunerError where the run has none."""
    try:
        lines = (run.data / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise TunerError(f"Run {run.id} holds no held-out rows. Train it anew.") from None
    return [json.loads(line) for line in lines]


def _answer(rows: list[dict], loaded: generate.Loaded, max_new_tokens: int, halt) -> list[dict[str, str]]:
    from tuner.data import render_prompt

    prompts = [render_prompt(row["messages"], loaded.tokenizer) for row in rows]
    names = [generate.ADAPTER_NAMES[v] for v in ("base", "adapter") for _ in rows]
    sampling = generate.Sampling(max_new_tokens=max_new_tokens)
    texts = generate.generate(loaded.model, loaded.tokenizer, prompts * 2, sampling, adapter_names=names, stop=halt)
    return [{"base": base, "adapter": adapter} for base, adapter in zip(texts[: len(rows)], texts[len(rows) :])]


def _score(rows: list[dict], answers: list[dict[str, str]]) -> dict:
    scores = {v: np.array([rouge_l(r["reference"], a[v]) for r, a in zip(rows, answers)]) for v in ("base", "adapter")}
    result: dict = {"rows": len(rows)}
    for variant, values in scores.items():
        low, high = interval(values)
        exact = np.mean([a[variant].strip() == r["reference"].strip() for r, a in zip(rows, answers)])
        result[variant] = {
            "rougeL": round(float(values.mean()), 4),
            "rougeL_low": low,
            "rougeL_high": high,
            "exact_match": round(float(exact), 4),
        }
    gains = scores["adapter"] - scores["base"]
    low, high = interval(gains)
    result["gain"] = {"rougeL": round(float(gains.mean()), 4), "low": low, "high": high}
    result["examples"] = [
        {
            "prompt": row["messages"][-1]["content"],
            "reference": row["reference"],
            **answer,
            "base_rougeL": round(float(scores["base"][i]), 4),
            "adapter_rougeL": round(float(scores["adapter"][i]), 4),
        }
        for i, (row, answer) in enumerate(zip(rows[:SHOWN], answers))
    ]
    return result


def rouge_l(reference: str, answer: str) -> float:
    """ROUGE-L F-measure, 0 to 1, over words in any script."""
    from rouge_score import rouge_scorer

    return rouge_scorer.RougeScorer(["rougeL"], tokenizer=_Words()).score(reference, answer)["rougeL"].fmeasure


class _Words:
    """rouge_score's own tokenizer drops everything that is not a-z or 0-9, and with it most of the world's writing."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"\w+", text.lower())


def interval(values: np.ndarray) -> tuple[float, float]:
    """The mean's 95% percentile bootstrap interval."""
    means = np.random.default_rng(0).choice(values, (RESAMPLES, len(values))).mean(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return round(float(low), 4), round(float(high), 4)
