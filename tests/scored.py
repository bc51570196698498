"""Helpers: runs that look as if they had been trained and scored, and experiments of them; nothing is trained."""

import json
from collections.abc import Iterable
from pathlib import Path

from tuner.evaluation.score import score
from tuner.experiments.experiment import Experiment
from tuner.experiments.states import FILE, FORMAT
from tuner.metrics import METRICS
from tuner.recipe import Recipe
from tuner.runs import Run

SETTINGS = {"learning_rate": 0.001, "batch_size": 4, "rank": 8, "max_length": 64}


def scored_run(
    root: Path,
    name: str,
    right: Iterable[bool],
    *,
    base: Iterable[bool] = (),
    seconds: float = 4.0,
    parameters: int = 1000,
    metric: str = "rougeL",
    first: int = 0,
    keeps_rows: bool = True,
    **settings,
) -> Run:
    """A finished run whose adapter answered these rows right or not, numbered from `first`; the base none at first."""
    run = Run(root / "".join(c if c.isalnum() else "_" for c in name))
    run.data.mkdir(parents=True)
    recipe = Recipe.load("corporate").with_settings(
        {"name": name} | {k.replace("__", "."): v for k, v in settings.items()}
    )
    run.write_text("recipe.yaml", recipe.to_yaml())
    plan = {"settings": SETTINGS, "trainable_parameters": parameters, "task": "generation", "steps_per_epoch": 4}
    run.write_json("plan.json", plan)
    right = list(right)
    known = list(base) or [False] * len(right)
    rows = [
        {
            "prompt": f"ask {first + number}",
            "reference": f"reply {first + number}",
            "base": f"reply {first + number}" if by_base else "no",
            "adapter": f"reply {first + number}" if by_adapter else "no",
        }
        for number, (by_adapter, by_base) in enumerate(zip(right, known, strict=True))
    ]
    scores = score([METRICS[metric]], [row["reference"] for row in rows], rows)
    scores.pop("each")
    for variant, loss in (("base", 3.0), ("adapter", 2.0)):
        scores[variant]["loss"] = loss
    if keeps_rows:
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        run.write_text("evaluation_rows.jsonl", "".join(lines))
    run.write_json("evaluation.json", scores | {"heldout_rows": len(rows), "examples": []})
    run.append({"event": "start", "step": 0, "steps": 8})
    run.append({"event": "step", "step": 8, "loss": 1.0, "seconds": seconds})
    run.append({"event": "end", "reason": "steps", "step": 8, "seconds": seconds, "seconds_per_step": 0.1})
    run.adapter.mkdir()
    (run.adapter / "adapter_model.safetensors").write_bytes(b"x" * parameters)
    return run


def experiment_of(runs: list[Run], kind: str = "methods", trials: int = 0, **facts) -> Experiment:
    """An experiment of runs that are there; `candidates` names the candidate of each."""
    candidates = facts.pop("candidates", [None] * len(runs))
    entries = [
        {
            "run": run.id,
            "label": run.recipe.name,
            "settings": {"method.name": run.recipe.method.name},
            "prepared": True,
        }
        | ({"candidate": candidate} if candidate else {})
        for run, candidate in zip(runs, candidates, strict=True)
    ]
    asked = {"format": FORMAT, "kind": kind, "recipe": Recipe.load("corporate").model_dump(), "folder": None}
    asked |= {"candidates": [], "space": {}, "trials": trials, "seconds": None, "total_seconds": None, "notes": []}
    experiment = Experiment(runs[0].path.parent / facts.pop("name", "experiment"))
    experiment.path.mkdir()
    experiment.write_json(FILE, asked | facts | {"runs": entries})
    return experiment
