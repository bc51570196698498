"""Asks the Hub again where it failed for a moment: it was busy or broken, or the connection was lost.

huggingface_hub does so for uploads. The other requests of a push, such as the commit itself, it makes once.
"""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from tuner import hub_errors

log = logging.getLogger(__name__)
T = TypeVar("T")

WAITS = (1.0, 4.0)  # seconds before the second attempt and the third
PATIENCE = 180.0  # seconds of a push after which nothing is tried again


class Retry:
    """The attempts of one push, which all together take PATIENCE seconds and one request at most."""

    def __init__(self):
        self._until = time.monotonic() + PATIENCE
        self.repeated = 0  # attempts beyond the first ones

    def __call__(self, request: Callable[..., T], *arguments, **named) -> T:
        """What the request returns; it must do no harm if it is made twice. Raises what its last attempt raised."""
        for wait in WAITS:
            try:
                return request(*arguments, **named)
            except Exception as error:
                if not hub_errors.is_passing(error) or time.monotonic() + wait > self._until:
                    raise
                log.info("%s: once more after %s", type(error).__name__, getattr(request, "__name__", request))
                time.sleep(wait)
                self.repeated += 1
        return request(*arguments, **named)
