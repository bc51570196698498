"""Ask the Hub again where that may help, a bounded number of times and for a bounded time.

huggingface_hub repeats only the requests with which it uploads files. A new repository or a commit may be there
although the answer was lost: so it is looked up before the request is repeated, and nothing is done twice.
"""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from tuner import hub_errors

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")
WAITS = (1.0, 4.0, 10.0)  # seconds before the second, third and fourth try
LOSS = 120.0  # seconds that all failed tries of one push may cost, waiting included


class Retries:
    """The tries that one push has left."""

    def __init__(self) -> None:
        self.left = LOSS

    def __call__(self, ask: Callable[[], Answer], done: Callable[[], Answer | None] = lambda: None) -> Answer:
        """The answer to `ask`, asked again after faults that may pass; the last try's error is raised.

        `done` gives what `ask` would, if a try whose answer was lost has had its effect, and None if it had none.
        """
        for wait in (*WAITS, None):
            started = time.monotonic()
            try:
                return ask()
            except Exception as error:
                pause = max(wait or 0.0, hub_errors.seconds_to_wait(error))
                self.left -= time.monotonic() - started + pause
                if not hub_errors.may_pass(error):
                    raise
                is_last = wait is None or self.left < 0
                log.info("the Hub failed (%s)%s", type(error).__name__, "" if is_last else f", again in {pause:.0f} s")
                if not is_last:
                    time.sleep(pause)
                answer = self._look(done, error)
                if answer is not None:
                    return answer
                if is_last:
                    raise
        raise AssertionError("the last try returns or raises")

    def _look(self, done: Callable[[], Answer | None], error: Exception) -> Answer | None:
        """What `done` gives. Raises `error` if that can't be found out: asking again might do it twice."""
        try:
            return done()
        except Exception as unknown:
            raise error from unknown
