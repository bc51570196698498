"""What an error of the device means: too little memory, or a device that this process can't use any more."""

import re
from collections.abc import Iterator

# The first matching row counts, and its group says what broke. The words are PyTorch's (ATen/cuda/Exceptions.h,
# c10/cuda/CUDAException.cpp, c10/core/impl/alloc_cpu.cpp), bitsandbytes' (backends/cuda/ops.py) and Triton's
# (driver.c). NVIDIA says of illegal and misaligned addresses, asserts and launch failures: "This leaves the process in
# an inconsistent state [...]. To continue using CUDA, the process must be terminated and relaunched" (CUDA Runtime
# API, cudaError_t). Other CUDA errors are rare enough that a new process is the safe answer to them as well.
MESSAGES = [
    ("memory", r"^CUDA (?:driver )?error: out of memory"),
    ("memory", r"^Triton Error \[CUDA\]: out of memory"),
    ("memory", r"^CUDA error: CUBLAS_STATUS_(?:ALLOC_FAILED|NOT_INITIALIZED when calling `cublasCreate)"),
    ("memory", r"DefaultCPUAllocator: can't allocate memory"),
    ("broken", r"^CUDA (?:driver )?error: (.+)"),
    ("broken", r"^(?:cuDNN|cusolver|cusparse) error: (.+)"),
    ("broken", r"^(cublasLt ran into an error)"),
    ("broken", r"^Triton Error \[CUDA\]: (.+)"),
]
BROKEN = "The GPU failed with a hardware-level error ({reason})."
DETAIL = re.compile(r",? when calling .*|\. .*|\.$")  # what follows the reason in the message's first line


def breakdown(error: BaseException) -> str | None:
    """Why this process can't use its GPU any more, in the driver's words; None if the error doesn't say that."""
    for link in chain(error):
        kind, reason = _classified(link)
        if kind == "broken":
            return DETAIL.sub("", reason)
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device, or this machine, had too little memory."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or _classified(error)[0] == "memory"


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and those that it followed from or that were being handled when it was raised."""
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _classified(error: BaseException) -> tuple[str | None, str]:
    """`memory` or `broken` with the reason; None for any other error."""
    if isinstance(error, RuntimeError):  # torch.AcceleratorError is one, too, since 2.8
        for kind, pattern in MESSAGES:
            if match := re.search(pattern, str(error)):
                return kind, "".join(match.groups())
    return None, ""
