"""Base models and tokenizers: finding, checking, loading and quantising them. safetensors only, never remote code.

A model is named as on the Hub, or by a folder shipped under examples/; both go through the same code. `fetch` is what
may use the network; everything behind it reads the disk.
"""

from collections import OrderedDict

from tuner.models.device import compute_dtype, device_type
from tuner.models.shape import Base, _configure, shape_of

KEPT = 3  # models that stay loaded for the next job
KEPT_SHARE = 0.1  # of a GPU's memory that they may take when another is loaded

_kept: OrderedDict[tuple, object] = OrderedDict()


def load_base(base: Base, *, quantization: str | None = None):
    """The base model on the device, in evaluation mode, quantised as the recipe says unless told otherwise.

    A new head is drawn by a fixed seed, so that it is the same wherever it is drawn.
    """
    import torch
    import transformers

    dtype = getattr(torch, compute_dtype(base.model)[0])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        loaded = getattr(transformers, base.row.auto_class).from_pretrained(
            base.folder,
            config=_configure(base),
            dtype=dtype,
            quantization_config=_quantization(quantization or base.model.quantization, dtype, shape_of(base).heads),
            device_map={"": 0} if device_type() == "cuda" else None,
            ignore_mismatched_sizes=base.row.has_labels,  # a head for other labels than ours is drawn anew
            use_safetensors=True,
            trust_remote_code=False,
        )
    for module in loaded.modules():
        # On CPUs with AVX512-bf16 bitsandbytes repacks 4-bit weights in place at the first evaluation and rounds them
        # to
        # bfloat16 on the way: an evaluation would then change the training that follows.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return loaded.eval()


def shared_base(base: Base, *, quantization: str | None = None):
    """The same model as `load` gives, kept for the next who asks: whoever changes it leaves it as it was found."""
    key = (
        str(base.folder),
        (base.folder / "config.json").stat().st_mtime_ns,
        base.task,
        base.labels,
        quantization or base.model.quantization,
        compute_dtype(base.model)[0],
    )
    if key not in _kept:
        while len(_kept) >= KEPT or (_kept and _is_full()):
            _kept.popitem(last=False)
        _kept[key] = load_base(base, quantization=quantization)
    _kept.move_to_end(key)
    return _kept[key]


def forget_bases() -> None:
    """Drop the kept models, because one may have been left changed or the device is full."""
    _kept.clear()


def _is_full() -> bool:
    """Whether the kept models take so much of a GPU that a run that was promised its memory might not get it."""
    if device_type() == "cpu":
        return False
    import torch

    held = sum(model.get_memory_footprint() for model in _kept.values())
    return held > KEPT_SHARE * torch.cuda.get_device_properties(0).total_memory


def _quantization(kind: str, dtype, heads: tuple[str, ...]):
    from transformers import BitsAndBytesConfig

    # A new head has to be trained, which 4-bit weights can't be.
    skipped = {"llm_int8_skip_modules": list(heads)} if heads else {}
    if kind == "nf4":
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            **skipped,
        )
    return BitsAndBytesConfig(load_in_8bit=True, **skipped) if kind == "int8" else None
