"""What a window does between steps: held-out losses, the best weights by them, and checkpoints."""

import math
import time
from collections.abc import Callable
from statistics import stdev
from typing import NamedTuple

import torch
from datasets import load_from_disk
from torch import nn
from transformers import Trainer

from tuner.evaluation.advice import ROSE
from tuner.methods.schedules import AdaLoraSchedule
from tuner.models.device import autocast
from tuner.models.losses import heldout_losses
from tuner.models.shape import Base
from tuner.planning.budget import MEASUREMENTS, MEASURING_SHARE, measuring_of
from tuner.runs import Run
from tuner.training import checkpoint
from tuner.training.micro_batches import MicroBatch

# By which one loss is clearly lower than another on the same rows, at 95% confidence. The lowest of several losses is
# often so by chance, and later weights answer better (docs/notes.md).
STANDARD_ERRORS = 2
RISE = 1.02  # times the lowest held-out loss, from which on a loss counts as risen rather than as noise
RISING_SHARE = 1 / 3  # of the steps, for which it has to have risen
SMALL_SHARE = 0.01  # of the time that checkpoints may take
CHECKPOINT_SECONDS = 10  # between checkpoints, at least
WRITING = 50e6  # bytes per second, assumed until a checkpoint has been written


class HeldoutLoss:
    """The loss on a few held-out rows, measured as the run's plan says."""

    def __init__(self, run: Run, base: Base, padding: int, counters: dict, micro_batch: MicroBatch):
        """`padding` is the padding token, `counters` those of the checkpoint that the window goes on from."""
        rows, measuring = load_from_disk(str(run.data / "heldout")), measuring_of(run)
        self.rows = rows.select(range(min(measuring.first, len(rows)), min(measuring.last, len(rows))))
        self.tokens = sum(map(len, self.rows["input_ids"])) if measuring.every != 0 else 0
        self.every, self.tenth = measuring.every, (run.recipe.budget.seconds or 0.0) / MEASUREMENTS
        self.base, self.padding, self.micro_batch = base, padding, micro_batch
        self.seconds = counters.get("heldout_cost", 0.0)  # of the latest measurement
        self.measured_at = counters.get("measured_at", 0.0)  # seconds of the run

    def is_due(self, step: int, seconds: float, *, is_last: bool) -> bool:
        """Whether to measure after `step`, when the run has taken so many seconds."""
        if self.every == 0 or is_last:
            return self.every != 0
        if self.every:  # whatever it costs: the step alone decides, or a resumed run could keep other weights
            return step % self.every == 0
        return seconds - self.measured_at >= max(self.tenth, self.seconds / MEASURING_SHARE)

    def measure(self, model: nn.Module) -> "Measured":
        """Mean cross-entropy in nats, and what each row adds to it."""

        def losses_of(rows: int) -> list[float]:
            with autocast(self.base.model):
                return heldout_losses(self.base.row.objective, model, self.rows, rows, self.padding)

        began = time.monotonic()
        model.eval()
        rows = self.micro_batch.attempt(model, losses_of)
        model.train()
        self.seconds = time.monotonic() - began
        return Measured(round(sum(rows), 5), [round(loss, 7) for loss in rows])


class Measured(NamedTuple):
    """A held-out loss, and what each row adds to it."""

    loss: float
    rows: list[float]

    def is_clearly_above(self, rows: list[float]) -> bool:
        """Whether it is higher than the loss of these by more than the choice of rows explains; or no number."""
        if not math.isfinite(self.loss):
            return True
        differences = [one - other for one, other in zip(self.rows, rows, strict=True)]
        if len(differences) < 2:
            return False
        return sum(differences) > STANDARD_ERRORS * stdev(differences) * math.sqrt(len(differences))


class Best:
    """The weights with the lowest held-out loss so far, and for how many measurements there has been none lower.

    Those before the first step are no candidate: nothing was learned yet. `state` is what a checkpoint keeps.
    """

    def __init__(self, run: Run, state: dict | None):
        measuring = measuring_of(run)
        self.run, self.keeps, self.patience = run, measuring.keep == "best", measuring.patience
        self.state = state or {"step": None, "loss": None, "rows": [], "since": 0, "lowest": None, "latest": None}
        self.unwritten: dict[str, torch.Tensor] | None = None

    def measured(self, step: int, measured: Measured, model: nn.Module, schedule: AdaLoraSchedule | None) -> bool:
        """Take the held-out loss of `step` into account; whether it is the lowest after a step."""
        loss, lowest = measured.loss, self.state["lowest"]
        total, number = self.state.pop("learning", (0.0, 0))
        learning = self.state["learned"] = total / number if number else None
        if lowest is None or loss < lowest[1]:
            lowest = [step, loss, measured.rows]
            self.state["learned_at_lowest"] = learning
        elif self.state.get("learned_at_lowest") is None:  # the lowest was before the first step
            self.state["learned_at_lowest"] = learning
        self.state |= {"lowest": lowest, "latest": [step, *measured], "since": self.state["since"] + bool(step)}
        is_lower = math.isfinite(loss) and (self.state["loss"] is None or loss < self.state["loss"])
        if not step or not is_lower:
            return False
        self.state |= {"step": step, "loss": loss, "rows": measured.rows, "since": 0}
        if self.keeps:
            trained = checkpoint.trained_state(model, schedule)
            self.unwritten = {name: tensor.to("cpu", copy=True) for name, tensor in trained.items()}
        return True

    def learned(self, loss: float) -> None:
        """Take the training loss of a step into account."""
        total, number = self.state.get("learning", (0.0, 0))
        self.state["learning"] = total + loss, number + 1

    def overfitting(self) -> dict | None:
        """The event that says that rows are learned by heart, if the latest held-out loss shows it.

        It is clearly higher than the lowest one, and by a tenth, while the training loss has fallen since then.
        """
        lowest, latest = self.state["lowest"], self.state["latest"]
        measured, before, now = Measured(*latest[1:]), *map(self.state.get, ("learned_at_lowest", "learned"))
        if None in (before, now) or now >= before or not ROSE * lowest[1] < measured.loss < math.inf:
            return None
        if not measured.is_clearly_above(lowest[2]):
            return None
        is_kept = self.keeps and self.state["step"] and measured.is_clearly_above(self.state["rows"])
        return {
            "event": "overfitting",
            "step": latest[0],
            "loss": measured.loss,
            "lowest": lowest[1],
            "since": lowest[0],
            "kept": self.state["step"] if is_kept else None,
        }

    @property
    def is_over(self) -> bool:
        """Whether training has gone on for long enough without a lower loss."""
        return 0 < self.patience <= self.state["since"]

    def rising_since(self, step: int) -> int | None:
        """The step since which the held-out loss has risen clearly, if it has for a third of the run until `step`."""
        lowest, latest = self.state["lowest"], self.state["latest"]
        if lowest is None or step - lowest[0] < RISING_SHARE * step or not latest[1] > RISE * lowest[1]:
            return None
        return lowest[0] if Measured(*latest[1:]).is_clearly_above(lowest[2]) else None

    def save(self) -> None:
        """Write the weights, if they are not written yet; a checkpoint that refers to them comes after."""
        if self.unwritten:
            checkpoint.save_best(self.run, self.state["step"], self.unwritten)
            self.unwritten = None

    def end_with(
        self,
        step: int,
        reason: str,
        model: nn.Module,
        schedule: AdaLoraSchedule | None,
        measure: Callable[[], Measured],
    ) -> int:
        """Put the weights that a window ends with into the model; returns their step.

        They are those of its last step unless earlier ones were clearly better. What a run that is stopped has learned
        since the latest measurement is measured, though not as a part of the run: resumed, it would go on without.
        """
        if not self.keeps or reason == "window" or self.state["step"] in (None, step):
            return step
        at, *latest = self.state["latest"]
        measured = Measured(*latest) if at == step else measure()
        if not measured.is_clearly_above(self.state["rows"]):
            return step
        self.save()
        if (tensors := checkpoint.load_best(self.run, self.state["step"])) is None:
            return step
        checkpoint.restore_trained(tensors, model, schedule)
        return self.state["step"]


class Checkpoints:
    """Writes checkpoints, every `training.checkpoint_seconds`."""

    def __init__(self, run: Run):
        self.run, self.setting = run, run.recipe.training.checkpoint_seconds
        # A weight and two moments, in float32.
        self.seconds = 12 * run.plan["trainable_parameters"] / WRITING
        self.saved_at = time.monotonic()

    def is_due(self) -> bool:
        """Whether to write one now."""
        least = max(CHECKPOINT_SECONDS, self.seconds / SMALL_SHARE) if self.setting == "auto" else self.setting
        return time.monotonic() - self.saved_at >= least

    def save(self, step: int, counters: dict, trainer: Trainer, best: Best) -> dict:
        """Write the checkpoint of `step`, and the best weights if they are new; returns its event."""
        began = time.monotonic()
        best.save()
        checkpoint.save(self.run, step, counters, trainer.model, trainer.optimizer, trainer.schedule)
        self.saved_at = time.monotonic()
        self.seconds = self.saved_at - began
        return {"event": "checkpoint", "step": step, "seconds": round(self.seconds, 4)}
