"""Held-out metrics with their uncertainty: did it help, and how sure is that?

Every held-out prompt is answered by base and adapter in one batch. ROUGE-L is Lin's longest-common-subsequence
F-measure (https://aclanthology.org/W04-1013) as computed by Google's `rouge_score`; intervals are 95% percentile
bootstraps over the rows, and the gain's is paired.
"""

import json
import re
from collections.abc import Iterator

import numpy as np
import torch
from datasets import load_from_disk

from tuner import generate
from tuner.errors import TunerError
from tuner.runs import Run

BATCH = 32  # prompts answered together, by base and adapter
RESAMPLES = 2000
SHOWN = 8  # rows kept with their answers for the page and the card


def evaluate(run: Run, loaded: generate.Loaded | None = None) -> Iterator[dict]:
    """Answer the held-out rows and score them; yields progress, then {"event": "evaluation", ...}, which is also
    written down."""
    rows = heldout_rows(run)[: run.recipe.evaluation.rows]
    loaded = loaded or generate.load(run)
    answers: dict[int, dict[str, str]] = {}
    # Rows of like length together waste least on padding.
    order = sorted(range(len(rows)), key=lambda i: len(str(rows[i]["messages"])))
    for start in range(0, len(order), BATCH):
        yield run.append({"event": "evaluating", "row": start, "rows": len(rows)})
        batch = order[start : start + BATCH]
        answers |= dict(zip(batch, _answer([rows[i] for i in batch], loaded, run.recipe.evaluation.max_new_tokens)))
    # Plain text has no prompts to answer: it is judged by its loss alone.
    result = (
        _score(rows, [answers[i] for i in range(len(rows))])
        if rows
        else {"rows": 0, "base": {}, "adapter": {}, "gain": None, "examples": []}
    )
    tokenised = load_from_disk(str(run.data / "heldout"))
    tokenised = tokenised.select(range(min(len(tokenised), run.recipe.evaluation.rows)))
    result["adapter"]["loss"] = round(heldout_loss(loaded.model, tokenised, BATCH), 5)
    with loaded.model.disable_adapter():
        result["base"]["loss"] = round(heldout_loss(loaded.model, tokenised, BATCH), 5)
    run.write_json("evaluation.json", result)
    yield run.append({"event": "evaluation", **{k: v for k, v in result.items() if k != "examples"}})


def heldout_rows(run: Run) -> list[dict]:
    """The held-out prompts with their references. Raises TunerError where the run has none."""
    try:
        lines = (run.data / "heldout.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise TunerError(f"Run {run.id} holds no held-out rows. Train it anew.") from None
    return [json.loads(line) for line in lines]


@torch.inference_mode()
def heldout_loss(model, rows, batch_size: int) -> float:
    """Mean cross-entropy over the trained tokens of `rows` (input_ids, labels), in nats a token."""
    total, count = 0.0, 0
    device = next(model.parameters()).device
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
    for start in range(0, len(order), batch_size):
        batch = [rows[i] for i in order[start : start + batch_size]]
        longest = max(len(r["input_ids"]) for r in batch)
        ids, labels, mask = (torch.tensor(x, device=device) for x in zip(*(_padded(r, longest) for r in batch)))
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1].float()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
        total, count = total + loss.item(), count + int((labels[:, 1:] != -100).sum())
    return total / max(1, count)


def _padded(row: dict, longest: int) -> tuple[list[int], list[int], list[int]]:
    n = len(row["input_ids"])
    gap = longest - n
    return row["input_ids"] + [0] * gap, row["labels"] + [-100] * gap, [1] * n + [0] * gap


def _answer(rows: list[dict], loaded: generate.Loaded, max_new_tokens: int) -> list[dict[str, str]]:
    from tuner.data import render_prompt

    prompts = [render_prompt(row["messages"], loaded.tokenizer) for row in rows]
    names = [generate.ADAPTER_NAMES[v] for v in ("base", "adapter") for _ in rows]
    sampling = generate.Sampling(max_new_tokens=max_new_tokens)
    texts = generate.generate(loaded.model, loaded.tokenizer, prompts * 2, sampling, adapter_names=names)
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
