"""A long curve keeps its shape in few points."""

import random

import pytest

from tuner.ui.series import MOST, Series


def series(points) -> Series:
    """These points, one after the other."""
    made = Series()
    for point in points:
        made.add(*point)
    return made


def curve(steps: int) -> list[tuple[float, float]]:
    """A loss that falls quickly and then slowly, with noise, and with one spike."""
    chance = random.Random(0)
    points = [(step, 0.5 + 200 / (step + 80) + chance.uniform(-0.1, 0.1)) for step in range(1, steps + 1)]
    points[steps // 3] = (steps // 3 + 1, 9.0)
    return points


@pytest.mark.parametrize("steps", [1, 2, MOST - 1])
def test_a_short_curve_is_kept_as_it_is(steps):
    assert series(curve(steps)).points() == curve(steps)


@pytest.mark.parametrize("steps", [MOST, MOST + 1, 5_000, 100_000])
def test_a_long_curve_keeps_its_shape_its_extremes_and_its_newest_point(steps):
    whole, few = curve(steps), series(curve(steps)).points()
    assert MOST / 2 <= len(few) <= MOST + 3
    assert few == sorted(few)
    by_height = sorted(whole, key=lambda point: point[1])
    assert {by_height[0], by_height[-1], whole[-1]} <= set(few)
    for x, y in few:
        near = [loss for step, loss in whole[max(0, int(x) - 1500) : int(x)]]
        assert min(near) <= y <= max(near)


def test_what_comes_after_a_step_is_forgotten():
    taken_back = series(curve(10_000))
    taken_back.take_back(4_000)
    few = taken_back.points()
    assert 3_900 < few[-1][0] <= 4_000
    assert max(y for _, y in few) == 9.0  # the spike came before
    taken_back.take_back(3_000)
    assert max(y for _, y in taken_back.points()) < 5
    for step in range(3_001, 3_200):
        taken_back.add(step, 1.0)
    assert taken_back.points()[-1] == (3_199, 1.0)
    taken_back.take_back(0)
    assert taken_back.points() == []
    taken_back.add(1, 2.0)
    assert taken_back.points() == [(1, 2.0)]


def test_nothing_is_forgotten_by_a_window_that_starts_where_the_last_one_ended():
    once, again = series(curve(1_000)), series(curve(1_000))
    again.take_back(1_000)
    assert once.points() == again.points()
    Series().take_back(5)
