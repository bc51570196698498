"""Helpers: a run's records without a training, each figure different, and the sections of its card."""

from pathlib import Path

from tuner import runs
from tuner.recipe import Recipe
from tuner.runs import Run

PLAN = {
    "format": 2, "task": "generation", "labels": [], "revision": "c0ffee", "rows": 1234, "heldout_rows": 1137,
    "tokens": 56789, "trained_tokens": 23456, "truncated_rows": 1003, "trainable_parameters": 75776,
    "model_parameters": 3410176,
    "steps_per_epoch": 1450, "steps": 2900, "epochs": 2.5, "seconds": None, "settings": {"rank": 7},
    "warnings": ["Mind\nthe rows.", "And <b>this</b>."],
    "chosen": [
        {"setting": "held-out rows", "value": 137, "reason": "Holding out\n\"test\"."},
        {"setting": "format", "value": "chatml", "reason": "By its columns.\n"},
        {"setting": "rank", "value": 7, "reason": "the method's own"},
        {"setting": "alpha", "value": 14.5, "reason": "as given"},
        {"setting": "target_modules", "value": ["q_proj", "v|proj"], "reason": "a guess"},
    ],
}  # fmt: skip
BASE = {"rougeL": 0.1234, "rougeL_low": 0.1111, "rougeL_high": 0.1357, "exact_match": 0.0125, "loss": 2.34567}
ADAPTER = {"rougeL": 0.4567, "rougeL_low": 0.4321, "rougeL_high": 0.4789, "exact_match": 0.2375, "loss": 1.23456}
F1 = {
    "metric": "answer_f1",
    "base": {"answer_f1": 0.2125, "answer_f1_low": 0.2031, "answer_f1_high": 0.2219},
    "adapter": {"answer_f1": 0.5551, "answer_f1_low": 0.5402, "answer_f1_high": 0.5693},
    "gain": {"answer_f1": 0.3426, "low": 0.3301, "high": 0.3555},
}
SCORES = {
    "metric": "rougeL", "rows": 1064, "base": BASE, "adapter": ADAPTER, "other_metrics": [F1],
    "gain": {"rougeL": 0.3333, "low": 0.3012, "high": 0.3654},
    "examples": [{key: f"{key} {i}" for key in ("base", "adapter", "prompt", "reference")} for i in (1, 2, 3)],
}  # fmt: skip
EVENTS = [
    {"event": "start", "step": 0, "steps": 40, "device": "an old GPU"},
    {"event": "start", "step": 20, "steps": 40, "device": "NVIDIA <H200>"},
    *({"event": "heldout", "step": step, "loss": loss} for step, loss in ((0, 1.75), (30, 0.875))),
    {"event": "step", "step": 36, "steps": 4000, "epoch": 2.0, "loss": 0.75, "tokens": 11111},
    {"event": "step", "step": 37, "steps": 4000, "epoch": 2.5, "loss": 0.625, "tokens": 22222},
    {"event": "end", "step": 1037, "reason": "stopped", "seconds": 123.456},
]
MERGED = {"tokens": 123, "top1_agreement": 0.9876, "top1_agreement_quantized": 0.8766}
MERGED |= {"max_logit_difference": 0.125, "max_logit_difference_quantized": 2.5}
HUB = {"model.name": "Qwen/Qwen3-0.6B", "data.source": "knkarthick/dialogsum", "data.config": "en"}


def recorded(folder: Path, settings=HUB, plan=PLAN, scores=SCORES, events=EVENTS, config=None, **files: dict) -> Run:
    """A run of which only what a card reads is there; `files` are others, by name without ".json"."""
    run = runs.create(Recipe().with_settings(settings), path=folder / "run")
    run.adapter.mkdir(exist_ok=True)
    written = {"plan": plan, "evaluation": scores, "adapter/adapter_config": config or {}, **files}
    for name, value in written.items():
        if value is not None:
            run.write_json(f"{name}.json", value)
    for event in events:
        run.append(event)
    return Run(run.path)


def section(text: str, title: str) -> str:
    """The body of a section of a card."""
    return text.partition(f"\n## {title}\n\n")[2].partition("\n\n## ")[0].strip()
