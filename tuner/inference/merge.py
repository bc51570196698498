"""Merge the adapter into the 16-bit base model, and check whether merging changes the answers.

Merging into 4-bit weights would round small updates away, so the adapter is merged into the weights as published. The
merged model is compared with the adapter twice: on the same 16-bit base, to show the effect of merging and rounding,
and on the base as trained, to show the effect of quantization as well.
"""

import gc
from dataclasses import replace
from pathlib import Path

import torch
from datasets import Dataset, load_from_disk
from torch import nn
from transformers import PreTrainedModel

from tuner.data.tokens import IGNORE_INDEX
from tuner.errors import TunerError
from tuner.inference.variants import load_variants
from tuner.methods import attach
from tuner.methods.files import CONFIG
from tuner.methods.registry import METHODS, resolve
from tuner.models.device import autocast
from tuner.models.fetch import base_of
from tuner.models.load import load_base, shared_base
from tuner.models.losses import SCORES, collate
from tuner.models.shape import Base, load_config, load_tokenizer, shape_of
from tuner.runs import Run

CHECKED_TOKENS = 1024  # with a vocabulary of 150,000, their logits take 600 MB


def merge(run: Run) -> dict:
    """Write the merged model and merge_check.json into the run; returns the check. A second call only reads it.

    Raises TunerError if there is no adapter yet, or if its method can't be merged.
    """
    if run.merged.is_dir() and (check := run.read_json("merge_check.json")):
        return check
    check_mergeable(run)
    base = base_of(run)
    rows = load_from_disk(str(run.data / "heldout"))
    on_quantized = None
    if base.model.quantization != "none":
        with load_variants({"adapter": run}).model_for("adapter") as model:
            on_quantized = _logits(base.row.objective, model, rows)
    adapted = attach.load(load_base(base, quantization="none"), {"default": run.adapter})
    with autocast(base.model):
        on_16_bit = _logits(base.row.objective, adapted, rows)
    _save(attach.merge(adapted), base, run)
    del adapted
    gc.collect()

    as_saved = _logits(base.row.objective, shared_base(replace(base, folder=run.merged), quantization="none"), rows)
    check = {"tokens": len(as_saved), **_compare(as_saved, on_16_bit, "")}
    check |= _compare(as_saved, on_16_bit if on_quantized is None else on_quantized, "_quantized")
    run.write_json("merge_check.json", check)
    return check


def check_mergeable(run: Run) -> None:
    """Raise TunerError if the run has no adapter yet, or if its method can't be merged."""
    if not (run.adapter / CONFIG).is_file():
        raise TunerError(f"Run {run.id} has no adapter to merge yet. Train it first, or wait until it has finished.")
    if not is_mergeable(run):
        row = METHODS[run.recipe.method.name]
        raise TunerError(
            f"{row.title} can't be merged: what run {run.id} learned is not a change of the base model's weights. Use "
            "the adapter with its base model, or train with a method that can be merged, such as LoRA."
        )


def is_mergeable(run: Run) -> bool:
    """Whether what the run learned can be added to the base model's weights."""
    row = METHODS[run.recipe.method.name]
    base = base_of(run)
    return row.mergeable and row.mergeable_on(resolve(run.recipe, shape_of(base), base.row))


def merge_weighted(shares: dict[Run, float], folder: Path) -> None:
    """Write the base model with a weighted sum of what several runs learned: W + sum of share x (W_run - W).

    Task arithmetic, Ilharco et al. 2022 (https://arxiv.org/abs/2212.04089). Raises TunerError if a run can't be merged
    or if their base models differ.
    """
    for run in shares:
        check_mergeable(run)
    base = load_variants({str(run.path): run for run in shares}).base
    model = load_base(base, quantization="none")
    weights = dict(model.named_parameters())
    start = {name: p.detach().clone() for name, p in weights.items()}
    with torch.no_grad():
        for run, share in shares.items():
            merged = attach.merge(attach.load(load_base(base, quantization="none"), {"default": run.adapter}))
            for name, p in merged.named_parameters():
                weights[name] += share * (p - start[name])
    _write(model, base, folder)


def _save(model: PreTrainedModel, base: Base, run: Run) -> None:
    with run.folder("merged") as target:
        _write(model, base, target)


def _write(model: PreTrainedModel, base: Base, folder: Path) -> None:
    stored = load_config(base.folder, base.model.name).dtype or model.dtype
    model.to(stored).save_pretrained(folder)
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


def _compare(one: torch.Tensor, other: torch.Tensor, suffix: str) -> dict:
    return {
        f"top1_agreement{suffix}": round((one.argmax(-1) == other.argmax(-1)).float().mean().item(), 5),
        f"max_logit_difference{suffix}": round((one - other).abs().max().item(), 5),
    }
