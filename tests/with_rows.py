"""Helpers: a finished run whose rows were answered by all four variants, with the scores that follow from its rows."""

import json

from tuner.evaluation.score import score
from tuner.metrics import METRICS
from tuner.rouge import rouge_l
from tuner.runs import Run

VARIANTS = ("base", "few_shot", "few_shot_similar", "adapter")
ANSWERS = ("nothing like it", "the right answer", "the right", "the right answer in full")  # of the variants, in turn
RIGHT = "the right answer in full"
PROMPTING = {
    "examples": 4,
    "fewest": 4,
    "messages": [
        {"role": "user", "content": "an example"},
        {"role": "assistant", "content": "its answer"},
        {"role": "user", "content": "{your text}"},
    ],
}
COSTS = {
    "base": {"prompt_tokens": 20.0, "answer_tokens": 12.0, "seconds": 0.05},
    "few_shot": {"prompt_tokens": 412.4, "answer_tokens": 12.0, "seconds": 0.31},
    "few_shot_similar": {"prompt_tokens": 398.0, "answer_tokens": 12.0, "seconds": 0.3},
    "adapter": {"prompt_tokens": 20.0, "answer_tokens": 12.0, "seconds": 0.06},
}


def rows(number: int = 24, worse: tuple[int, ...] = (3, 11), equal: tuple[int, ...] = (5,)) -> list[dict]:
    """Scored rows; the adapter is worse than the base on some, and equal to it on others."""
    made = []
    for place in range(number):
        answers = dict(zip(VARIANTS, ANSWERS))
        if place in worse:
            answers |= {"base": RIGHT, "adapter": "wrong"}
        elif place in equal:
            answers |= {"base": RIGHT}
        row = {"prompt": f"question {place}", "reference": RIGHT, **answers}
        made.append(row | {f"{v}_rougeL": round(rouge_l(RIGHT, answers[v]), 4) for v in VARIANTS})
    return made


def scored(run: Run, rows: list[dict], **changes) -> Run:
    """The run with these rows and the scores that follow from them."""
    run.write_text("evaluation_rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    answers = [{variant: row[variant] for variant in VARIANTS if variant in row} for row in rows]
    scores = score([METRICS["rougeL"]], [row["reference"] for row in rows], answers)
    del scores["each"]
    extra = {"costs": COSTS, "prompting": PROMPTING, "heldout_rows": len(rows), "examples": rows[:8]}
    for variant in ("base", "adapter"):
        scores[variant]["loss"] = {"base": 2.0, "adapter": 1.0}[variant]
    run.write_json("evaluation.json", scores | extra | changes)
    return run
