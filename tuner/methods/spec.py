"""What a row of the method table holds, and a recipe resolved against it. Torch is imported only when a method is
applied."""

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

from tuner.methods.counts import Count
from tuner.methods.peft_configs import Configs
from tuner.methods.rates import AS_LORA, FAMILIES, Rate, family_of
from tuner.methods.rules import Rule
from tuner.methods.target import Target
from tuner.models.quantized import PRECISIONS
from tuner.models.shape import Base, Shape, shape_of
from tuner.recipe import Recipe
from tuner.tasks import TASKS, TaskRow

KINDS = ("reparameterization", "additive adapter", "soft prompt", "selective", "hybrid", "full")
ANY = tuple(PRECISIONS)
UNQUANTIZED = ("none",)
# Families whose linear layers are given positions first (LED, FSMT) or the tokens of all rows in one line (OPT, as
# many mixtures of experts), so that PEFT can't select an adapter for each row.
WITHOUT_ROWS = ("fsmt", "led", "opt")
LINEAR = {"target_modules": "all-linear"}


@dataclass(frozen=True)
class MethodRow:
    """A fine-tuning method: what people read about it, how it is attached, what it trains and where it works."""

    name: str
    title: str
    kind: str  # of KINDS
    paper: str
    explanation: str
    trains: str
    parameters: str  # pattern of the names of everything trained, except a new head
    configs: Configs  # PEFT's or native.py's, attached to the base one after the other
    count: Count  # parameters that it trains, except a new head
    settings: dict[str, Any] = field(default_factory=dict)  # those of recipe.method that it has -> its defaults
    learning_rate: Rate = AS_LORA  # peak rate
    learning_rate_reason: str = "LoRA's rate at this model's width, a power law fitted in 'LoRA Without Regret'"
    rules: tuple[Rule, ...] = ()  # what it needs of the base and the settings
    quantizations: tuple[str, ...] = ANY  # precisions of the base that it works on
    tasks: tuple[str, ...] = tuple(TASKS)
    mergeable: bool = True  # into the 16-bit base
    mergeable_on: Callable[[Target], bool] = lambda target: True  # asked only if it is mergeable at all
    needs_storage: bool = False  # PEFT can't attach it to a model without storage
    stored: int = 1  # numbers in the file per trained parameter, for methods with needs_storage
    schedule: str | None = None  # a class of schedules.py that runs after each step
    beside_base: bool = False  # PEFT answers with and without it in one batch
    continues: bool = True  # its file holds all that training on from it needs
    changes_base: bool = False  # it trains the base's own weights, so the adapter's file is a model's
    more: bool = False  # folded away on the page

    def answers_beside(self, base: Base) -> bool:
        """Whether this base and adapters on it answer in one batch; otherwise each answers in its own."""
        if not (self.beside_base and base.row.generates):
            return False
        shape = shape_of(base)
        return shape.model_type not in WITHOUT_ROWS and not any("expert" in name for name in shape.modules)


def facts(row: MethodRow) -> dict[str, Any]:
    """The row as plain values, for a table or a program."""
    hidden = {"rules", "schedule", "needs_storage", "stored"}
    values = {f.name: getattr(row, f.name) for f in fields(row) if f.name not in hidden}
    plain = {name: value for name, value in values.items() if not callable(value)}
    return plain | {"learning_rate_at_width_2048": row.learning_rate(2048)}


def learning_rate(row: MethodRow, shape: Shape) -> tuple[float, str]:
    """The method's learning rate on a base, and the reason for it."""
    family = family_of(shape)
    return row.learning_rate(shape.width, family), f"{row.learning_rate_reason}; {FAMILIES[family].reason}"


def resolve(
    row: MethodRow, recipe: Recipe, shape: Shape, task: TaskRow | None, planned: dict[str, Any] | None = None
) -> Target:
    """The recipe resolved against the method: its own settings, with the method's defaults for those left out.

    Defaults that a run's plan was made with, its `planned` settings, count before today's.
    """
    known = (planned or {}) | _given(recipe)
    return Target(row.settings | {k: v for k, v in known.items() if k in row.settings}, shape, task)


def _given(recipe: Recipe) -> dict[str, Any]:
    """The method's settings that the recipe does not leave to the method."""
    return {k: v for k, v in recipe.method.model_dump(exclude={"name", "start_from"}).items() if v != "auto"}


def problems(row: MethodRow, recipe: Recipe, target: Target, stored: str | None = None) -> list[str]:
    """Why the recipe's method can't work as configured, one sentence each with what to choose instead.

    `stored` is the precision of a base that was published quantized, and so can't be loaded in another.
    """
    takes = f"It has {', '.join(row.settings)}" if row.settings else "It has no settings"
    sentences = [
        f"method.{name}: {row.title} has no such setting. {takes}; leave this one out."
        for name in _given(recipe)
        if name not in row.settings
    ]
    if target.task.name not in row.tasks:
        titles = " and ".join(TASKS[name].title for name in row.tasks)
        sentences.append(
            f"method.name: {row.title} works for {titles} only, and the task is {target.task.title}. Choose lora, "
            "which works for all tasks."
        )
    elif refusal := next(filter(None, (rule(target) for rule in row.rules)), None):
        sentences.append(f"method.{refusal.setting}: {row.title} {refusal.why}. {refusal.instead}.")
    if (given := recipe.model.quantization) not in row.quantizations:
        possible = " or ".join(PRECISIONS[name] for name in row.quantizations)
        keys = " or ".join(row.quantizations)
        instead = (
            "Train on the model that it was made from" if stored else f"Set Precision (model.quantization) to {keys}"
        )
        sentences.append(
            f"model.quantization: {row.title} needs a {possible} base model, and this one is {PRECISIONS[given]}. "
            f"{instead}, or choose {'lora' if given == 'none' else 'qlora'}."
        )
    return sentences


def attach_problem(row: MethodRow, recipe: Recipe, reason: str) -> str:
    """The sentence for a configuration that could not be attached, for this `reason`."""
    given = {k: v for k, v in _given(recipe).items() if k in row.settings}
    name = next(iter(given), "name")
    listed = " and ".join(f"{k} {v}" for k, v in given.items())
    instead = f"Leave it out (the default is {row.settings[name]}), or choose lora" if given else "Choose lora"
    return (
        f"method.{name}: {row.title}{f' with {listed}' if given else ''} can't be attached to {recipe.model.name}: "
        f"{reason}. {instead}."
    )
