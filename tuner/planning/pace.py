"""Seconds per step: from the pace of an earlier run like it, or else from a count of floating-point operations."""

import json
import os
import time
from functools import lru_cache
from pathlib import Path

from tuner.models.device import device_type, fact, gpu
from tuner.models.shape import Shape
from tuner.recipe import Recipe

# Dense 16-bit tensor-core flops per clock and multiprocessor by compute capability, from NVIDIA's architecture papers.
# Times multiprocessors and boost clock they give the data sheets' peaks: 312e12 on an A100, 989e12 on an H100, and
# 503.8e12 on an RTX PRO 6000 Blackwell.
TENSOR_FLOPS = {
    (7, 0): 1024,
    (7, 5): 1024,
    (8, 0): 2048,
    (8, 6): 1024,
    (8, 9): 1024,
    (9, 0): 4096,
    (10, 0): 8192,
    (12, 0): 1024,
}
LEAST_FLOPS = 1024  # of a GPU that is not in the table
TYPICAL_CLOCK = 1.7e9  # Hz
# Of the peak: PEFT's own reference reaches 16% of an H100's on unpacked rows.
GPU_UTILIZATION = 0.15
# Of a large matrix product's speed: measured with the shipped model on two cores. The rest goes into dequantization,
# small products and everything else.
CPU_UTILIZATION = 0.5
# The fastest of so many tells a CPU's speed: the first ones take longer, and on a busy machine most do.
PRODUCTS = 20
# Seconds in which the host prepares and launches one operation on a GPU. Eager PyTorch needs 5 to 25 µs for it:
# https://jiahuanglin.xyz/all_lessons/gpu_kernel_serving/18_pytorch_to_kernel.html
LAUNCH_SECONDS = 10e-6
# Of a forward pass through a decoder's layer with LoRA, counted on Qwen3: 115 in training; 97 in a batch of base and
# adapter, to which come the casts of autocast.
LAYER_OPERATIONS = 120
# What the trainer does around a step: 50 steps of a tiny model took 2.9 s on two CPU cores, and 2.4 s in a bare loop.
STEP_SECONDS = 0.01
CPU_TOKEN_SECONDS = 0.03  # assumed for the next token of a batch of answers; large models take longer

PACES = "paces.json"  # in the folder of runs
KEPT_PACES = 200


def flops_per_step(shape: Shape, trainable: int, settings: dict, length: int, columns: int) -> float:
    """Floating-point operations of one training step on rows of `length` tokens, `columns` of them with a label.

    After Kaplan et al. 2020 (https://arxiv.org/abs/2001.08361), section 2.1. Per token, a weight needs 2 forward, 2
    for the gradient of its input and 2 for its own gradient, which frozen weights don't need. Attention needs 4 times
    length times width per layer, and twice that backward; Kaplan et al. halve it for causal masks, but with padding
    the masked scores are computed too.
    """
    tokens = settings["batch_size"] * length
    frozen = sum(a * b for _, a, b in shape.linear_layers)
    attention = 12 * shape.layers * length * shape.width
    head = 4 * settings["batch_size"] * columns * shape.width * shape.vocabulary
    return float(tokens * (4 * frozen + 6 * trainable + attention) + head)


@lru_cache(maxsize=1)
def device_speed() -> float:
    """Flops per second that training can be expected to reach on this device."""
    if device_type() == "cuda":
        granted = gpu()
        per_clock = TENSOR_FLOPS.get(granted.capability, LEAST_FLOPS)
        return granted.multiprocessors * per_clock * (granted.clock or TYPICAL_CLOCK) * GPU_UTILIZATION
    if told := fact("speed"):
        return told
    import torch

    size = 512
    matrix = torch.ones(size, size)
    best = float("inf")
    for _ in range(PRODUCTS):
        start = time.perf_counter()
        torch.mm(matrix, matrix)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best * CPU_UTILIZATION


def step_seconds(flops: float, operations: int, tokens_per_step: float, pace: dict | None) -> float:
    """Seconds per step: at an earlier run's `pace` if there is one, else from the flops of a step.

    On a GPU the host has to launch a step's `operations`, and a small model is computed faster than it is launched.
    That time is counted in operations; nobody has measured it on a GPU. On a CPU there are none. It does not shrink
    with the batch, but it is never longer than a whole step of the earlier run.
    """
    host = STEP_SECONDS + operations * LAUNCH_SECONDS if operations else 0.0
    if pace and pace.get("seconds_per_token"):
        return max(tokens_per_step * pace["seconds_per_token"], min(host, pace.get("seconds_per_step", 0.0)))
    return max(flops / device_speed(), host)


def token_seconds(shape: Shape, rows: int) -> float:
    """Seconds for the next token of `rows` answers. On a GPU it is the host's time, counted in operations and not
    measured, unless the model is so large that the device needs longer."""
    host = shape.layers * LAYER_OPERATIONS * LAUNCH_SECONDS if device_type() == "cuda" else CPU_TOKEN_SECONDS
    return max(host, 2 * shape.parameters * rows / device_speed())


def pace_key(device: str, recipe: Recipe) -> str:
    """What runs must share for the pace of one to predict the other's: device, model, precision and method."""
    return " | ".join((device, recipe.model.name, recipe.model.quantization, recipe.method.name))


def remember(path: Path, key: str, measured: dict) -> None:
    """Store the measured pace of a run: seconds_per_token (padding included), seconds_per_step, start_up,
    seconds_per_answer."""
    paces = _paces(path)
    before = paces.pop(key, None)
    measured = {**(before if isinstance(before, dict) else {}), **measured}
    newest = [*paces.items(), (key, measured)][-KEPT_PACES:]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    partial.write_text(json.dumps(dict(newest), indent=1), encoding="utf-8")
    partial.replace(path)


def recall(path: Path, key: str) -> dict | None:
    """The latest pace stored for `key`; None if there is none, or if the file is broken."""
    measured = _paces(path).get(key)
    return measured if isinstance(measured, dict) else None


def _paces(path: Path) -> dict:
    try:
        paces = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return paces if isinstance(paces, dict) else {}
