"""What a run will take: steps, seconds, memory. Told before a device is asked for, and held against the fact later."""

import logging
import os

from tuner import runs
from tuner.data.batches import Batches
from tuner.errors import TunerError
from tuner.methods.registry import METHODS
from tuner.models.device import device_type
from tuner.models.shape import Base, shape_of
from tuner.planning.memory import available_memory, estimate_memory, weight_bytes
from tuner.planning.pace import PACES, flops_per_step, pace_key, recall, step_seconds
from tuner.recipe import Recipe

log = logging.getLogger(__name__)

MAX_PARAMETERS = float(os.environ.get("TUNER_MAX_BILLION_PARAMETERS", 9)) * 1e9  # of a visitor's base model
MAX_SECONDS = float(os.environ.get("TUNER_MAX_SECONDS", 900))  # of a visitor's run
MAX_TOKENS = float(os.environ.get("TUNER_MAX_TOKENS", 5e6))  # of a visitor's rows
USABLE = 0.9  # share of a device's memory; allocators waste some
READING = 1e9  # bytes of weights a second that loading is taken to read
LOADING = 1.0  # seconds that it takes besides
A_TOKEN = 0.03  # seconds that a batch's next token is taken to need where no run was measured
ANSWERED_TOGETHER = 32  # rows, in the evaluation
PARTS = {
    "weights": "weights",
    "adapter": "adapter and optimizer",
    "activations": "activations",
    "logits": "logits",
    "context": "the GPU's own",
}


def forecast(recipe: Recipe, base: Base, settings: dict, rows, heldout: int, trainable: int) -> dict:
    """Steps, seconds (start_up, a_step, training, scoring) and bytes of memory; `rows` are tokenised, `heldout` is
    their number.

    Memory is None where a method can't be told from its shape.
    """
    shape = shape_of(base)
    lengths = [len(row["input_ids"]) for row in rows.rows]
    batches = Batches(lengths, settings["batch_size"], recipe.seed)
    sizes = list(batches.sizes_of(batches.epoch(0)))
    mean = sum(sizes) / len(sizes)
    largest = max(batches.epoch(0), key=lambda batch: max(lengths[i] for i in batch))
    length = max(lengths[i] for i in largest)
    columns = len({c for i in largest for c, label in enumerate(rows.rows[i]["labels"]) if label != -100})
    pace = recall(runs.RUNS / PACES, pace_key(device_type(), recipe)) or {}
    flops = flops_per_step(
        shape, trainable, settings, round(mean / settings["batch_size"]), round(columns * mean / max(sizes))
    )
    a_step = step_seconds(flops, mean, pace)
    weights = weight_bytes(shape, recipe.model.quantization, settings["dtype"])
    start_up = pace.get("start_up") or LOADING + weights / READING
    found = {
        "start_up": start_up,
        "a_step": a_step,
        "scoring": _scoring(recipe, base, min(heldout, recipe.evaluation.rows), pace.get("seconds_per_answer")),
        "measured": "seconds_per_token" in pace,
        "memory": _memory(base, recipe, settings, length, columns),
        "available": available_memory(),
    }
    budget = recipe.budget
    steps = budget.steps or (budget.epochs and max(1, round(budget.epochs * len(sizes))))
    found["steps"] = steps or max(0, int((budget.seconds - start_up) / a_step))
    found["training"] = budget.seconds or start_up + steps * a_step
    return {k: round(v, 4) if isinstance(v, float) else v for k, v in found.items()}


def _scoring(recipe: Recipe, base: Base, rows: int, an_answer: float | None) -> float:
    tokens = recipe.evaluation.max_new_tokens if base.row.generates else 1
    usual = -(-rows // ANSWERED_TOGETHER) * tokens * A_TOKEN
    return LOADING + (rows * an_answer if an_answer else usual)


def _memory(base, recipe, settings, length: int, columns: int) -> dict | None:
    if METHODS[recipe.method.name].needs_storage:
        return None  # it can't be put on a model without storage
    try:
        return estimate_memory(base, recipe, settings, length, columns)
    except Exception:
        # An estimate that can't be made must not stop a run that could be.
        log.exception("no estimate of memory for %s on %s", recipe.method.name, recipe.model.name)
        return None


def rows_that_fit(found: dict, batch_size: int) -> int:
    """Rows a step, at most `batch_size`, whose memory is there; 0 where not even one's is."""
    memory = found["memory"]
    if memory is None:
        return batch_size
    a_row = (memory["activations"] + memory["logits"]) / batch_size
    fixed = memory["total"] - a_row * batch_size
    fitting = int((found["available"] * USABLE - fixed) / max(1.0, a_row))
    if fitting >= batch_size:
        return batch_size
    return 0 if fitting < 1 else 1 << (fitting.bit_length() - 1)


def check_memory(found: dict, recipe: Recipe, batch_size: int) -> None:
    """Raises TunerError where the run does not fit the device, with what would."""
    fitting = rows_that_fit(found, batch_size)
    if fitting >= batch_size:
        return
    parts = ", ".join(
        f"{name} {gigabytes(found['memory'][key])}" for key, name in PARTS.items() if key in found["memory"]
    )
    ways = [f"at most {fitting} rows a step (training.batch_size)"] if fitting else []
    ways += ["4 bits (model.quantization: nf4)"] if recipe.model.quantization != "nf4" else []
    ways += ["shorter rows (data.max_length)", "a smaller base model"]
    raise TunerError(
        f"{recipe.model.name} would need {gigabytes(found['memory']['total'])} of memory ({parts}), and the device "
        f"has {gigabytes(found['available'])}. Take {' or '.join(ways)}."
    )


def check_budget(found: dict, recipe: Recipe) -> None:
    """Raises TunerError where the budget buys no step."""
    if found["steps"] < 1:
        raise TunerError(
            f"budget.seconds: {recipe.budget.seconds:g} seconds buy no step of this run: loading takes about "
            f"{duration(found['start_up'])} and a step {found['a_step']:.1f} s. Give more seconds, or take a smaller "
            "base model."
        )


def check_limits(found: dict, tokens: int) -> None:
    """What a visitor's run may take of a shared page. Raises TunerError with all problems."""
    problems = []
    if tokens > MAX_TOKENS:
        problems.append(
            f"The rows come to {tokens:,} tokens an epoch; this page takes {MAX_TOKENS:,.0f}. Set data.max_rows to "
            "use a part of them."
        )
    if found["training"] > MAX_SECONDS:
        affordable = int((MAX_SECONDS - found["start_up"]) / found["a_step"])
        ways = f"at most {affordable:,} steps, or " if 0 < affordable < found["steps"] else ""
        problems.append(
            f"This run would not finish: it needs about {duration(found['training'])}, and this page gives a run "
            f"{duration(MAX_SECONDS)}. Take {ways}a budget of at most {MAX_SECONDS:,.0f} seconds."
        )
    if problems:
        raise TunerError(*problems)


def sentences(found: dict) -> list[str]:
    """The forecast in plain words."""
    source = "at the pace of an earlier run" if found["measured"] else "by this model's size"
    told = [
        f"About {duration(found['training'] + found['scoring'])} in all, {source}: {found['steps']:,} steps in "
        f"{duration(found['training'])}, then {duration(found['scoring'])} of scoring"
    ]
    if memory := found["memory"]:
        parts = ", ".join(f"{name} {gigabytes(memory[key])}" for key, name in PARTS.items() if key in memory)
        told.append(
            f"{gigabytes(memory['total'])} of memory, of {gigabytes(found['available'])} that there are: {parts}"
        )
    return told


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def gigabytes(count: float) -> str:
    """Bytes as a person says them."""
    return f"{count / 2**30:.1f} GB" if count >= 2**30 else f"{count / 2**20:.0f} MB"
