"""What a row of the method table holds, and what a recipe comes to on it. No torch until a method is applied."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from tuner.methods.peft_configs import Target
from tuner.recipe import Recipe
from tuner.tasks import TASKS, TaskRow

KINDS = ("reparameterisation", "additive adapter", "soft prompt", "selective", "hybrid", "full")
PRECISIONS = {"nf4": "4 bits (nf4)", "int8": "8 bits (int8)", "none": "16 bits (none)"}
ANY = tuple(PRECISIONS)
FLOAT = ("none",)
LINEAR = {"target_modules": "all-linear"}


def lora_rate(width: int) -> float:
    """Schulman et al., 'LoRA Without Regret' (2025): ten times full fine-tuning's 5e-5 at width 2000, by a power
    law."""
    return 5e-4 * (2000 / width) ** 0.78


def times_lora(factor: float) -> Callable[[int], float]:
    return lambda width: float(f"{factor * lora_rate(width):.2g}")


AS_LORA = times_lora(1)


@dataclass(frozen=True)
class MethodRow:
    name: str
    title: str
    kind: str  # of KINDS
    paper: str
    explanation: str
    trains: str
    parameters: str  # pattern of the names of all that is trained, a new head left out
    parts: Callable[[Target], list]  # configurations, PEFT's or native.py's, put on the base in turn
    settings: dict[str, Any] = field(default_factory=dict)  # recipe.method's settings that it takes -> its defaults
    learning_rate: Callable[[int], float] = AS_LORA  # hidden width -> peak rate
    learning_rate_reason: str = "what suits LoRA at this model's width, a power law fitted in 'LoRA Without Regret'"
    mergeable: bool = True  # into the 16-bit base
    mergeable_on: Callable[[Target], bool] = lambda target: True  # if mergeable at all
    quantizations: tuple[str, ...] = ANY  # ways of holding the base that it works on
    tasks: tuple[str, ...] = tuple(TASKS)
    count: Callable[[Target], int] | None = (
        None  # what is trained, where PEFT can't make it on a model without storage
    )
    stored: int = 1  # numbers in the file for each that is trained, where `count` is needed
    refuses: Callable[[Target], str | None] = lambda target: None  # why not on this model
    gradient_checkpointing: bool = True
    needs_total_steps: bool = False
    schedule: str | None = None  # a class of schedules.py that follows each step
    beside_base: bool = False  # PEFT answers with and without it in one batch
    changes_base: bool = False  # it trains the base's own weights, so the adapter's file is a model's
    more: bool = False


def facts(row: MethodRow) -> dict:
    """The row's facts as plain values, for a table or a program."""
    told = {f.name: getattr(row, f.name) for f in fields(row)}
    plain = {k: v for k, v in told.items() if not callable(v) and v is not None and k != "schedule"}
    return plain | {"learning_rate_at_width_2048": row.learning_rate(2048)}


def resolve(row: MethodRow, recipe: Recipe, shape, task: TaskRow | None) -> Target:
    """What the recipe's method is put on, with the method's own defaults where the recipe says nothing."""
    defaults = row.settings
    asked = {k: v for k, v in recipe.method.model_dump(exclude={"name"}).items() if v != "auto" and k in defaults}
    settings = {**defaults, **asked}
    if settings.get("alpha") == "twice the rank":
        settings["alpha"] = 2 * settings["rank"]
    return Target(settings, shape, task)


def problems(row: MethodRow, recipe: Recipe, target: Target) -> list[str]:
    """Why the recipe's method can't work as it is asked to, a sentence each with what to choose instead."""
    found = []
    asked = recipe.method.model_dump(exclude={"name"})
    for name in [k for k, v in asked.items() if v != "auto" and k not in row.settings]:
        takes = f"It takes {', '.join(row.settings)}" if row.settings else "It takes none of the method's settings"
        found.append(f"method.{name}: {row.title} has no such setting. {takes}; leave this one out.")
    if target.task.name not in row.tasks:
        titles = " and ".join(TASKS[name].title for name in row.tasks)
        found.append(
            f"method.name: {row.title} works for {titles}, and these rows and this model ask for {target.task.title}. "
            "Take lora, which works for all."
        )
    elif why := row.refuses(target):
        found.append(f"method.name: {row.title} can't be used here: {why}. Take lora, which works on any model.")
    if recipe.model.quantization not in row.quantizations:
        ways, held = " or ".join(PRECISIONS[way] for way in row.quantizations), PRECISIONS[recipe.model.quantization]
        instead = "lora" if recipe.model.quantization == "none" else "qlora"
        found.append(
            f"model.quantization: {row.title} works on a base held in {ways}, not in {held}. Hold it so, or take "
            f"{instead}."
        )
    return found
