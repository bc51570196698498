"""Methods against each other: the same rows, the same base, the same seconds, each method with its own defaults."""

from collections.abc import Iterator
from pathlib import Path

from tuner.errors import TunerError
from tuner.methods.registry import METHODS
from tuner.planning import plan
from tuner.recipe import Method, Recipe
from tuner.runs import Run


def prepare(recipe: Recipe, names: list[str], seconds: float, base: Path | None = None) -> dict[str, Run]:
    """A run a method, ready to train. Raises TunerError with the problems of all, before a second is spent.

    Where a method can't work on the base as the recipe holds it, all stand on the 16-bit one: a comparison on
    different bases would be of the bases.
    """
    unknown = [name for name in names if name not in METHODS]
    if unknown or not names:
        raise TunerError(f"There is no method '{', '.join(unknown)}'. There are: {', '.join(METHODS)}.")
    held = recipe.model.quantization
    if any(held not in METHODS[name].quantizations for name in names):
        recipe = recipe.with_settings({"model.quantization": "none"})
    recipe = recipe.with_settings({"training.learning_rate": "auto", "budget.seconds": seconds})
    asked = {name: recipe.model_copy(update={"method": Method(name=name), "name": name}) for name in names}
    problems = []
    for name in names:
        try:
            plan.check(asked[name], base=base)
        except TunerError as error:
            problems += [f"{name}: {problem}" for problem in error.problems]
    if problems:
        raise TunerError(*problems)
    return {name: plan.prepare(asked[name], base=base) for name in names}


def compare(runs: dict[str, Run]) -> Iterator[dict]:
    """Train and score the runs one after the other; yields their events with the method's name, and its row of the
    table at the end of each."""
    from tuner.training.window import train

    for name, run in runs.items():
        for event in train(run):
            yield {"method": name, **event}
        yield {"method": name, "event": "row", **row(name, run)}


def row(name: str, run: Run) -> dict:
    """What came of a method: scores, sizes and seconds."""
    scores, end = run.read_json("evaluation.json"), run.last_event("end")
    metric = scores["metric"]
    return {
        "title": METHODS[name].title,
        "run": run.id,
        "metric": metric,
        "score": scores["adapter"].get(metric),
        "low": scores["adapter"].get(f"{metric}_low"),
        "high": scores["adapter"].get(f"{metric}_high"),
        "base": scores["base"].get(metric),
        "loss": scores["adapter"]["loss"],
        "trainable_parameters": run.plan["trainable_parameters"],
        "adapter_bytes": sum(file.stat().st_size for file in run.adapter.rglob("*.safetensors")),
        "steps": end["step"],
        "seconds": end["seconds"],
    }
