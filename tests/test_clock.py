"""The clock of a run in simulated time: what a budget buys, when a window is left, where the learning rate ends."""

from itertools import count, cycle, islice, pairwise, repeat

import pytest

from tuner.training import clock
from tuner.training.clock import Clock

SIZES = [100, 300, 200]  # padded tokens of the steps, over and over
A_TOKEN = 1e-3  # seconds


class Machine:
    """A machine whose steps take exactly as long as it is told to; it is the clock's time."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def machine(monkeypatch):
    machine = Machine()
    monkeypatch.setattr(clock, "time", machine)
    return machine


def sizes(step: int):
    return islice(cycle(SIZES), step % len(SIZES), None)


def walk(machine: Machine, timer: Clock, first: int = 0, start_up: float = 0.0, slow=None) -> tuple[int, str]:
    """Steps until the clock says to leave: the last step, and the reason. `slow` makes each step so much longer."""
    machine.now += start_up
    timer.begin()
    steps = zip(count(first + 1), sizes(first), slow or repeat(1.0))
    if reason := timer.is_time_to_leave(first):
        return first, reason
    for step, tokens, factor in steps:
        seconds = tokens * A_TOKEN * factor
        machine.now += seconds
        timer.record_step(step, tokens, seconds)
        if reason := timer.is_time_to_leave(step):
            return step, reason


def test_a_budget_in_steps_ends_after_exactly_so_many(machine):
    timer = Clock(sizes, warmup=0, steps=7)
    assert walk(machine, timer) == (7, "steps")
    assert timer.seconds == pytest.approx(sum(islice(sizes(0), 7)) * A_TOKEN)


@pytest.mark.parametrize("start_up", [0.0, 20.0])
def test_a_budget_in_seconds_is_used_up_and_not_overdrawn_loading_included(machine, start_up):
    timer = Clock(sizes, warmup=5, seconds=60)
    timer.leaving = 1.0
    step, reason = walk(machine, timer, start_up=start_up)
    assert 0.96 * 60 < timer.seconds <= 60 - timer.leaving
    assert step == pytest.approx((60 - start_up) / 0.2, rel=0.06)
    assert reason in ("steps", "clock")
    assert timer.rate_progress(step) > 0.95


@pytest.mark.parametrize("factor", [0.4, 2.5])
def test_a_budget_in_seconds_is_counted_anew_when_the_pace_changes(machine, factor):
    timer = Clock(sizes, warmup=0, seconds=60)
    step, _ = walk(machine, timer, slow=iter([1.0] * 60 + [factor] * 2000))
    assert 0.9 * 60 < timer.seconds <= 60
    assert len(timer.marks) > 2
    assert timer.rate_progress(step) > 0.9
    progress = [timer.rate_progress(number) for number in range(step + 1)]
    assert progress == sorted(progress)
    # No jump on the way: the rate falls a little with every step.
    assert max(b - a for a, b in pairwise(progress)) < 0.1


def test_where_steps_are_slow_a_few_are_enough_to_count_them(machine):
    timer = Clock(sizes, warmup=0, seconds=30)
    step, _ = walk(machine, timer, slow=repeat(20.0))
    assert step in (6, 7)
    assert timer.seconds <= 30
    assert timer.marks[0][0] < 5


def test_seconds_of_earlier_windows_count_against_the_budget(machine):
    timer = Clock(sizes, warmup=0, seconds=60, marks=[(8, 300)])
    timer.spent = 45.0
    step, _ = walk(machine, timer, first=200)
    assert 0.95 * 60 < timer.seconds <= 60
    assert step - 200 == pytest.approx(15 / 0.2, rel=0.1)


def test_a_window_is_left_before_its_end_with_time_to_save(machine):
    opened = machine.now
    timer = Clock(sizes, warmup=0, steps=10**6, window=20, opened=opened)
    timer.leaving = 3.0
    step, reason = walk(machine, timer, start_up=2.0)
    assert reason == "window"
    left = opened + 20 - machine.now
    # The longest step, what leaving takes and the margin no longer fit; a step earlier they did.
    needed = 0.3 + timer.leaving + clock.MARGIN
    assert timer.leaving + clock.MARGIN < left < needed
    assert step == pytest.approx((20 - 2 - needed) / 0.2, abs=3)


def test_a_window_that_opened_long_ago_is_left_at_once(machine):
    timer = Clock(sizes, warmup=0, steps=100, window=20, opened=machine.now - 25)
    assert walk(machine, timer) == (0, "window")


def test_the_rate_of_a_budget_in_steps_falls_from_the_warm_up_to_the_last_step(machine):
    timer = Clock(sizes, warmup=10, steps=200)
    assert [timer.rate_progress(step) for step in (0, 10, 105, 200, 250)] == [0, 0, 0.5, 1, 1]
    assert (timer.warmup, Clock(sizes, warmup=10, steps=50).warmup) == (10, 5)


def test_the_rate_walks_on_from_where_it_stood_at_each_mark():
    timer = Clock(sizes, warmup=0, seconds=60, marks=[(10, 110), (60, 80)])
    # Half of the way at the first mark's pace, then the other half in the 20 steps of the second.
    expected = {10: 0, 35: 0.25, 60: 0.5, 70: 0.75, 80: 1}
    assert {step: timer.rate_progress(step) for step in expected} == pytest.approx(expected)


def test_seconds_to_go_shrink_to_nothing(machine):
    for settings in ({"steps": 30}, {"seconds": 6.0}):
        timer = Clock(sizes, warmup=0, **settings)
        machine.now += 1.0
        timer.begin()
        for step, tokens in zip(range(1, 16), sizes(0)):
            machine.now += tokens * A_TOKEN
            timer.record_step(step, tokens, tokens * A_TOKEN)
        # Fifteen steps of 0.2 seconds are done, and as many are left; or two of six seconds.
        assert timer.seconds_left(15) == pytest.approx({"steps": 3.0, "seconds": 2.0}[next(iter(settings))])


def test_the_pace_is_seconds_a_padded_token(machine):
    timer = Clock(sizes, warmup=0, steps=30)
    assert timer.seconds_per_token is None
    walk(machine, timer)
    assert timer.seconds_per_token == pytest.approx(A_TOKEN)
    assert (timer.steps_done, timer.in_steps) == (30, pytest.approx(6.0))
