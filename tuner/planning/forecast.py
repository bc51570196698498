"""Estimates of a run's steps, seconds and memory, made before it starts and compared with the actual run later."""

import logging
import os
from typing import Any

from tuner import runs
from tuner.data.batches import Batches
from tuner.data.tokens import IGNORE_INDEX, Tokenized
from tuner.errors import TunerError
from tuner.methods.registry import METHODS
from tuner.models.device import compute_dtype, device_type
from tuner.models.fetch import base_of
from tuner.models.shape import Base, Shape, shape_of
from tuner.planning.budget import choose_steps, measuring_steps
from tuner.planning.heads import has_own_head
from tuner.planning.memory import BACKWARD_OPERATIONS, BYTES, available_memory, estimate_memory, step_operations
from tuner.planning.pace import (
    LAYER_OPERATIONS,
    PACES,
    believable,
    flops_per_step,
    pace_key,
    recall,
    step_seconds,
    token_seconds,
)
from tuner.planning.scoring import Prompts, estimate_scoring, turns
from tuner.recipe import Recipe
from tuner.runs import Run
from tuner.words import count, gigabytes

log = logging.getLogger(__name__)

# Limits for visitors of a shared page.
MAX_PARAMETERS = float(os.environ.get("TUNER_MAX_BILLION_PARAMETERS", 9)) * 1e9  # of the base model
MAX_SECONDS = float(os.environ.get("TUNER_MAX_SECONDS", 900))  # of the run
MAX_TOKENS = float(os.environ.get("TUNER_MAX_TOKENS", 5e6))  # of the training rows
USABLE = 0.9  # share of a device's memory; allocators waste some
# Assumed if no earlier run was measured:
READ_SPEED = 1e9  # bytes of weights loaded per second, as they are stored
QUANTIZE_SPEED = {"cpu": 5e7, "cuda": 2e9}  # weights per second; a CPU took 2.0 to 2.9 s for a model of 135 million
LOAD_SECONDS = 1.0  # for loading anything, whatever its size
KEEPING_SECONDS = 0.1  # for reading the held-out rows and keeping their scores
PARTS = {
    "weights": "weights",
    "adapter": "adapter and optimizer",
    "activations": "activations",
    "logits": "logits",
    "context": "CUDA context",
}


def estimate_run(
    recipe: Recipe,
    base: Base,
    settings: dict,
    rows: Tokenized,
    heldout: int,
    trainable: int,
    prompts: Prompts = Prompts(),  # noqa: B008  which never changes
) -> dict[str, Any]:
    """Steps, seconds (start_up, a_step, measuring, training, scoring) and bytes of memory, which is None if unknown.

    `rows` are the training rows, `heldout` is the number of held-out rows, `trainable` that of trained parameters.
    """
    shape = shape_of(base)
    lengths = [len(row["input_ids"]) for row in rows.rows]
    batches = Batches(lengths, settings["batch_size"], recipe.seed)
    sizes = list(batches.sizes_of(batches.epoch(0)))
    mean = sum(sizes) / len(sizes)
    largest = max(batches.epoch(0), key=lambda batch: max(lengths[i] for i in batch))
    length = max(lengths[i] for i in largest)
    columns = len({c for i in largest for c, label in enumerate(rows.rows[i]["labels"]) if label != IGNORE_INDEX})
    pace = recall(runs.RUNS / PACES, pace_key(device_type(), recipe)) or {}
    flops = flops_per_step(
        shape, trainable, settings, round(mean / settings["batch_size"]), round(columns * mean / max(sizes))
    )
    memory = _memory(base, recipe, settings, length, columns)
    layers = shape.layers * LAYER_OPERATIONS * (1 + BACKWARD_OPERATIONS)
    operations = step_operations(base, recipe, settings, length, columns) if memory else round(layers)
    kept = memory and memory["activations"] * mean / max(sizes)
    a_step, unmeasured = (step_seconds(flops, operations, mean, known, kept) for known in (pace, None))
    start_up = load_seconds(shape, recipe.model.quantization, settings["dtype"])
    if "start_up" in pace:
        start_up = believable(pace["start_up"], pace, start_up)
    asked, budget = min(heldout, recipe.evaluation.rows), recipe.budget
    own_head = has_own_head(base)
    scoring = estimate_scoring(recipe, base, settings, asked, prompts, pace, own_head)
    # Two forward passes, of base and adapter, take about as long as a step.
    losses = -(-scoring.rows // settings["batch_size"]) * a_step * (1 if own_head else 0.5)
    steps = choose_steps(recipe.budget, len(lengths), settings["batch_size"]).number
    measuring = measuring_steps(recipe, steps, settings["batch_size"], heldout)
    estimate = {
        "start_up": start_up,
        "a_step": a_step,
        "measuring": measuring * a_step,
        "scoring": KEEPING_SECONDS + scoring.seconds + losses,
        "scored": scoring.rows,
        "has_examples": scoring.of_examples > 0,
        # Of these seconds, those in which the base answers, which the later runs of an experiment need not take.
        "untuned": {"base": scoring.of_base + losses / 2 * own_head, "examples": scoring.of_examples},
        "measured": "seconds_per_token" in pace and a_step != unmeasured,
        "memory": memory,
        "available": available_memory(),
        "steps": steps or max(0, int((budget.seconds - start_up) / a_step - measuring)),
        "training": budget.seconds or start_up + (steps + measuring) * a_step,
    }
    # Significant digits: on a fast GPU a step may take microseconds, but never nothing.
    return {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in estimate.items()}


def load_seconds(shape: Shape, quantization: str, dtype: str) -> float:
    """Seconds to load a base, whose weights are stored in `dtype`, and to quantize it."""
    linear = sum(a * b for _, a, b in shape.linear_layers)
    quantizing = 0.0 if quantization == "none" else linear / QUANTIZE_SPEED[device_type()]
    return LOAD_SECONDS + shape.parameters * BYTES[dtype] / READ_SPEED + quantizing


def chat_seconds(run: Run, merged: int, max_new_tokens: int, adapters: int = 1) -> float:
    """Seconds of loading and answering in a worker that has loaded nothing yet.

    It loads the run's base as its recipe quantizes it, and `merged` models of the same size in 16 bits; then the base,
    `adapters` of runs on it and the merged models answer, each in at most `max_new_tokens` tokens.
    """
    base = base_of(run)
    shape, dtype = shape_of(base), compute_dtype(base.model)[0]
    loading = load_seconds(shape, base.model.quantization, dtype) + merged * load_seconds(shape, "none", dtype)
    turns_taken = turns(run.recipe, base, adapters) + merged
    tokens = max_new_tokens if base.row.generates else 1
    return loading + turns_taken * tokens * token_seconds(shape, 1 + adapters)


def _memory(base: Base, recipe: Recipe, settings: dict, length: int, columns: int) -> dict[str, int] | None:
    if METHODS[recipe.method.name].needs_storage:
        return None
    try:
        return estimate_memory(base, recipe, settings, length, columns)
    except Exception:
        # A failed estimate must not stop a run that would work.
        log.exception("no estimate of memory for %s on %s", recipe.method.name, recipe.model.name)
        return None


def rows_that_fit(estimate: dict, batch_size: int) -> int:
    """The largest batch that fits in memory, at most `batch_size`; 0 if not even one row does."""
    memory = estimate["memory"]
    if memory is None:
        return batch_size
    a_row = (memory["activations"] + memory["logits"]) / batch_size
    fixed = memory["total"] - a_row * batch_size
    fitting = int((estimate["available"] * USABLE - fixed) / max(1.0, a_row))
    if fitting >= batch_size:
        return batch_size
    return 0 if fitting < 1 else 1 << (fitting.bit_length() - 1)


def check_memory(estimate: dict, recipe: Recipe, batch_size: int) -> None:
    """Raise TunerError if the run does not fit in the device's memory, with what would."""
    fitting = rows_that_fit(estimate, batch_size)
    if fitting >= batch_size:
        return
    parts = ", ".join(
        f"{name} {gigabytes(estimate['memory'][key])}" for key, name in PARTS.items() if key in estimate["memory"]
    )
    ways = [f"at most {count(fitting, 'row')} per step (training.batch_size)"] if fitting else []
    ways += ["4-bit precision (model.quantization: nf4)"] if recipe.model.quantization != "nf4" else []
    ways += ["shorter rows (data.max_length)", "a smaller base model"]
    needed = gigabytes(estimate["memory"]["total"])
    raise TunerError(
        f"{recipe.model.name} needs about {needed} of memory for {count(batch_size, 'row')} per step ({parts}), and "
        f"the device has {gigabytes(estimate['available'])}. Choose {', '.join(ways[:-1])} or {ways[-1]}."
    )


def check_budget(estimate: dict, recipe: Recipe) -> None:
    """Raise TunerError if the budget is too short for a single step."""
    if estimate["steps"] < 1:
        measuring = estimate["measuring"]
        raise TunerError(
            f"budget.seconds: {recipe.budget.seconds:g} s is too short for a single step: loading takes about "
            f"{duration(estimate['start_up'])}, "
            + f"measuring the held-out loss {measuring:.1f} s " * (measuring > 0)
            + f"and a step {estimate['a_step']:.1f} s. Give more seconds, or choose a smaller base model."
        )


def check_limits(estimate: dict, tokens: int) -> None:
    """Raise TunerError if a visitor's run exceeds the limits of a shared page, with all problems."""
    problems = []
    if tokens > MAX_TOKENS:
        problems.append(
            f"The rows have {tokens:,} tokens per epoch, and this page allows at most {MAX_TOKENS:,.0f}. Set "
            "data.max_rows to use fewer rows."
        )
    if estimate["training"] > MAX_SECONDS:
        affordable = int((MAX_SECONDS - estimate["start_up"]) / estimate["a_step"])
        ways = f"at most {count(affordable, 'step')}, or " if 0 < affordable < estimate["steps"] else ""
        problems.append(
            f"This run would not finish: it needs about {duration(estimate['training'])}, and this page allows at "
            f"most {duration(MAX_SECONDS)} per run. Set {ways}a budget of at most {MAX_SECONDS:,.0f} seconds."
        )
    if problems:
        raise TunerError(*problems)


def sentences(estimate: dict) -> list[str]:
    """The estimate in words."""
    source = "estimated from an earlier run" if estimate["measured"] else "estimated from the model's size"
    lines = [
        f"About {duration(estimate['training'] + estimate['scoring'])} in all, {source}: "
        f"{count(estimate['steps'], 'step')} in {duration(estimate['training'])}, "
        f"then {duration(estimate['scoring'])} of scoring"
    ]
    if memory := estimate["memory"]:
        parts = ", ".join(f"{name} {gigabytes(memory[key])}" for key, name in PARTS.items() if key in memory)
        lines.append(
            f"About {gigabytes(memory['total'])} of memory, of {gigabytes(estimate['available'])} available: {parts}"
        )
    return lines


def duration(seconds: float) -> str:
    """Seconds in words, such as 1 min 05 s."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
