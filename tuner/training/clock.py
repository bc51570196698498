"""The clock of a run: how many steps its budget allows, how far the learning rate has fallen, and when to leave.

A budget in seconds covers all the time that a device is held for training: loading, steps, held-out losses, saving.
The first steps measure how long a padded token takes. The rows of every later step are known, so the clock can count
the steps that fit. It counts again whenever half of the remaining steps are done or the pace has changed. Each count
is recorded as a mark, so that a resumed run keeps the same schedule.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from math import inf
from statistics import linear_regression, median
from typing import TYPE_CHECKING

from tuner.runs import Run

if TYPE_CHECKING:
    from tuner.training.upkeep import HeldoutLoss

PACE_STEPS = 8  # steps to measure before a budget in seconds becomes a number of steps
MEASURED_SHARE = 0.05  # of the budget to spend, at least, before the steps are counted
FEW_STEPS, FEW_SHARE = 2, 0.2  # for slow steps: this many are enough once this share of the budget is spent
RECENT = 40  # steps that the pace is computed from
TOLERANCE = 0.1  # relative change of the pace after which the steps are counted again
PATIENCE = 5  # steps, at least, before a change of pace makes the clock count again
WARM_UP = 2  # first steps of a window, slow because they allocate memory; not part of the pace
UPKEEP_SHARE = 0.01  # least share of the time to allow for held-out losses and checkpoints
MARGIN = 0.25  # seconds to spare when leaving


Mark = tuple[int, int]  # (at, steps): counted at step `at`, the run ends after `steps`


class StopSignal:
    """Set once a stop is requested, or once the granted seconds are over."""

    def __init__(self, run: Run, deadline: float | None):
        self.run, self.deadline = run, deadline

    @property
    def reason(self) -> str | None:
        """`stopped`, `window`, or None while there is time."""
        if self.run.is_asked_to_stop:
            return "stopped"
        return "window" if self.deadline is not None and time.monotonic() > self.deadline else None

    @property
    def left(self) -> float:
        """Seconds until the device has to be left."""
        return inf if self.deadline is None else self.deadline - time.monotonic()

    def is_set(self) -> bool:
        """Whether to leave the device now."""
        return self.reason is not None


class Clock:
    """The time of a run, seen from one of its windows. Times are those of time.monotonic(), durations are in seconds.

    `sizes(step)` yields the padded tokens of that step and of all later ones. The budget is either `steps` or
    `seconds`; `window` is the length of the window, `opened` its start, `marks` those of earlier windows.
    """

    def __init__(
        self,
        sizes: Callable[[int], Iterable[int]],
        *,
        warmup: int,
        steps: int | None = None,
        seconds: float | None = None,
        window: float | None = None,
        opened: float | None = None,
        marks: Iterable[Mark] = (),
    ):
        self.sizes, self.budget = sizes, seconds
        self.warmup = min(warmup, steps // 10 if steps else PACE_STEPS)
        self.marks: list[Mark] = [(self.warmup, steps)] if steps else [tuple(m) for m in marks]
        self.opened = time.monotonic() if opened is None else opened
        self.deadline = None if window is None else self.opened + window
        self.spent = 0.0  # in earlier windows
        self.leaving = 0.0  # needed to save the last checkpoint and the adapter
        self.heldout: HeldoutLoss | None = None  # what the last measurement may take is reserved in a window
        self.paces: deque[tuple[int, float]] = deque(maxlen=RECENT)  # padded tokens and seconds of recent steps
        self.began: float | None = None  # when this window's first step began
        self.counted: float | None = None  # seconds per token at the last count of this window
        self.last = 0.0  # duration of the latest step
        self.in_steps, self.steps_done = 0.0, 0  # time spent in steps, and their number, in this window

    @property
    def steps(self) -> int | None:
        """Steps of the whole run; None until they are counted."""
        return self.marks[-1][1] if self.marks else None

    @property
    def seconds(self) -> float:
        """Seconds spent so far, in this window and earlier ones."""
        return self.spent + time.monotonic() - self.opened

    @property
    def end(self) -> float | None:
        """When a budget in seconds will be spent."""
        return None if self.budget is None else self.opened + self.budget - self.spent

    def rate_progress(self, step: int) -> float:
        """How far the learning rate has moved at `step`, from 0 (the peak) to 1 (the end)."""
        progress = 0.0
        for index, (at, steps) in enumerate(self.marks):
            if step < at:
                break
            following = self.marks[index + 1][0] if index + 1 < len(self.marks) else step
            progress += (1 - progress) * (min(step, following) - at) / max(1, steps - at)
        return min(1.0, progress)

    def begin(self) -> None:
        """Record that the first step of this window begins now."""
        self.began = time.monotonic()

    def record_step(self, step: int, tokens: int, seconds: float) -> Mark | None:
        """Record that `step`, of so many padded tokens, is done; returns a new mark if the steps were counted."""
        self.in_steps, self.steps_done, self.last = self.in_steps + seconds, self.steps_done + 1, seconds
        if self.steps_done > WARM_UP or self.budget is None:
            self.paces.append((tokens, seconds))
        if self.budget is None or not self._is_count_due(step):
            return None
        self.counted = self.seconds_per_token
        mark = (step, step + max(1, self._steps_that_fit(step)))
        self.marks.append(mark)
        return mark

    def _is_count_due(self, step: int) -> bool:
        spent, measured = self.seconds / self.budget, len(self.paces)
        if not measured:
            return False
        if not self.marks:
            return (measured + WARM_UP >= PACE_STEPS and spent >= MEASURED_SHARE) or (
                measured >= FEW_STEPS and spent >= FEW_SHARE
            )
        at, steps = self.marks[-1]
        if not at < step < steps:
            return False
        if steps - step <= (steps - at) / 2:
            return True
        if self.steps_done < PATIENCE or step - at < PATIENCE:
            return False
        # Counting adds up all remaining steps, which would take too long at each of them.
        return self.counted is None or abs(self.seconds_per_token / self.counted - 1) > TOLERANCE

    def _steps_that_fit(self, step: int) -> int:
        left = self._seconds_for_steps()
        for count, seconds in enumerate(self._durations(step)):
            left -= seconds
            if left < 0:
                return count

    def _seconds_for_steps(self) -> float:
        """Seconds of the budget that are left for steps."""
        now = time.monotonic()
        upkeep = max(UPKEEP_SHARE, 1 - self.in_steps / (now - self.began))
        return (self.end - now - self.leaving - MARGIN) * (1 - upkeep)

    def _durations(self, step: int) -> Iterator[float]:
        """Expected seconds of each step from `step` on."""
        per_token, fixed = self._pace()
        return (size * per_token + fixed for size in self.sizes(step))

    def _pace(self) -> tuple[float, float]:
        """Seconds per padded token, and fixed seconds per step."""
        tokens, seconds = zip(*self.paces)
        if len(set(tokens)) > 2:
            slope, fixed = linear_regression(tokens, seconds)
            if slope > 0 and fixed > 0:
                return slope, fixed
        return sum(seconds) / sum(tokens), 0.0

    @property
    def seconds_per_token(self) -> float | None:
        """The average over recent steps, fixed costs included; None before the first one."""
        return sum(s for _, s in self.paces) / sum(t for t, _ in self.paces) if self.paces else None

    @property
    def seconds_per_step(self) -> float:
        """The average over the same steps."""
        return sum(s for _, s in self.paces) / max(1, len(self.paces))

    def seconds_left(self, step: int) -> float:
        """Seconds until the end of the run, roughly."""
        if self.end is not None:
            return max(0.0, self.end - time.monotonic())
        seconds = [s for _, s in self.paces]
        return (self.steps - step) * sum(seconds) / len(seconds)

    def is_time_to_leave(self, step: int) -> str | None:
        """Why the window ends after `step`: `steps`, `clock` (the budget is spent), `window` (it is over), or None."""
        if step == self.steps:
            return "steps"
        next_step = max((s for _, s in list(self.paces)[-8:]), default=self.last)
        leave = time.monotonic() + next_step + self.leaving + MARGIN
        if self.end is not None and leave > self.end:
            return "clock"
        return "window" if self.deadline is not None and leave + self._slower_heldout() > self.deadline else None

    def _slower_heldout(self) -> float:
        """Seconds that the last held-out loss may take above the latest one, as the pace of the steps has it.

        A pass forward is half of a step whose base is frozen. A window that ends in the last measurement has lost all
        steps since its checkpoint, so that one fast measurement is not relied on. Nor is a slow first step, or each
        window would end after it.
        """
        if self.heldout is None or self.steps_done <= WARM_UP:
            return 0.0
        per_token = median(seconds / tokens for tokens, seconds in self.paces)
        return max(0.0, self.heldout.tokens * per_token / 2 - self.heldout.seconds)
