"""Checkpoints: everything that a run needs to resume, on one CPU bit for bit, in one file, written atomically.

A checkpoint holds the trainable weights, the optimizer's state, the random state and, as metadata, the counters and a
checksum of everything. Row order and learning rate are functions of the step, so they need no state.
"""

import json
import os
import zlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize

from tuner.methods.schedules import AdaLoraSchedule
from tuner.runs import Run

KEEP = 2  # the newest, and the one before in case the newest can't be read


def save(
    run: Run,
    step: int,
    counters: dict,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: AdaLoraSchedule | None,
) -> None:
    """Write the checkpoint of `step`, then delete all but the newest KEEP. `schedule` is the method's, if any."""
    tensors = {f"weight/{name}": p.data for name, p in _trainable(model)}
    for index, state in optimizer.state_dict()["state"].items():
        tensors.update({f"optimizer/{index}/{key}": value for key, value in state.items()})
    if schedule:
        tensors.update({f"schedule/{name}": tensor for name, tensor in schedule.state().items()})
    tensors["random/cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random/cuda"] = torch.cuda.get_rng_state()
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps({"step": step, **counters})
    run.checkpoints.mkdir(exist_ok=True)
    target = run.checkpoints / f"step-{step:08d}.safetensors"
    partial = target.with_suffix(".part")
    with open(partial, "wb") as file:
        file.write(serialize(tensors, {"counters": text, "crc32": str(_checksum(text, tensors))}))
        file.flush()
        os.fsync(file.fileno())
    partial.replace(target)
    for old in _files(run)[KEEP:]:
        old.unlink()


def load(
    run: Run, model: torch.nn.Module, optimizer: torch.optim.Optimizer, schedule: AdaLoraSchedule | None
) -> dict | None:
    """Restore model, optimizer and schedule from the newest intact checkpoint; returns its counters, or None.

    The counters include the random states under `random`.
    """
    for file in _files(run):
        try:
            counters, tensors = _read(file)
        except (SafetensorError, OSError, ValueError, KeyError):
            continue
        for name, p in _trainable(model):
            p.data.copy_(tensors[f"weight/{name}"])
        optimizer.load_state_dict({**optimizer.state_dict(), "state": _optimizer_state(tensors)})
        if schedule:
            device = next(model.parameters()).device
            schedule.load({k: v.to(device) for k, v in _under("schedule/", tensors).items()})
        return {**counters, "random": _under("random/", tensors)}
    return None


def _under(prefix: str, tensors: dict) -> dict:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _read(file: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    with safe_open(file, "pt") as stored:
        metadata = stored.metadata()
        tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
    # The first version of Tuner wrote no checksum.
    if int(metadata.get("crc32", checksum := _checksum(metadata["counters"], tensors))) != checksum:
        raise ValueError(f"{file.name} is damaged")
    return json.loads(metadata["counters"]), tensors


def _checksum(counters: str, tensors: dict[str, torch.Tensor]) -> int:
    value = zlib.crc32(counters.encode())
    for name in sorted(tensors):
        value = zlib.crc32(tensors[name].flatten().view(torch.uint8).numpy(), zlib.crc32(name.encode(), value))
    return value


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
