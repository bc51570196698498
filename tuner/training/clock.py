"""The clock of a run: how many steps its budget buys, where the learning rate stands at each, and when to leave.

A budget in seconds counts all the seconds that a device is held for training: loading, steps, held-out losses, saving.
The first steps measure what a padded token costs; the rows of every later step are known, so the steps that fit are
counted. Each time half of the remaining steps are done, or the pace has changed, the rest is counted anew. Every count
is a mark that is written down, so that a resumed run walks the same way.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from statistics import linear_regression

PACE_STEPS = 8  # steps measured before a budget in seconds becomes a number of steps
MEASURED_SHARE = 0.05  # of the budget, at least, before the steps are counted
FEW_STEPS, FEW_SHARE = 2, 0.2  # where steps are slow: so many are enough when so much of the budget is gone
RECENT = 40  # steps that the pace is taken from
OFF = 0.1  # share by which the pace may differ from what it was when the steps were counted last
PATIENCE = 5  # steps between counts that only the pace asks for
UNSTEADY = 2  # first steps of a window, which load and allocate
BESIDE = 0.01  # least share of the time that goes to held-out losses and checkpoints
MARGIN = 0.25  # seconds kept back beyond what leaving is known to take

Mark = tuple[int, int]  # (at, steps): from step `at` on, the run is to end after `steps`


class Clock:
    """One window's view of a run's time; seconds are those of time.monotonic().

    `sizes(step)` tells the padded tokens of each step from that one on, without end.
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
        self.spent = 0.0  # seconds of earlier windows
        self.leaving = 0.0  # seconds that the last checkpoint and the adapter take
        self.paces: deque[tuple[int, float]] = deque(maxlen=RECENT)  # padded tokens and seconds of a step
        self.began: float | None = None  # when this window's first step did
        self.counted: float | None = None  # seconds a token when the steps were counted last, in this window
        self.last = 0.0  # seconds of the latest step
        self.in_steps, self.done = 0.0, 0  # seconds inside steps, and steps, in this window

    @property
    def steps(self) -> int | None:
        """Steps of the whole run, once they are known."""
        return self.marks[-1][1] if self.marks else None

    @property
    def seconds(self) -> float:
        """Seconds spent so far, in this window and those before it."""
        return self.spent + time.monotonic() - self.opened

    @property
    def end(self) -> float | None:
        """When the budget in seconds is spent."""
        return None if self.budget is None else self.opened + self.budget - self.spent

    def rate_progress(self, step: int) -> float:
        """How far the learning rate has come at `step`, from 0 (its peak) to 1 (its end)."""
        progress = 0.0
        for index, (at, steps) in enumerate(self.marks):
            if step < at:
                break
            following = self.marks[index + 1][0] if index + 1 < len(self.marks) else step
            progress += (1 - progress) * (min(step, following) - at) / max(1, steps - at)
        return min(1.0, progress)

    def begin(self) -> None:
        """The first step of this window begins now."""
        self.began = time.monotonic()

    def stepped(self, step: int, tokens: int, seconds: float) -> Mark | None:
        """Step number `step` is done, of so many padded tokens; a new mark, where the steps were counted."""
        self.in_steps, self.done, self.last = self.in_steps + seconds, self.done + 1, seconds
        if self.done > UNSTEADY or self.budget is None:
            self.paces.append((tokens, seconds))
        if self.budget is None or not self._is_to_count(step):
            return None
        self.counted = self.seconds_per_token
        mark = (step, step + max(1, self._that_fit(step)))
        self.marks.append(mark)
        return mark

    def _is_to_count(self, step: int) -> bool:
        gone, measured = self.seconds / self.budget, len(self.paces)
        if not measured:
            return False
        if not self.marks:
            return (measured + UNSTEADY >= PACE_STEPS and gone >= MEASURED_SHARE) or (
                measured >= FEW_STEPS and gone >= FEW_SHARE
            )
        at, steps = self.marks[-1]
        if not at < step < steps:
            return False
        if steps - step <= (steps - at) / 2:
            return True
        if self.done < PATIENCE or step - at < PATIENCE:
            return False
        # Adding up what all remaining steps cost takes too long to be done at each of them.
        return self.counted is None or abs(self.seconds_per_token / self.counted - 1) > OFF

    def _that_fit(self, step: int) -> int:
        left = self._left()
        for count, cost in enumerate(self._costs(step)):
            left -= cost
            if left < 0:
                return count

    def _left(self) -> float:
        """Seconds that the budget still has for steps."""
        now = time.monotonic()
        beside = max(BESIDE, 1 - self.in_steps / (now - self.began))
        return (self.end - now - self.leaving - MARGIN) * (1 - beside)

    def _costs(self, step: int) -> Iterator[float]:
        """Seconds that each step from `step` on will take."""
        a_token, fixed = self._pace()
        return (size * a_token + fixed for size in self.sizes(step))

    def _pace(self) -> tuple[float, float]:
        """Seconds a padded token, and seconds a step beside them."""
        tokens, seconds = zip(*self.paces)
        if len(set(tokens)) > 2:
            slope, fixed = linear_regression(tokens, seconds)
            if slope > 0 and fixed > 0:
                return slope, fixed
        return sum(seconds) / sum(tokens), 0.0

    @property
    def seconds_per_token(self) -> float | None:
        """Of the latest steps, all that a step costs included; None before there is one."""
        return sum(s for _, s in self.paces) / sum(t for t, _ in self.paces) if self.paces else None

    def to_go(self, step: int) -> float:
        """Seconds until the end, roughly."""
        if self.end is not None:
            return max(0.0, self.end - time.monotonic())
        seconds = [s for _, s in self.paces]
        return (self.steps - step) * sum(seconds) / len(seconds)

    def is_time_to_leave(self, step: int) -> str | None:
        """Why this window ends after `step`: steps, clock (the budget is spent), window (the grant is), or None."""
        if step == self.steps:
            return "steps"
        following = max((s for _, s in list(self.paces)[-8:]), default=self.last)
        leave = time.monotonic() + following + self.leaving + MARGIN
        if self.end is not None and leave > self.end:
            return "clock"
        return "window" if self.deadline is not None and leave > self.deadline else None
