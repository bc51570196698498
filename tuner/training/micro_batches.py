"""Micro-batches: a step's rows go through the model as many at a time as the device's memory holds.

The arithmetic stays that of the whole batch: the gradients of the parts add up to those of the mean over all its
labels; only dropout is drawn for each part. Starts from what the plan estimates against the memory that is free now,
and halves when memory runs out.
"""

import gc
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from tuner.errors import TunerError
from tuner.models import device_errors
from tuner.models.device import device_type
from tuner.models.load import forget_bases
from tuner.planning.forecast import USABLE
from tuner.runs import Run
from tuner.training import checkpoint
from tuner.words import gigabytes

Result = TypeVar("Result")


class MicroBatch:
    """How many of a batch's rows go through the model at once; `report` gets an event when they become fewer."""

    def __init__(self, run: Run, report: Callable[[dict], None]):
        self.run, self.report = run, report
        self.rows = self.batch = run.plan["settings"]["batch_size"]

    def begin(self, rows: int | None, optimizer: torch.optim.Optimizer) -> None:
        """Begin a window with the rows of its checkpoint, if there is one, or with fewer if the GPU has less memory.

        Raises TunerError if a single row does not fit.
        """
        rows = rows or self.batch
        memory = (self.run.plan.get("forecast") or {}).get("memory")
        if memory and device_type() == "cuda":
            a_row = (memory["activations"] + memory["logits"]) / self.batch
            fixed = memory["adapter"] - _held(optimizer)
            if fixed + a_row * rows > (free := _usable_memory()):
                forget_bases(keep=1)  # models kept for chat, but not this run's
                release_memory()
                free = _usable_memory()
            while rows > 1 and fixed + a_row * rows > free:
                rows = -(-rows // 2)
            if fixed + a_row * rows > free:
                raise TunerError(
                    f"Run {self.run.id} needs about {gigabytes(fixed + a_row)} of the GPU's memory beside the base "
                    f"model, with one row at a time, and only {gigabytes(free)} can be used. Resume it when more is "
                    "free, or train a new run with a smaller base model, 4-bit precision or shorter rows "
                    "(data.max_length)."
                )
        if rows < self.batch:
            self._lower(rows)

    def attempt(self, model: nn.Module, work: Callable[[int], Result]) -> Result:
        """The result of `work(rows)`, done again with half the rows whenever the device's memory runs out.

        Raises what the work raised if a single row does not fit.
        """
        random = checkpoint.random_state()
        while True:
            try:
                return work(self.rows)
            except RuntimeError as error:  # cuBLAS and the driver have words of their own for too little memory
                if self.rows == 1 or not device_errors.is_out_of_memory(error):
                    raise
            # Outside the handler: the exception's frames hold the activations.
            model.zero_grad()
            forget_bases(keep=1)
            release_memory()
            checkpoint.restore_random_state(random)
            self._lower(-(-self.rows // 2))

    def _lower(self, rows: int) -> None:
        self.rows = rows
        self.report({"event": "micro_batch", "rows": rows, "of": self.batch})


def _usable_memory() -> float:
    """Bytes on the GPU that this process can still use: of what nobody has, and what its allocator keeps unused."""
    return USABLE * (torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated())


def _held(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of what is trained, and of the optimizer's state, that are on the device already."""
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    moments = [t for state in optimizer.state.values() for t in state.values() if torch.is_tensor(t)]
    return sum(t.nbytes for t in (*trained, *moments))


def release_memory() -> None:
    """Give back what nothing refers to any more; a Trainer and an exception are in cycles."""
    gc.collect()
    if device_type() == "cuda":
        torch.cuda.empty_cache()
