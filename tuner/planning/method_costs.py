"""What each method would take for the same base and the same rows: parameters, size, memory and time, or why not."""

from collections.abc import Iterator
from pathlib import Path

from tuner.data import parse
from tuner.errors import TunerError
from tuner.methods.registry import METHODS
from tuner.planning import forecast, plan
from tuner.planning.memory import adapter_bytes, count_trainable, method_key
from tuner.planning.method_check import method_problems
from tuner.recipe import Method, Recipe


def method_costs(
    recipe: Recipe, table: parse.Table | None = None, base: Path | None = None, *, local: bool = True
) -> Iterator[dict]:
    """A dict a method, in the table's order: name, and either problems or trainable_parameters, adapter_bytes, memory
    (bytes, or None where it can't be told), steps and seconds of training.

    Raises TunerError where base and rows themselves can't be used.
    """
    # LoRA works wherever anything does: what it stumbles over is not the method's.
    checked = plan.check(_with(recipe, "lora"), table, base, local=local)
    stands, settings = checked.base, checked.plan["settings"]
    for name in METHODS:
        asked = _with(recipe, name)
        if problems := method_problems(asked, stands):
            yield {"name": name, "problems": problems}
            continue
        key = method_key(asked)
        trainable, stored = count_trainable(stands, key), adapter_bytes(stands, key)
        found = forecast.forecast(asked, stands, settings, checked.train, len(checked.heldout.rows), trainable)
        told = {"name": name, "trainable_parameters": trainable, "adapter_bytes": stored, "problems": []}
        try:
            forecast.check_memory(found, asked, settings["batch_size"])
        except TunerError as error:
            told["problems"] = list(error.problems)
        memory = found["memory"] and found["memory"]["total"]
        yield told | {"memory": memory, "steps": found["steps"], "seconds": found["training"]}


def _with(recipe: Recipe, name: str) -> Recipe:
    """The recipe with another method, all of whose settings are its own."""
    return recipe.model_copy(update={"method": Method(name=name)})
