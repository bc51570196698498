"""Checkpoints: all that a run needs to go on bit for bit, in one safetensors file that is whole or not there.

It holds the trainable weights, the optimizer's state, the random state and, as metadata, the counters. Row order and
learning rate are functions of the step, so they need no state of their own.
"""

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize

from tuner.runs import Run

KEEP = 2  # the newest, and the one before it in case the newest can't be read


def save(run: Run, step: int, counters: dict, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Write the checkpoint of `step`, then drop all but the newest KEEP."""
    tensors = {f"weight/{name}": p.data for name, p in _trainable(model)}
    for index, state in optimizer.state_dict()["state"].items():
        tensors.update({f"optimizer/{index}/{key}": value for key, value in state.items()})
    tensors["random/cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random/cuda"] = torch.cuda.get_rng_state()
    run.checkpoints.mkdir(exist_ok=True)
    target = run.checkpoints / f"step-{step:08d}.safetensors"
    beside = target.with_suffix(".part")
    metadata = {"counters": json.dumps({"step": step, **counters})}
    with open(beside, "wb") as file:
        file.write(serialize({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata))
        file.flush()
        os.fsync(file.fileno())
    beside.replace(target)
    for old in _files(run)[KEEP:]:
        old.unlink()


def load(run: Run, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict | None:
    """Put the newest readable checkpoint into model and optimizer; its counters, or None where there is none."""
    for file in _files(run):
        try:
            with safe_open(file, "pt") as stored:
                counters = json.loads(stored.metadata()["counters"])
                tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError):
            continue
        for name, p in _trainable(model):
            p.data.copy_(tensors[f"weight/{name}"])
        optimizer.load_state_dict({**optimizer.state_dict(), "state": _optimizer_state(tensors)})
        return {
            **counters,
            "random": {k.removeprefix("random/"): v for k, v in tensors.items() if k.startswith("random/")},
        }
    return None


def _files(run: Run) -> list[Path]:
    return sorted(run.checkpoints.glob("step-*.safetensors"), reverse=True)


def _trainable(model: torch.nn.Module) -> list:
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def _optimizer_state(tensors: dict) -> dict:
    state: dict[int, dict] = {}
    for key, value in tensors.items():
        kind, _, rest = key.partition("/")
        if kind == "optimizer":
            index, name = rest.split("/")
            state.setdefault(int(index), {})[name] = value
    return state
