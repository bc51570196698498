"""Seconds per step: from the paces of earlier runs like it, or else from a step's work and the machine's speed."""

import json
import os
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tuner.models.device import device_type, fact, gpu
from tuner.models.shape import Base, Shape, shape_of
from tuner.planning import probe
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
# What a CPU does for each byte that a step keeps for its backward pass, in flops: normalization, activations, softmax
# and their gradients. Fitted on the four shipped tasks, whose steps of 0.034 to 0.2 s it gives to 10%.
FLOPS_PER_BYTE = 250
# Of a CPU's work, matrix products, where nobody knows what a step keeps: 0.37 to 0.47 of the shipped tasks' work.
PRODUCTS = 0.4
MEASURED_SECONDS = 0.6  # the look at a CPU; a busy one is slow in some moments and not in others
FRESH_SECONDS = 60.0  # until a CPU is looked at again, since it may be less busy by then, or more
FIRST_SECONDS = 10.0  # the same after the first look, at which the app and the browser may still be starting
# Seconds in which the host prepares and launches one operation on a GPU. Eager PyTorch needs 5 to 25 µs for it:
# https://jiahuanglin.xyz/all_lessons/gpu_kernel_serving/18_pytorch_to_kernel.html
LAUNCH_SECONDS = 10e-6
# Of a forward pass through a decoder's layer with LoRA, counted on Qwen3: 115 in training; 97 in a batch of base and
# adapter, to which come the casts of autocast.
LAYER_OPERATIONS = 120
# What the host of a CPU does in a step, in operations of `probe.look`: for each counted operation with the modules
# and adapters around it, and around the step. Fitted on the four shipped tasks.
CALLS, AROUND = 2.5, 1250
# What the trainer does around a step on a GPU: 50 steps of a tiny model took 2.9 s on two CPU cores, and 2.4 s in a
# bare loop.
STEP_SECONDS = 0.01

# What the pace of scoring is called: where base and adapter answer, and where the adapter answers alone.
ANSWER_PACES = {True: "seconds_per_answer", False: "seconds_per_lone_answer"}
# Both answers of the base to a row with examples in the prompt, and how long these prompts are.
EXAMPLES_PACE, EXAMPLES_TOKENS = "seconds_per_answer_with_examples", "tokens_per_prompt_with_examples"
PACES = "paces.json"  # in the folder of runs
KEPT_PACES = 200
KEPT_RUNS = 5  # with a pace for the same key
# A lone earlier run on a CPU that took so many times longer than it should have had to share the CPU.
STALLED = 3.0

_looked: tuple[float, probe.Look] | None = None  # until when this look at the CPU holds, and what was seen
_looking = threading.Lock()


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


def step_work(flops: float, kept: float | None) -> float:
    """What a CPU does in a step, in flops: its products, and whatever goes through the `kept` bytes of activations."""
    return flops / PRODUCTS if kept is None else flops + FLOPS_PER_BYTE * kept


def device_speed() -> float:
    """Flops per second that training can be expected to reach on this device; of `step_work` on a CPU."""
    if device_type() == "cuda":
        granted = gpu()
        per_clock = TENSOR_FLOPS.get(granted.capability, LEAST_FLOPS)
        return granted.multiprocessors * per_clock * (granted.clock or TYPICAL_CLOCK) * GPU_UTILIZATION
    return cpu_look().speed


def cpu_look(look: Callable[[], probe.Look] = lambda: probe.look(MEASURED_SECONDS)) -> probe.Look:
    """What this machine's CPU does just now, or did less than a minute ago, or 10 seconds after the start. `look`
    measures it."""
    global _looked
    if told := fact("look"):
        return probe.Look(*told)
    with _looking:  # two at once would hold each other up
        if _looked is None or time.monotonic() > _looked[0]:
            holds = FRESH_SECONDS if _looked else FIRST_SECONDS
            _looked = time.monotonic() + holds, look()
        return _looked[1]


def step_seconds(
    flops: float, operations: int, tokens_per_step: float, pace: dict | None, kept: float | None = None
) -> float:
    """Seconds per step: at the `pace` of earlier runs if there is one, else from the work of a step.

    On a GPU the host has to launch a step's `operations`, and a small model is computed faster than it is launched.
    That time is counted in operations; nobody has measured it on a GPU. It does not shrink with the batch, but it is
    never longer than a whole step of the earlier runs. A CPU is its own host, so that the two times add up.
    """
    if device_type() == "cuda":
        host = STEP_SECONDS + operations * LAUNCH_SECONDS
        estimate = max(flops / device_speed(), host)
    else:
        host = 0.0
        estimate = step_work(flops, kept) / device_speed() + (AROUND + CALLS * operations) * cpu_look().operation
    if not pace or not pace.get("seconds_per_token"):
        return estimate
    measured = max(tokens_per_step * pace["seconds_per_token"], min(host, pace.get("seconds_per_step", 0.0)))
    return believable(measured, pace, estimate)


def believable(measured: float, pace: dict, estimate: float) -> float:
    """What earlier runs measured, or the estimate where a single one was too slow on a CPU to be believed."""
    is_stalled = pace.get("runs") == 1 and device_type() == "cpu" and measured > STALLED * estimate
    return estimate if is_stalled else measured


def token_seconds(shape: Shape, rows: int) -> float:
    """Seconds for the next token of `rows` answers: the host's time, counted in operations, and on a GPU not measured;
    and the device's, which a GPU needs at the same time."""
    host, device = shape.layers * LAYER_OPERATIONS * LAUNCH_SECONDS, 2 * shape.parameters * rows / device_speed()
    return max(host, device) if device_type() == "cuda" else host + device / PRODUCTS


def reading_seconds(base: Base, prompts: int, length: float) -> float:
    """Seconds to read so many prompts of `length` tokens; only the encoder of an encoder-decoder reads them.

    A weight needs 2 operations per token, attention 4 times length times width per layer, as in `flops_per_step`; it
    counts twice, since its products are slower on a CPU than those of weights, by the shipped tasks' prompts.
    """
    shape = shape_of(base)
    weights = shape.parameters / (2 if base.row.encoder_decoder else 1)
    flops = prompts * length * (2 * weights + 8 * shape.layers * length * shape.width)
    return flops / device_speed() / (1 if device_type() == "cuda" else PRODUCTS)


def pace_key(device: str, recipe: Recipe) -> str:
    """What runs must share for the pace of one to predict the other's: device, model, precision and method."""
    return " | ".join((device, recipe.model.name, recipe.model.quantization, recipe.method.name))


def remember(path: Path, key: str, measured: dict, run: str = "") -> None:
    """Store what the run of this id measured: seconds_per_token (padding included), seconds_per_step, start_up,
    one of ANSWER_PACES, and EXAMPLES_PACE with EXAMPLES_TOKENS."""
    paces = _paces(path)
    others = _runs(paces.pop(key, None))
    before = next((other for other in others if other.get("run") == run), {})
    kept = [other for other in others if other is not before][-KEPT_RUNS + 1 :]
    newest = [*paces.items(), (key, [*kept, {**before, **measured, "run": run}])][-KEPT_PACES:]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    partial.write_text(json.dumps(dict(newest), indent=1), encoding="utf-8")
    partial.replace(path)


def recall(path: Path, key: str) -> dict | None:
    """What the latest runs with this `key` measured, the median of each figure, and how many "runs" they were.

    The lower median, because what disturbs a run makes it slower. None if there are no runs, or if the file is broken.
    """
    stored = _runs(_paces(path).get(key))
    figures: dict[str, list[float]] = {}
    for run in stored:
        for name, value in run.items():
            if isinstance(value, float | int) and not isinstance(value, bool):
                figures.setdefault(name, []).append(value)
    medians = {name: statistics.median_low(values) for name, values in figures.items()}
    return {**medians, "runs": len(stored)} if medians else None


def _runs(stored: Any) -> list[dict]:
    """The runs stored for a key; earlier versions stored the latest one alone."""
    runs = [stored] if isinstance(stored, dict) else stored if isinstance(stored, list) else []
    return [run for run in runs if isinstance(run, dict)]


def _paces(path: Path) -> dict:
    try:
        paces = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return paces if isinstance(paces, dict) else {}
