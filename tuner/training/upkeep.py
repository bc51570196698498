"""What a window does between steps: held-out losses and checkpoints, each for about 1% of the time at most."""

import time

from datasets import load_from_disk
from torch import nn
from transformers import Trainer

from tuner.models.device import autocast
from tuner.models.losses import heldout_loss
from tuner.models.shape import Base
from tuner.runs import Run
from tuner.training import checkpoint
from tuner.training.micro_batches import MicroBatch

HELDOUT_ROWS = 32  # for the loss during training; the evaluation at the end uses more
SMALL_SHARE = 0.01  # of the time that held-out losses may take, and that checkpoints may take
CHECKPOINT_SECONDS = 10  # between checkpoints, at least
WRITING = 50e6  # bytes per second, assumed until a checkpoint has been written


class HeldoutLoss:
    """The loss on a few held-out rows, measured every `evaluation.loss_every` steps if that is cheap enough."""

    def __init__(self, run: Run, base: Base, padding: int, seconds: float, micro_batch: MicroBatch):
        """`padding` is the padding token, `seconds` what a measurement took in an earlier window."""
        rows = load_from_disk(str(run.data / "heldout"))
        self.rows = rows.select(range(min(HELDOUT_ROWS, len(rows))))
        self.base, self.padding, self.seconds, self.micro_batch = base, padding, seconds, micro_batch
        self.every = run.recipe.evaluation.loss_every
        self.measured_at = time.monotonic()

    def is_due(self, step: int, *, is_last: bool) -> bool:
        """Whether to measure after `step`."""
        if not self.every or is_last:
            return bool(self.every)
        return step % self.every == 0 and time.monotonic() - self.measured_at >= self.seconds / SMALL_SHARE

    def measure(self, model: nn.Module) -> float:
        """Mean cross-entropy in nats."""

        def loss_of(rows: int) -> float:
            with autocast(self.base.model):
                return heldout_loss(self.base.row.objective, model, self.rows, rows, self.padding)

        began = time.monotonic()
        model.eval()
        loss = self.micro_batch.attempt(model, loss_of)
        model.train()
        self.measured_at = time.monotonic()
        self.seconds = self.measured_at - began
        return round(loss, 5)


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

    def save(self, step: int, counters: dict, trainer: Trainer) -> dict:
        """Write the checkpoint of `step`; returns its event."""
        began = time.monotonic()
        checkpoint.save(self.run, step, counters, trainer.model, trainer.optimizer, trainer.schedule)
        self.saved_at = time.monotonic()
        self.seconds = self.saved_at - began
        return {"event": "checkpoint", "step": step, "seconds": round(self.seconds, 4)}
