"""Merge the adapter into the 16-bit base, and check how far the merged model is from the adapter.

Merging into a 4-bit base would round a light tune away, so the merge is into the weights as published. Two figures
tell the shares apart: merged against the adapter on the same 16-bit base (what merging and rounding changed), and
merged against the adapter on the quantised base that it was trained on (what quantisation changed besides).
"""

import gc

import torch
from datasets import load_from_disk

from tuner import generate, models
from tuner.errors import TunerError
from tuner.runs import Run

CHECKED_TOKENS = 1024  # at a vocabulary of 150,000 their logits are 600 MB


def merge(run: Run) -> dict:
    """Write the merged model and merge_check.json into the run; returns the check. Done once: a second call reads
    it."""
    from peft import PeftModel

    if run.merged.is_dir() and (check := run.read_json("merge_check.json")):
        return check
    if not (run.adapter / "adapter_config.json").is_file():
        raise TunerError(f"Run {run.id} has no adapter to merge yet. Train it first, or wait until it has finished.")
    recipe = run.recipe
    folder = models.fetch(recipe.model.model_copy(update={"revision": run.plan["revision"]}))
    rows = load_from_disk(str(run.data / "heldout"))
    on_quantized = None
    if recipe.model.quantization != "none":
        with generate.attached(run) as loaded:
            on_quantized = _logits(loaded.model, rows)
    base = models.load(folder, recipe.model, quantization="none")
    stored = models.load_config(folder, recipe.model.name).dtype or base.dtype
    adapted = PeftModel.from_pretrained(base, run.adapter).eval()
    on_16_bit = _logits(adapted, rows)
    merged = adapted.merge_and_unload().to(stored)
    with run.folder("merged") as target:
        merged.save_pretrained(target)
        models.load_tokenizer(folder).save_pretrained(target)
    del base, adapted, merged
    gc.collect()

    as_saved = _logits(models.shared(run.merged, recipe.model, quantization="none"), rows)
    check = {"tokens": len(as_saved), **_compare(as_saved, on_16_bit, "")}
    check |= _compare(as_saved, on_16_bit if on_quantized is None else on_quantized, "_quantized")
    run.write_json("merge_check.json", check)
    return check


@torch.inference_mode()
def _logits(model, rows) -> torch.Tensor:
    """Logits before every trained token of `rows`, float32 on the CPU, tokens x vocabulary."""
    device, found = next(model.parameters()).device, []
    for row in rows:
        labels = torch.tensor(row["labels"][1:])
        logits = model(input_ids=torch.tensor([row["input_ids"]], device=device), use_cache=False).logits[0, :-1]
        found.append(logits[(labels != -100).to(device)].float().cpu())
        if sum(map(len, found)) >= CHECKED_TOKENS:
            break
    return torch.cat(found)[:CHECKED_TOKENS]


def _compare(one: torch.Tensor, other: torch.Tensor, suffix: str) -> dict:
    return {
        f"top1_agreement{suffix}": round((one.argmax(-1) == other.argmax(-1)).float().mean().item(), 5),
        f"max_logit_difference{suffix}": round((one - other).abs().max().item(), 5),
    }
