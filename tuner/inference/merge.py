"""Merge the adapter into the 16-bit base model, and check whether merging changes the answers.

Merging into 4-bit weights would round small updates away, so the adapter is merged into the weights as published. The
merged model is compared with the adapter twice: on the same 16-bit base, to show the effect of merging and rounding,
and on the base as trained, to show the effect of quantization as well. The former decides whether the merge has failed
(merge_check.py).
"""

import gc
import shutil
import threading
from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import torch
from datasets import Dataset, load_from_disk
from torch import nn
from transformers import PreTrainedModel

from tuner import run_lock
from tuner.data.tokens import IGNORE_INDEX
from tuner.errors import TunerError
from tuner.inference import cpu_process, merge_check
from tuner.inference.variants import common_base, load_variants, no_adapter
from tuner.methods import attach
from tuner.methods.files import CONFIG, write_template
from tuner.methods.registry import METHODS, resolve
from tuner.models.device import autocast, device_type
from tuner.models.fetch import base_of
from tuner.models.load import forget_bases, load_base
from tuner.models.losses import SCORES, collate
from tuner.models.origin import in_16_bits
from tuner.models.shape import Base, load_config, load_tokenizer, shape_of
from tuner.models_cleanup import free_disk
from tuner.planning.memory import available_memory
from tuner.runs import Run
from tuner.runs_cleanup import bytes_to_merge

CHECKED_TOKENS = 1024  # with a vocabulary of 150,000, their logits take 600 MB
# Operations of one pass over the checked rows, 2 a parameter and token: ten seconds on two cores of 2026. A model with
# a billion parameters reads 500 tokens in that, so a larger one is checked on fewer rows.
CHECK_FLOPS = 1e12

FLOAT32 = "float32"

_one_at_a_time = threading.Lock()


def merge(run: Run) -> dict:
    """Write the merged model and merge_check.json into the run; returns the check. A second call only reads it.

    Where there is a GPU, it is left to others: the CPU merges in a process of its own if there is enough memory.
    Raises TunerError if there is no adapter yet, or if its method can't be merged.
    """
    check = existing_check(run) or (on_the_cpu(run) if device_type() == "cuda" else None)
    return check or merge_here(run)


def existing_check(run: Run) -> dict | None:
    """The check of the run's merged model; None if it is not merged yet."""
    return run.read_json("merge_check.json") if run.merged.is_dir() else None


def on_the_cpu(run: Run, token: str | bool | None = None) -> dict | None:
    """Merge in a process without a GPU; None if there is not enough memory for that. Raises TunerError as `merge`.

    `token` is as for `merge_here`.
    """
    check_mergeable(run)
    with _one_at_a_time:  # each counts on all of the free memory
        if check := existing_check(run):
            return check
        if not cpu_process.has_room(base_of(run)):
            return None
        _in_16_bits(run, token)  # downloaded here: that process is nobody's
        printed = cpu_process.tuner("merge", str(run.path.resolve()))
        return printed and {name: value for name, value in printed.items() if name != "merged"}


def merge_here(run: Run, token: str | bool | None = None) -> dict:
    """Merge on this process's device; returns the check. Raises TunerError as `merge`, and if the disk has no room.

    `token` is that of whoever asks, as for `fetch_model`: a base that was published quantized is merged in its origin.
    """
    check_mergeable(run)
    _check_disk(run)
    with run_lock.merging(run.path):
        return existing_check(run) or _merge_and_check(run, token)


def _merge_and_check(run: Run, token: str | bool | None) -> dict:
    base, adapter = base_of(run), _version(run.adapter)
    plain = _in_16_bits(run, token)
    rows = _rows_to_check(load_from_disk(str(run.data / "heldout")), shape_of(base).parameters)
    on_quantized = None
    if base.model.quantization != "none":
        with load_variants({"adapter": run}).model_for("adapter") as model:
            on_quantized = _logits(base.row.objective, model, rows)
    if device_type() == "cuda":
        forget_bases()  # models kept for chat, which would be in the way
        gc.collect()
    adapted = attach.load(load_base(plain, quantization="none"), {"default": run.adapter})
    with autocast(base.model):
        on_16_bit = _logits(base.row.objective, adapted, rows)
    with attach.disabled(adapted):
        effect = merge_check.distance(on_16_bit, _logits(base.row.objective, adapted, rows))
    _save(attach.merge(adapted), base, run)
    del adapted
    gc.collect()

    merged = load_base(replace(plain, folder=run.merged), quantization="none")
    as_saved, precision = _logits(base.row.objective, merged, rows), _precision(merged, base)
    tolerance = merge_check.tolerance(effect, on_16_bit, precision)
    check = merge_check.figures(as_saved, on_16_bit, on_quantized, tolerance)
    del merged
    gc.collect()
    if check["merge_failed"] and precision > torch.finfo(torch.float32).eps and _has_room_for_float32(plain):
        check = _merge_in_float32(run, plain, rows, effect, on_16_bit if on_quantized is None else on_quantized)
    if not run.path.is_dir():
        raise TunerError(f"Run {run.id} was deleted meanwhile, so nothing was saved.")
    if _version(run.adapter) != adapter:  # it was trained further, and merging takes minutes
        shutil.rmtree(run.merged, ignore_errors=True)
        return _merge_and_check(run, token)
    run.write_json("merge_check.json", check)
    return check


def _merge_in_float32(run: Run, plain: Base, rows: Dataset, effect: float, as_trained: torch.Tensor) -> dict:
    """Write the merged model again, in float32; returns the check, against the adapter computed in float32.

    What some methods change is finer than 16 bits. `as_trained` are the adapter's logits as it was trained.
    """
    wide = replace(plain, model=plain.model.model_copy(update={"dtype": FLOAT32}))
    adapted = attach.load(load_base(wide, quantization="none"), {"default": run.adapter})
    exact = _logits(plain.row.objective, adapted, rows)
    _save(attach.merge(adapted), wide, run, torch.float32)
    del adapted
    gc.collect()
    merged = load_base(replace(wide, folder=run.merged), quantization="none")
    tolerance = merge_check.tolerance(effect, exact, torch.finfo(torch.float32).eps)
    check = merge_check.figures(_logits(plain.row.objective, merged, rows), exact, as_trained, tolerance)
    if run.recipe.model.quantization == "none":
        del check["quantization_agreement"]
    return check | {"merge_dtype": FLOAT32}


def _has_room_for_float32(base: Base) -> bool:
    """Whether the base fits in memory once more than it does already, as it is converted."""
    needed = 2 * shape_of(base).parameters * torch.float32.itemsize
    return needed < available_memory()


def _precision(merged: PreTrainedModel, base: Base) -> float:
    """The eps of the type that the merged weights were rounded to, or of the one that the model computes in."""
    return max(torch.finfo(dtype).eps for dtype in (_stored_type(base, merged), merged.dtype))


def _stored_type(base: Base, model: PreTrainedModel) -> torch.dtype:
    """The type that the base was published in."""
    return load_config(base.folder, base.model.name).dtype or model.dtype


def _check_disk(run: Run) -> None:
    needed, free = bytes_to_merge(run.plan), free_disk(run.path)
    if free < needed:
        raise TunerError(
            f"Merging run {run.id} needs up to {needed / 2**20:,.0f} MB of disk space, and {free / 2**20:,.0f} MB are "
            "free. Delete old runs, then merge it again."
        )


def _version(adapter: Path) -> tuple[int, int]:
    """What differs once the folder is replaced."""
    found = adapter.stat()
    return found.st_ino, found.st_mtime_ns


def _rows_to_check(rows: Dataset, parameters: int) -> Dataset:
    """The first rows, as many as a CPU can read in reasonable time; all of them on a GPU."""
    if device_type() == "cuda":
        return rows
    costs = accumulate(2 * parameters * len(ids) for ids in rows["input_ids"])
    affordable = sum(cost <= CHECK_FLOPS for cost in costs)
    return rows.select(range(max(1, affordable)))


def check_mergeable(run: Run) -> None:
    """Raise TunerError if the run has no adapter yet, or if its method can't be merged."""
    if not (run.adapter / CONFIG).is_file():
        raise no_adapter(run)
    if not _has_16_bits(run):
        _in_16_bits(run)  # which says why there are none
    if adopted := run.plan.get("adopted"):
        raise TunerError(
            f"{adopted['adapter']} is an adapter of the Hub, and Tuner merges what was trained with it, whose rows it "
            "can check the result on. Train on from it (method.start_from), then merge that run."
        )
    if not is_mergeable(run):
        row = METHODS[run.recipe.method.name]
        raise TunerError(
            f"{row.title} can't be merged: what run {run.id} learned is not a change of the base model's weights. Use "
            "the adapter with its base model, or train with a method that can be merged, such as LoRA."
        )


def _in_16_bits(run: Run, token: str | bool | None = None) -> Base:
    """The run's base in the weights that its adapter is merged into."""
    return in_16_bits(base_of(run), run.plan.get("origin"), token)


def _has_16_bits(run: Run) -> bool:
    """Whether there are 16-bit weights of the run's base, as far as its plan knows."""
    return run.plan.get("origin", "") is not None


def is_mergeable(run: Run) -> bool:
    """Whether what the run learned can be added to the base model's weights."""
    if "adopted" in run.plan:
        return False
    row = METHODS[run.recipe.method.name]
    base = base_of(run)
    return _has_16_bits(run) and row.mergeable and row.mergeable_on(resolve(run.recipe, shape_of(base), base.row))


def merge_weighted(shares: dict[Run, float], folder: Path) -> None:
    """Write the base model with a weighted sum of what several runs learned: W + sum of share x (W_run - W).

    Task arithmetic, Ilharco et al. 2022 (https://arxiv.org/abs/2212.04089). On a CPU if there is enough memory, as in
    `merge`. Raises TunerError if a run can't be merged or if their base models differ.
    """
    for run in shares:
        check_mergeable(run)
    base = common_base(list(shares))
    plain = _in_16_bits(next(iter(shares)))
    # The model, and what changes in it: as it was and as it is summed up.
    if device_type() == "cuda" and cpu_process.has_room(base, copies=3):
        weights = ",".join(map(repr, shares.values()))
        paths = [str(run.path.resolve()) for run in shares]
        if cpu_process.tuner("merge", *paths, f"--weights={weights}", f"--out={folder.resolve()}") is not None:
            return
    model = load_base(plain, quantization="none")
    sums: dict[str, torch.Tensor] = {}
    for run, share in shares.items():
        _add(sums, model, run, share)
    parameters = dict(model.named_parameters())
    for name, total in sums.items():
        parameters[name].data = total.to(parameters[name].dtype)
    _write(model, base, folder)


@torch.no_grad()
def _add(sums: dict[str, torch.Tensor], model: PreTrainedModel, run: Run, share: float) -> None:
    """Add share x (W_run - W) to the sums of all weights that the run changed; the model is as before afterwards."""
    before = dict(model.named_parameters())
    adapted = attach.load(model, {"default": run.adapter})
    start = {id(p): p.detach().clone() for p in attach.merged_parameters(adapted)}
    for name, p in attach.merge(adapted).named_parameters():
        if p is before[name] and id(p) not in start:
            continue
        # A trained head or norm stands in the place of the base's own, which is as it was.
        value = start.get(id(before[name]), before[name].data)
        sums[name] = sums.get(name, value) + share * (p - value)
        p.data = value


def _save(model: PreTrainedModel, base: Base, run: Run, dtype: torch.dtype | None = None) -> None:
    with run.folder("merged") as target:
        _write(model, base, target, dtype)
        write_template(target, run.plan)


def _write(model: PreTrainedModel, base: Base, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write the model in this type, or in the one that the base was published in."""
    model.to(dtype or _stored_type(base, model)).save_pretrained(folder)
    load_tokenizer(base.folder).save_pretrained(folder)


@torch.inference_mode()
def _logits(objective: str, model: nn.Module, rows: Dataset) -> torch.Tensor:
    """Logits of all labeled positions of `rows`, up to CHECKED_TOKENS; float32 on the CPU, positions x choices."""
    device, parts = next(model.parameters()).device, []
    for row in rows:
        batch = {k: v.to(device) for k, v in collate([row]).items()}
        logits, labels = SCORES[objective](model, batch)
        parts.append(logits[labels != IGNORE_INDEX].float().cpu())
        if sum(map(len, parts)) >= CHECKED_TOKENS:
            break
    # In question answering the choices are the tokens of the text, so their number differs from row to row.
    widest = max(part.shape[1] for part in parts)
    parts = [torch.nn.functional.pad(part, (0, widest - part.shape[1]), value=-100.0) for part in parts]
    return torch.cat(parts)[:CHECKED_TOKENS]
