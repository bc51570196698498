"""The device and the precision that arithmetic runs in."""

from contextlib import nullcontext

from tuner import recipe


def device_type() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def compute_dtype(model: recipe.Model) -> tuple[str, str]:
    """What the arithmetic runs in, and why."""
    import torch

    if model.dtype != "auto":
        return model.dtype, "as asked"
    if device_type() == "cpu":
        return "float32", "a CPU is exact and fast enough in it"
    if torch.cuda.is_bf16_supported():
        return "bfloat16", "the GPU has it, and it does not overflow"
    return "float16", "the GPU has no bfloat16"


def autocast(model: recipe.Model):
    """A context in which trained parts, held in float32, compute in the base's type, as they did in training."""
    import torch

    dtype = compute_dtype(model)[0]
    return torch.autocast(device_type(), getattr(torch, dtype), enabled=True) if dtype != "float32" else nullcontext()
