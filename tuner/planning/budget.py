"""What a run's budget buys: its steps, how often its held-out loss is measured, and when that ends it early."""

import math
from typing import NamedTuple

from tuner import recipe
from tuner.runs import Run
from tuner.words import count

# One to three epochs: https://docs.unsloth.ai/get-started/fine-tuning-llms-guide/lora-hyperparameters-guide
EPOCHS = 3
FEW_STEPS = 60  # fewer teach little
MANY_EPOCHS = 10  # more than that, and small sets are learned by heart
MEASUREMENTS = 10  # of the held-out loss, in a run
MEASURED_ROWS = 32  # at most, in each
SPARE_ROWS = 16  # held-out rows that are not scored, from which on only these choose the weights to keep
LEAST_ROWS = 4  # to choose by
MEASURING_SHARE = 0.1  # of a run's time, at most, for its held-out losses
FORWARD_SHARE = 0.5  # of a step, for the forward pass of its rows; gradients take about as long
PATIENCE_SHARE = 0.4  # of a run without a lower held-out loss, after which it stops; losses of few rows are noisy


class Steps(NamedTuple):
    """The steps of a run, None if its seconds decide, with the reason."""

    number: int | None
    reason: str


class Measuring(NamedTuple):
    """How the held-out loss is measured during training, and what follows from it.

    `every` is a number of steps; 0 for never, None for a tenth of the seconds. `first` and `last` bound the held-out
    rows that are measured. `patience` counts measurements; 0 for endless patience.
    """

    every: int | None
    first: int
    last: int
    keep: str  # best or last
    patience: int


def choose_steps(budget: recipe.Budget, rows: int, batch_size: int) -> Steps:
    """How many steps to train on so many rows."""
    per_epoch = -(-rows // batch_size)
    if budget.steps:
        return Steps(budget.steps, "as given")
    of = f"of {count(per_epoch, 'step')}"
    if budget.epochs:
        return Steps(max(1, round(budget.epochs * per_epoch)), f"{count(budget.epochs, 'epoch')} {of}, as given")
    if budget.seconds:
        return Steps(None, "as many as fit in the seconds")
    if EPOCHS * per_epoch >= FEW_STEPS:
        return Steps(EPOCHS * per_epoch, f"three epochs {of}")
    too_few = f"three epochs are only {count(EPOCHS * per_epoch, 'step')}, and fewer than {FEW_STEPS} teach little"
    return Steps(FEW_STEPS, too_few)


def warnings_of(budget: recipe.Budget, rows: int, batch_size: int, likely_steps: int) -> list[str]:
    """Warnings about too few and too many steps; `likely_steps` is an estimate where the seconds decide."""
    per_epoch = -(-rows // batch_size)
    steps, epochs = choose_steps(budget, rows, batch_size).number, likely_steps / per_epoch
    few = []
    if steps and steps < FEW_STEPS:
        more = "more rows, more steps, or" if per_epoch * MANY_EPOCHS >= FEW_STEPS else "more rows or"
        few = [
            f"{count(rows, 'row')} in batches of {batch_size} make{'s' * (rows == 1)} {count(per_epoch, 'step')} "
            f"per epoch, and this run has {count(steps, 'step')}. That teaches little: give {more} smaller batches."
        ]
    if epochs <= MANY_EPOCHS:
        return few
    given = f"{count(steps or budget.seconds, 'step' if steps else 'second')} "
    given += ("is" if (steps or budget.seconds) == 1 else "are") + ("" if steps else " about")
    passes = count(round(epochs, 1 if epochs < 100 else None), "epoch")
    most = f"{count(MANY_EPOCHS, 'epoch')} (budget.epochs)"
    if budget.steps:
        most = f"{count(MANY_EPOCHS * per_epoch, 'step')} (budget.steps)"
    instead = "" if budget == recipe.Budget() or few else f", or train for at most {most}"
    return [
        *few,
        f"{given} {passes}: the model sees each row {epochs:,.0f} times, and may learn the rows by heart. "
        f"Give more rows{instead}.",
    ]


def choose_measuring(
    settings: recipe.Recipe, steps: int | None, batch_size: int, heldout: int, scored: int | None = None
) -> tuple[Measuring, dict[str, tuple]]:
    """How to measure with so many held-out rows, and the values to show, each with its reason.

    The first ones are `scored`: as many as the recipe says, or more if its rows became several each.
    """
    every, keep, patience = settings.evaluation.loss_every, settings.training.keep, settings.training.patience
    scored = min(heldout, settings.evaluation.rows) if scored is None else scored
    has_spare = heldout - scored >= SPARE_ROWS
    first = scored if has_spare else 0
    rows = min(MEASURED_ROWS, heldout - first)
    chosen = {"loss_every": (every, "as given")}
    if every == "auto":
        every, chosen["loss_every"] = _choose_every(steps, rows, batch_size)
    chosen["keep"] = keep, "as given"
    if keep == "best":
        keep, chosen["keep"] = _choose_keep(every, rows, has_spare)
    chosen["patience"] = patience, "measurements, as given"
    if every == 0 or patience == "auto":
        patience, chosen["patience"] = _choose_patience(keep, every, steps)
    return Measuring(every, first, first + rows, keep, patience), chosen


def measuring_steps(settings: recipe.Recipe, steps: int | None, batch_size: int, heldout: int) -> float:
    """The steps of training that take as long as all held-out losses of a run; where its seconds decide, as the two
    that every run has."""
    measuring, _ = choose_measuring(settings, steps, batch_size, heldout)
    if measuring.every == 0:
        return 0.0
    # The first is measured before the first step.
    times = 1 + steps // measuring.every if steps and measuring.every else 2
    return times * (measuring.last - measuring.first) / batch_size * FORWARD_SHARE


def _choose_every(steps: int | None, rows: int, batch_size: int) -> tuple[int | None, tuple]:
    if steps is None:
        return None, ("a tenth of the seconds", f"about {MEASUREMENTS} held-out losses")
    every, affordable = math.ceil(steps / MEASUREMENTS), math.ceil(rows / batch_size * FORWARD_SHARE / MEASURING_SHARE)
    if every >= affordable:
        return every, (every, f"about {MEASUREMENTS} held-out losses")
    every = min(affordable, steps)
    return every, (every, f"held-out losses take at most {MEASURING_SHARE:.0%} of the time")


def _choose_keep(every: int | None, rows: int, has_spare: bool) -> tuple[str, tuple]:
    if every == 0:
        return "last", ("last", "no held-out loss is measured (evaluation.loss_every)")
    if rows < LEAST_ROWS:
        return "last", ("last", f"{count(rows, 'held-out row')} can't choose the best weights")
    which = "that are not scored" if has_spare else "that are also scored, so the scores may look slightly too good"
    return "best", ("best", f"the weights with a clearly lower loss on {rows} held-out rows {which}")


def _choose_patience(keep: str, every: int | None, steps: int | None) -> tuple[int, tuple]:
    if keep == "last":
        return 0, (0, "the last weights are kept, so all steps are done")
    if every and steps is None:
        return 0, (0, "the number of steps is not known yet")
    measurements = MEASUREMENTS if every is None else steps / every
    patience = max(2, math.ceil(PATIENCE_SHARE * measurements))  # one worse measurement may be chance
    return patience, (patience, "measurements without a lower held-out loss, after which the run stops")


def measuring_of(run: Run) -> Measuring:
    """How the run measures its held-out loss; a run of an earlier version, whose plan does not say, keeps the last."""
    if planned := run.plan.get("measuring"):
        return Measuring(**{name: planned[name] for name in Measuring._fields})
    every = run.recipe.evaluation.loss_every
    return Measuring(0 if every == "auto" else every, 0, MEASURED_ROWS, "last", 0)
