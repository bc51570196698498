"""What each method would cost on the same base and rows: parameters, file size, memory and time, or why not."""

from collections.abc import Iterator
from pathlib import Path

from tuner.data.table import Table
from tuner.errors import collect
from tuner.methods.registry import METHODS
from tuner.models.shape import shape_of
from tuner.planning import choices, forecast, plan
from tuner.planning.memory import adapter_bytes, count_trainable, method_key
from tuner.planning.method_check import method_problems
from tuner.recipe import Method, Recipe


def method_costs(
    recipe: Recipe,
    table: Table | None = None,
    base: Path | None = None,
    *,
    local: bool = True,
    token: str | bool | None = None,
) -> Iterator[dict]:
    """For each row of METHODS a dict: name, problems, and if it has none trainable_parameters, adapter_bytes, memory
    (bytes, or None if unknown), steps and seconds of training.

    Raises TunerError if the base or the rows themselves can't be used.
    """
    # LoRA works wherever any method does, so its problems come from the base or the rows.
    checked = plan.check(_with_method(recipe, "lora"), table, base, local=local, token=token)
    model, train, heldout = checked.base, checked.train, len(checked.heldout.parts)
    for name in METHODS:
        candidate = _with_method(recipe, name)
        problems = method_problems(candidate, model)
        with collect(problems):
            chosen = choices.choose(candidate, shape_of(model), len(train.rows))
        if problems:
            yield {"name": name, "problems": problems}
            continue
        settings = {setting: value for setting, (value, _) in chosen.items()}
        key = method_key(candidate)
        trainable = count_trainable(model, key)
        estimate = choices.fit(candidate, model, settings, train, heldout, trainable)
        with collect(problems):
            forecast.check_memory(estimate, candidate, settings["batch_size"])
        yield {
            "name": name,
            "problems": problems,
            "trainable_parameters": trainable,
            "adapter_bytes": adapter_bytes(model, key),
            "memory": estimate["memory"] and estimate["memory"]["total"],
            "steps": estimate["steps"],
            "seconds": estimate["training"],
        }


def _with_method(recipe: Recipe, name: str) -> Recipe:
    """The recipe with another method, at that method's defaults."""
    return recipe.model_copy(update={"method": Method(name=name)})
