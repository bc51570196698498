"""Held-out answers and their scores: did it help, and how sure is that?

Every held-out prompt is answered by base and adapter, in one batch where PEFT can tell them apart row by row. What the
metrics are stands in scoring.py.
"""

import json
import time
from collections.abc import Iterator

from datasets import load_from_disk

from tuner import runs
from tuner.errors import TunerError
from tuner.evaluation.metrics import Metric, chosen
from tuner.evaluation.score import score
from tuner.inference import generate
from tuner.models.device import device_type
from tuner.models.losses import heldout_loss
from tuner.planning.pace import PACES, pace_key, remember
from tuner.runs import Run

BATCH = 32  # prompts answered together, by base and adapter
ANSWERS = "answers.json"  # of an evaluation that is not done
SHOWN = 8  # rows kept with their answers for the page and the card


def evaluate(run: Run, loaded: generate.Loaded | None = None, halt=None) -> Iterator[dict]:
    """Answer the held-out rows and score them; yields progress, then {"event": "evaluation", ...}, which is also
    written down.

    Where `halt` (of train) is set before the end, the answers so far are kept, and the next call goes on with them.
    """
    loaded = loaded or generate.attached({"adapter": run})
    metrics = chosen(run.recipe.evaluation.metrics, loaded.base.row)
    answers = run.read_json(ANSWERS) or {}
    rows = heldout_rows(run)[: run.recipe.evaluation.rows]
    yield from _answer_all(run, rows, answers, loaded, halt)
    if halt and halt.is_set():
        told = {"reason": halt.reason, "row": len(answers), "rows": len(rows)}
        yield run.append({"event": "unscored", **told})
        return
    result = _scored(metrics, rows, [answers[str(i)] for i in range(len(rows))])
    tokenised = load_from_disk(str(run.data / "heldout"))
    tokenised = tokenised.select(range(min(len(tokenised), run.recipe.evaluation.rows)))
    size = run.plan["settings"]["batch_size"]  # what fits in training fits here
    for carrier in loaded.on_base:
        for variant in carrier.variants:
            with generate.as_variant(carrier, variant) as model:
                padding = loaded.tokenizer.pad_token_id or 0
                loss = heldout_loss(loaded.base.row.scores, model, tokenised, size, padding)
            result[variant]["loss"] = round(loss, 5)
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
        key = pace_key(device_type(), run.recipe)
        remember(runs.RUNS / PACES, key, {"seconds_per_answer": pace})
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
    sampling = generate.Sampling(max_new_tokens=max_new_tokens)
    found: list[dict[str, str]] = [{} for _ in rows]
    for carrier in loaded.on_base:
        variants = [v for v in carrier.variants for _ in rows]
        asked = [row["messages"] for row in rows] * len(carrier.variants)
        texts = generate.answer(loaded, carrier, variants, asked, sampling, stop=halt)
        for number, (variant, text) in enumerate(zip(variants, texts)):
            found[number % len(rows)][variant] = text
    return found


def _scored(metrics: list[Metric], rows: list[dict], answers: list[dict[str, str]]) -> dict:
    if not rows:
        # Plain text has no prompts to answer: it is judged by its loss alone.
        return {"metric": metrics[0].name, "rows": 0, "base": {}, "adapter": {}, "gain": None, "examples": []}
    result = score(metrics, [row["reference"] for row in rows], answers)
    each = result.pop("each")
    result["examples"] = [
        {
            "prompt": row["messages"][-1]["content"],
            "reference": row["reference"],
            **answer,
            **{f"{v}_{result['metric']}": each[v][i] for v in each},
        }
        for i, (row, answer) in enumerate(zip(rows[:SHOWN], answers))
    ]
    return result
