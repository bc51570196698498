"""Branches that PEFT and bitsandbytes take on a GPU only, taken on a CPU: a pretended device below both libraries.

PEFT's quantized layers ask `torch.is_autocast_enabled()` without naming a device, which answers for CUDA; here it
answers for the CPU. bitsandbytes trains on 8-bit weights with another product on a CPU; here with that of a GPU.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from bitsandbytes.autograd import _functions

_is_autocast_enabled = torch.is_autocast_enabled


@contextmanager
def taken() -> Iterator[None]:
    """Inside this context the libraries take these branches."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "is_autocast_enabled", lambda device="cpu": _is_autocast_enabled(device))
        patch.setattr(_functions, "MatMul8bitFp", _functions.MatMul8bitLt)
        yield
