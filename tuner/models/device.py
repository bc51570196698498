"""The device, and the floating-point type that it computes in."""

from contextlib import AbstractContextManager, nullcontext

from tuner import recipe


def device_type() -> str:
    """`cuda` or `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def compute_dtype(model: recipe.Model) -> tuple[str, str]:
    """The name of the type that the model computes in, and the reason for it."""
    import torch

    if model.dtype != "auto":
        return model.dtype, "as given"
    if device_type() == "cpu":
        return "float32", "exact, and fast enough on a CPU"
    if torch.cuda.is_bf16_supported():
        return "bfloat16", "supported by this GPU, and it does not overflow"
    return "float16", "this GPU has no bfloat16"


def autocast(model: recipe.Model) -> AbstractContextManager:
    """A context in which trained float32 weights compute in the base model's type, as they did in training."""
    import torch

    dtype = compute_dtype(model)[0]
    return torch.autocast(device_type(), getattr(torch, dtype), enabled=True) if dtype != "float32" else nullcontext()
