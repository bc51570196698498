"""Intervals hold as often as they say, and nothing is said to have helped where nothing changed: by simulation."""

import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, mostly_long

from benchmarks.coverage import (
    GAINS,
    LABELS,
    NEAR,
    NO_GAINS,
    SCORES,
    beyond_the_most_frequent,
    counted,
    held,
    labelled,
)
from benchmarks.coverage_rivals import EQUALS, LOSSES, advised, perplexity_holds, summaries_hold
from tuner.evaluation.score import influence, interval, quantile, unbounded
from tuner.metrics import FEWEST_ROWS, METRICS

SIZES = (16, 32, 64)
BAND = (0.93, 0.97)
NOISE = 0.006  # twice the standard error of a share of 0.95 in DRAWS; of a smaller share it is larger
DRAWS = 4000
HELPED = 0.035  # at most, where nothing changed
# Where no interval holds in 93% to 97%: counts of right rows jump over the band, and 16 rows rarely show the few that
# make a mean. Name and rows -> the share in 8,000 draws.
OUTSIDE = {
    ("right or wrong, 0.03", 16): 0.921,
    ("right or wrong, 0.03", 32): 0.925,
    ("right or wrong, 0.97", 16): 0.923,
    ("right or wrong, 0.97", 32): 0.927,
    ("right or wrong, 0.05", 32): 0.980,
    ("right or wrong, 0.95", 32): 0.980,
    ("right or wrong, 0.5", 16): 0.980,
    ("between, wide, 0.05", 16): 0.918,
    ("between, wide, 0.95", 16): 0.920,
    ("most near 0, few near 1, 0.05", 16): 0.870,
    ("most near 0, few near 1, 0.05", 32): 0.918,
    ("most near 1, few near 0, 0.95", 16): 0.876,
    ("most near 1, few near 0, 0.95", 32): 0.916,
}
QUICK = [(name, 16) for name in ("right or wrong, 0.95", "30% ones, 0.5", "70% ones, 0.95")]
QUICK_GAINS = [("right or wrong, 0.5, 30% differ", 16)]


@pytest.mark.parametrize(("name", "rows"), mostly_long([(name, n) for name in SCORES for n in SIZES], *QUICK))
def test_the_interval_of_a_score_holds_as_often_as_it_says(name, rows):
    share, _ = held(SCORES[name], rows, DRAWS)["Tuner's"]
    low, high = BAND
    outside = OUTSIDE.get((name, rows))
    noise = NOISE if outside is None else 2 * NOISE
    assert (low if outside is None else min(low, outside)) - noise <= share
    assert share <= (high if outside is None else max(high, outside)) + noise


@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("near", NEAR)
def test_the_interval_of_accuracy_holds_as_often_as_it_says_near_each_end_and_in_the_middle(near, rows):
    outside = {((0.45, 0.55), 16): 0.973}  # from 0.958 to 0.979, one count less or more
    assert BAND[0] <= counted(*near, rows) <= outside.get((near, rows), BAND[1]) + 0.0005


@pytest.mark.parametrize(("name", "rows"), mostly_long([(name, n) for name in NO_GAINS for n in SIZES], *QUICK_GAINS))
def test_nothing_is_said_to_have_helped_where_nothing_changed(name, rows):
    share, helped = held(NO_GAINS[name], rows, DRAWS)["Tuner's"]
    assert share >= BAND[0] - NOISE  # above the band where few rows differ: then most draws show no difference at all
    assert helped <= HELPED


@pytest.mark.parametrize(("name", "rows"), mostly_long([(name, n) for name in GAINS for n in SIZES]))
def test_the_interval_of_a_gain_holds_as_often_as_it_says(name, rows):
    share, _ = held(GAINS[name], rows, DRAWS)["Tuner's"]
    assert BAND[0] - NOISE <= share <= 0.985 + NOISE  # 0.984 from 0.05 to 0.95 at 16 rows, where counts jump as well


RIGHT = [(name, rows) for name in LABELS for rows in (32, 64, 200)]


@pytest.mark.parametrize(("name", "rows"), mostly_long(RIGHT, ("a rare one at 0.3, the other at 0.95", 64)))
def test_the_intervals_of_macro_f1_hold_where_each_label_has_as_many_rows_as_they_take(name, rows):
    right = LABELS[name]
    if FEWEST_ROWS * len(right) > rows:
        return
    for case in (labelled(right, FEWEST_ROWS, rows), beyond_the_most_frequent(right, FEWEST_ROWS, rows)):
        share, _ = held(case, rows, DRAWS // 2)["Tuner's"]
        assert share >= 0.92 - 2 * NOISE  # few answers of a good model are wrong, so that counts jump as well


def test_the_intervals_of_macro_f1_do_not_hold_where_a_label_has_few_rows():
    share, _ = held(labelled(LABELS["a rare one at 0.3, the other at 0.95"], 2, 64), 64, 500)["Tuner's"]
    assert share < 0.6


@pytest.mark.parametrize(("name", "rows"), mostly_long([(n, r) for n in EQUALS for r in SIZES], ("between, 0.5", 16)))
def test_where_all_four_variants_are_equal_neither_tuning_nor_a_prompt_is_advised(name, rows, request):
    draws = DRAWS if request.node.get_closest_marker("long") else 300
    assert advised(name, rows, draws) <= 0.05 + 2 * (0.05 * 0.95 / draws) ** 0.5


HARD = {"0.1 nats, few rows hard": 0.885}  # a few rows have most of the loss, and 16 seldom show them
ROWS_OF_LOSSES = [(name, rows) for name in LOSSES for rows in SIZES]


@pytest.mark.parametrize(("name", "rows"), mostly_long(ROWS_OF_LOSSES, ("3 nats, rows alike", 16)))
def test_intervals_of_perplexity_and_its_gain_hold(name, rows, request):
    draws = DRAWS // 2 if request.node.get_closest_marker("long") else 400
    noise = 2 * (0.05 * 0.95 / draws) ** 0.5
    for lower in (1.0, 0.3):
        own, gain, above = perplexity_holds(name, rows, draws, lower)
        assert min(own, gain) >= HARD.get(name, 0.91) - noise
        assert lower < 1 or above <= 0.04 + noise


@pytest.mark.long
@pytest.mark.parametrize("rows", SIZES)
@pytest.mark.parametrize("name", ["chrf", "bleu"])
def test_intervals_of_chrf_and_bleu_hold(name, rows):
    assert min(summaries_hold(name, rows, DRAWS // 2)) >= BAND[0] - NOISE


def test_of_rows_that_are_not_skewed_the_interval_of_a_loss_is_students():
    part = np.array([-1.0, 1.0] * 8)
    error = (1 / 15) ** 0.5
    assert unbounded(3.0, part, 16.0) == pytest.approx((3 - quantile(15) * error, 3 + quantile(15) * error))
    low, high = unbounded(3.0, np.array([-0.5] * 15 + [7.5]), 16.0)
    assert high - 3 > 3 - low > 0  # further out on the side of the few long ones
    assert unbounded(3.0, part * 0, 16.0) == (3.0, 3.0)
    few, many = (np.ptp(unbounded(3.0, part, size)) for size in (6.0, 16.0))
    assert few > many  # rows of which a few have most of the tokens tell less


@pytest.mark.long
def test_the_benchmark_prints_its_tables(tmp_path):
    command = [sys.executable, ROOT / "benchmarks" / "coverage.py", "--draws", "1", "--rows", "16"]
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "| from 0.45 to 0.55 | 97.3 |" in printed
    assert [name for name in (*SCORES, *NO_GAINS, *GAINS, *LABELS) if f"| {name} |" not in printed] == []


def test_percentiles_of_a_bootstrap_do_not_hold():
    share, _ = held(SCORES["right or wrong, 0.95"], 16, 300, ["percentile", "Tuner's"])["percentile"]
    assert share < 0.65  # half of all draws have no wrong row, and then their percentiles are a point


# -- by hand


def of(values: list[float], bottom: float = 0.0, top: float = 1.0) -> tuple[float, float]:
    part = np.array(values)
    return interval(part.mean(), part - part.mean(), bottom, top)


@pytest.mark.parametrize(
    ("right", "rows", "low", "high"), [(8, 10, 0.4271, 0.9555), (1, 20, 0.0078, 0.2608), (40, 64, 0.4991, 0.736)]
)
def test_of_right_and_wrong_rows_it_is_wilsons_with_students_critical_value(right, rows, low, high):
    t, share = quantile(rows - 1), right / rows
    # With one row fewer, since the variance is estimated.
    size = rows - 1
    middle, spread = share + t**2 / (2 * size), t * (share * (1 - share) / size + t**2 / (4 * size**2)) ** 0.5
    by_hand = [(middle + sign * spread) / (1 + t**2 / size) for sign in (-1, 1)]
    found = of([1.0] * right + [0.0] * (rows - right))
    assert found == pytest.approx(by_hand, abs=1e-4)
    assert found == (low, high)


def test_rows_that_are_all_alike_leave_room_for_others():
    low, high = of([1.0] * 16)
    assert (low, high) == (pytest.approx(16 / (16 + quantile(15) ** 2), abs=1e-4), 1)
    assert of([0.0] * 16) == (0, pytest.approx(1 - low, abs=1e-4))
    assert of([0.0] * 16, -1.0, 1.0) == (pytest.approx(low - 1, abs=1e-4), pytest.approx(1 - low, abs=1e-4))
    low, high = of([0.25] * 64)
    assert 0.23 < low < 0.25 < high < 0.30


def test_it_is_further_out_where_the_rows_are_skewed_and_never_closer_in():
    few = [0.1] * 30 + [0.9] * 2
    (low, high), (same_low, same_high) = of(few), of([1 - value for value in few])
    assert (same_low, same_high) == (pytest.approx(1 - high, abs=1e-4), pytest.approx(1 - low, abs=1e-4))
    mean, error = np.mean(few), np.std(few, ddof=1) / 32**0.5
    assert (high - mean) / error > quantile(31) + 0.6
    assert 1.5 < (mean - low) / error < quantile(31)  # Wilson's own, which stays above 0


def test_an_interval_stays_within_the_scale():
    for values in ([0.0] * 15 + [0.001], [1.0] * 15 + [0.999], [0.0] * 8 + [1.0] * 8):
        low, high = of(values)
        assert 0 <= low <= np.mean(values) <= high <= 1
    low, high = of([1.0] * 15 + [2.5], 0.0, 2.5)  # a rate of errors
    assert 0.7 < low < np.mean([1.0] * 15 + [2.5]) < high < 2.5


@pytest.mark.parametrize(("freedom", "point"), [(9, 2.26216), (15, 2.13145), (31, 2.03951), (63, 1.99834)])
def test_students_points_are_those_of_the_tables(freedom, point):
    assert quantile(freedom) == pytest.approx(point, abs=3e-4)


def test_the_influence_of_a_row_is_what_the_score_would_be_without_it():
    values = np.array([0.2, 0.9, 0.4, 0.0])
    means = np.stack([values, np.ones(4)], 1)
    assert influence(METRICS["accuracy"], means) == pytest.approx(values - values.mean())
    counts = np.array([[2.0, 3], [0, 2], [6, 7], [0, 0]])
    found = influence(METRICS["entity_f1"], counts)
    without = np.array([np.delete(counts, row, 0).sum(0) for row in range(4)])
    ratios = without[:, 0] / without[:, 1]
    assert found == pytest.approx(3 * (ratios.mean() - ratios))
    assert found.sum() == pytest.approx(0)
