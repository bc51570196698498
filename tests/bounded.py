"""Run what strangers may give, and say how long it took and what it answered."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from tuner.errors import TunerError

SHOWN = 6000  # characters of a sentence for people, at most


def refused_within(seconds: float, action: Callable[..., Any], *arguments: Any) -> str:
    """What is said of something that is refused; it may take so many seconds of this process's own time."""
    start = time.process_time()
    with pytest.raises(TunerError) as caught:
        action(*arguments)
    took = time.process_time() - start
    assert took < seconds
    assert len(caught.value.problems) <= 30
    assert len(str(caught.value)) < SHOWN
    return str(caught.value)


def done_within(seconds: float, action: Callable[..., Any], *arguments: Any) -> Any:
    """What the action returns; it may take so many seconds of this process's own time."""
    start = time.process_time()
    result = action(*arguments)
    assert time.process_time() - start < seconds
    return result
