"""Load base models from disk onto the device, quantized as the recipe says. safetensors only, never remote code."""

from collections import OrderedDict
from typing import TYPE_CHECKING

from tuner.models.device import compute_dtype, device_type
from tuner.models.shape import Base, _configure, shape_of

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig, PreTrainedModel

KEPT = 3  # base models that stay loaded
KEPT_SHARE = 0.1  # of the GPU's memory: with more in use, kept models are dropped before another is loaded

_kept: OrderedDict[tuple, "PreTrainedModel"] = OrderedDict()


def load_base(base: Base, *, quantization: str | None = None) -> "PreTrainedModel":
    """The base model on the device, in evaluation mode; `quantization` overrides the recipe's.

    A new head is initialized with a fixed seed, so it is the same in every process.
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
            ignore_mismatched_sizes=base.row.has_labels,  # a head for other labels is replaced
            use_safetensors=True,
            trust_remote_code=False,
        )
    for module in loaded.modules():
        # On CPUs with AVX512-bf16, bitsandbytes repacks 4-bit weights in place at the first evaluation and rounds
        # them to bfloat16: an evaluation would then change the training that follows.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return loaded.eval()


def shared_base(base: Base, *, quantization: str | None = None) -> "PreTrainedModel":
    """The model that `load_base` loads, from a cache: a caller who changes it must restore it."""
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


def forget_bases(*, keep: int = 0) -> None:
    """Drop all models from the cache but the `keep` last used: one may be left changed, or the device is full."""
    while len(_kept) > keep:
        _kept.popitem(last=False)


def _is_full() -> bool:
    """Whether the cached models take memory that a run's estimate counts on."""
    if device_type() == "cpu":
        return False
    import torch

    cached = sum(model.get_memory_footprint() for model in _kept.values())
    return cached > KEPT_SHARE * torch.cuda.get_device_properties(0).total_memory


def _quantization(kind: str, dtype: "torch.dtype", heads: tuple[str, ...]) -> "BitsAndBytesConfig | None":
    from transformers import BitsAndBytesConfig

    # A new head has to be trained, and quantized weights can't be.
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
