"""The clock of a run in simulated time: what a budget buys, when a window is left, where the learning rate ends."""

from itertools import chain, count, cycle, islice, pairwise, repeat
from types import SimpleNamespace

import pytest
from machine import Machine

from tuner.training import clock
from tuner.training.clock import Clock

SIZES = [100, 300, 200]  # padded tokens of the steps, over and over
A_TOKEN = 1e-3  # seconds


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


# Each rule by itself


@pytest.mark.parametrize(
    ("given", "warmup", "marks"),
    [
        ({"warmup": 10, "steps": 200}, 10, [(10, 200)]),
        ({"warmup": 30, "steps": 200}, 20, [(20, 200)]),
        ({"warmup": 10, "steps": 19}, 1, [(1, 19)]),
        ({"warmup": 10, "steps": 9}, 0, [(0, 9)]),
        ({"warmup": 3, "seconds": 60}, 3, []),
        ({"warmup": 20, "seconds": 60}, clock.PACE_STEPS, []),
        ({"warmup": 3, "seconds": 60, "marks": [[8, 300], [20, 150]]}, 3, [(8, 300), (20, 150)]),
        ({"warmup": 10, "steps": 200, "marks": [[8, 300]]}, 10, [(10, 200)]),
    ],
)
def test_a_clock_begins_with_the_steps_that_are_known(given, warmup, marks):
    timer = Clock(sizes, **given)
    assert (timer.warmup, timer.marks, timer.steps) == (warmup, marks, marks[-1][1] if marks else None)


def test_time_counts_from_the_windows_start_and_from_earlier_windows(machine):
    timer = Clock(sizes, warmup=0, seconds=60, window=20, opened=990.0)
    timer.spent = 45.0
    assert (timer.seconds, timer.end, timer.deadline) == (55.0, 1005.0, 1010.0)
    machine.now += 3.0
    assert (timer.seconds, timer.end, timer.seconds_left(1)) == (58.0, 1005.0, 2.0)
    machine.now += 3.0
    assert timer.seconds_left(1) == 0
    timer = Clock(sizes, warmup=0, steps=9)
    assert (timer.seconds, timer.end, timer.deadline) == (0.0, None, None)


def record(machine: Machine, timer: Clock, first: int, steps: list[tuple[int, float]], beside: float = 0.0) -> list:
    """Do these steps, of so many padded tokens and seconds, with time beside each; the marks they set."""
    marks = []
    for number, (tokens, seconds) in enumerate(steps, first + 1):
        machine.now += seconds + beside
        marks += filter(None, [timer.record_step(number, tokens, seconds)])
    return marks


# Seconds of a step of 100 tokens, seconds beside each step, and the first mark: a budget of 100 seconds less those of
# the steps so far, 2 to leave and a margin of 0.25; of the rest at least a hundredth is for what is beside the steps.
FIRST_MARKS = [
    (0.7, 0.0, (8, 8 + 130)),  # (100 - 5.6 - 2.25) * 0.99 / 0.7 = 130.3
    (0.625, 0.0, (8, 8 + 146)),  # 5 seconds, the least share, are spent just now: 92.75 * 0.99 / 0.625 = 146.9
    (0.6, 0.0, (9, 9 + 152)),  # 92.35 * 0.99 / 0.6 = 152.4
    (0.7, 0.3, (8, 8 + 89)),  # three tenths are beside the steps: (100 - 8 - 2.25) * 0.7 / 0.7 = 89.75
    (5.0, 0.0, (4, 4 + 15)),  # a fifth is spent, so two steps after the warm-up are enough: 77.75 * 0.99 / 5 = 15.4
    (4.5, 0.0, (5, 5 + 16)),  # 75.25 * 0.99 / 4.5 = 16.6
    (30.0, 0.0, (4, 4 + 1)),  # there is no time for another, but the rate needs an end
]


@pytest.mark.parametrize(("seconds", "beside", "mark"), FIRST_MARKS)
def test_the_steps_of_a_budget_in_seconds_are_counted_once_enough_of_it_is_measured(machine, seconds, beside, mark):
    timer = Clock(lambda step: repeat(100), warmup=0, seconds=100)
    timer.leaving = 2.0
    timer.begin()
    marks = record(machine, timer, 0, [(100, seconds)] * mark[0], beside)
    assert marks == timer.marks == [mark]


# The sizes of the first steps, what they take, and how many steps of 1000 tokens fit after eight of them.
PACES = [
    (SIZES, lambda tokens: 0.5 + 1e-3 * tokens, 62),  # 1.5 s each: (100 - 5.6 - 0.25) * 0.99 / 1.5 = 62.1
    ([100, 300], lambda tokens: 0.5 + 1e-3 * tokens, 26),  # two sizes tell no fixed cost; 4.2 s for 1200: 93.2 / 3.5
    (SIZES, lambda tokens: 1 - 1e-3 * tokens, 23),  # no pace is negative; 4.8 s for 1200: 93.35 * 0.99 / 4 = 23.1
    (SIZES, lambda tokens: 1e-2 * tokens - 0.5, 11),  # nor is a fixed cost; 9 s for 1200: 87.75 * 0.99 / 7.5 = 11.6
]


@pytest.mark.parametrize(("first", "seconds", "count"), PACES)
def test_the_sizes_of_the_steps_to_come_are_taken_into_account(machine, first, seconds, count):
    def sizes(step: int):
        return islice(chain(islice(cycle(first), 8), repeat(1000)), step, None)

    timer = Clock(sizes, warmup=0, seconds=100)
    timer.begin()
    assert record(machine, timer, 0, [(tokens, seconds(tokens)) for tokens in islice(cycle(first), 8)]) == [
        (8, 8 + count)
    ]


def resumed(machine: Machine, *marks: clock.Mark) -> Clock:
    """A clock of a later window, which knows its pace: half a second for 100 tokens."""
    timer = Clock(lambda step: repeat(100), warmup=0, seconds=1000, marks=marks)
    timer.paces.extend([(100, 0.5)] * 50)
    timer.begin()
    return timer


@pytest.mark.parametrize(
    ("done", "counts"), [(6, False), (7, True), (56, False), (57, True), (106, True), (107, False), (110, False)]
)
def test_steps_are_counted_again_once_half_of_those_that_were_left_are_done(machine, done, counts):
    timer = resumed(machine, (3, 13) if done < 50 else (8, 108))
    marks = record(machine, timer, done, [(100, 0.5)])
    assert [at for at, _ in marks] == [done + 1] * counts


def test_a_window_that_resumes_before_the_first_count_goes_on_measuring(machine):
    timer = Clock(lambda step: repeat(100 if step > 20 else 1000), warmup=0, seconds=100)
    timer.spent = 6.0
    timer.paces.extend([(100, 0.5)] * 3)
    machine.now += 2.0
    timer.begin()
    # Three steps of the earlier window and three after the warm-up of this one; (94 - 4.5 - 0.25) * 0.99 / 0.5 = 176.7
    assert record(machine, timer, 20, [(100, 0.5)] * 6) == [(25, 25 + 176)]


def test_steps_are_counted_in_each_window_and_when_the_pace_has_changed_by_a_tenth(machine):
    timer = resumed(machine, (8, 2008))
    assert len(timer.paces) == clock.RECENT == 40
    assert [at for at, _ in record(machine, timer, 20, [(100, 0.5)] * 100)] == [25]
    # Of 40 recent steps as many take 0.3 seconds more that their average is more than a tenth longer, or shorter.
    assert [at for at, _ in record(machine, timer, 120, [(100, 0.8)] * 7)] == [127]
    timer = resumed(machine, (8, 2008))
    record(machine, timer, 20, [(100, 0.5)] * 100)
    assert [at for at, _ in record(machine, timer, 120, [(100, 0.2)] * 7)] == [127]
    # The average goes on changing, but at least five steps pass between two counts.
    timer = resumed(machine, (8, 2008))
    record(machine, timer, 20, [(100, 0.5)] * 100)
    later = [at for at, _ in record(machine, timer, 120, [(100, 5.0)] * 13)]
    assert later == [121, 126, 131]
    # One long step at which they are counted is no change of pace.
    timer = resumed(machine, (8, 2008))
    assert [at for at, _ in record(machine, timer, 20, [(100, 0.5)] * 4 + [(100, 0.8)] + [(100, 0.5)] * 10)] == [25]


@pytest.mark.parametrize("first", [0, 20])
@pytest.mark.parametrize("budget", [{"steps": 50}, {"seconds": 500}])
def test_the_first_steps_of_a_window_are_part_of_the_pace_only_where_it_decides_nothing(machine, budget, first):
    timer = Clock(lambda step: repeat(100), warmup=0, **budget)
    timer.begin()
    assert timer.seconds_per_token is None
    record(machine, timer, first, [(100, 9.0), (100, 8.0), (300, 2.0), (100, 1.0)])
    paces = [(100, 9.0), (100, 8.0), (300, 2.0), (100, 1.0)]
    assert list(timer.paces) == (paces if "steps" in budget else paces[2:])
    assert timer.seconds_per_token == pytest.approx(20 / 600 if "steps" in budget else 3 / 400)
    assert (timer.steps_done, timer.in_steps, timer.last) == (4, 20.0, 1.0)
    if "steps" in budget:
        assert timer.seconds_left(first + 4) == pytest.approx((46 - first) * 20 / 4)
        assert timer.marks == [(0, 50)]


@pytest.mark.parametrize(("marks", "progress"), [([(5, 6)], {4: 0, 5: 0, 6: 1}), ([(8, 4)], {4: 0, 8: 0, 9: 1})])
def test_one_step_or_none_to_go_is_the_whole_way(marks, progress):
    timer = Clock(sizes, warmup=0, seconds=60, marks=marks)
    assert {step: timer.rate_progress(step) for step in progress} == progress


@pytest.mark.parametrize(("now", "reason"), [(1016.75, None), (1016.76, "window")])
def test_before_the_first_step_there_is_none_to_wait_for(machine, now, reason):
    timer = Clock(sizes, warmup=0, steps=50, window=20)
    timer.leaving = 3.0
    machine.now = now
    assert timer.is_time_to_leave(0) == reason


@pytest.mark.parametrize(
    ("given", "now", "reason"),
    [
        ({"steps": 50}, 9999.0, None),
        ({"steps": 50, "window": 20}, 1014.75, None),  # the longest of eight steps, 3 s to leave and the margin fit
        ({"steps": 50, "window": 20}, 1014.76, "window"),
        ({"seconds": 20}, 1014.75, None),
        ({"seconds": 20}, 1014.76, "clock"),
        ({"seconds": 20, "window": 20}, 1014.76, "clock"),
        ({"seconds": 21, "window": 20}, 1014.76, "window"),
        ({"steps": 4, "window": 20}, 1020.0, "steps"),
        ({"seconds": 20, "marks": [(2, 4)]}, 1020.0, "steps"),
    ],
)
def test_a_window_is_left_while_another_step_and_leaving_would_still_fit(machine, given, now, reason):
    timer = Clock(sizes, warmup=0, **given)
    timer.leaving = 3.0
    timer.paces.extend([(100, 9.0), (100, 1.0), (100, 2.0), *[(100, 1.0)] * 6])
    machine.now = now
    assert timer.is_time_to_leave(4) == reason
    timer.paces.clear()
    timer.last = 2.0  # in the warm-up there is no pace yet
    assert timer.is_time_to_leave(4) == reason


@pytest.mark.parametrize(("measured", "window", "steps"), [(2.0, 30, 105), (6.0, 30, 105), (20.0, 30, 38), (2, 8, 3)])
def test_a_window_ends_in_time_for_held_out_rows_that_take_longer_than_at_first(machine, measured, window, steps):
    timer = Clock(sizes, warmup=0, steps=500, window=window)
    timer.leaving = 2.0 + measured
    timer.heldout = SimpleNamespace(tokens=13_000, seconds=measured)  # 13 s forward and back, 6.5 s forward
    assert walk(machine, timer) == (steps, "window")


def test_a_slow_first_step_of_each_window_does_not_end_it(machine):
    paces, step, windows = (), 0, 0
    while step < 100:
        machine.now += 5
        timer = Clock(sizes, warmup=0, steps=100, window=45)
        timer.heldout = SimpleNamespace(tokens=3200, seconds=0.5)
        timer.paces.extend(paces)
        step, _ = walk(machine, timer, step, start_up=10.0, slow=chain([50.0], repeat(1.0)))
        paces, windows = list(timer.paces)[-8:], windows + 1
    assert windows == 1
