"""The charts show the numbers that they are given: in their place, with their units, and nothing left out."""

import re

import pytest
from conftest import plain

from tuner.ui import chart

LEFT, RIGHT, TOP, BOTTOM = 44, 640 - 12, 12, 240 - 30  # the edges of the loss curve's plane


def line(html: str, kind: str) -> list[tuple[float, float]]:
    """The points of a line, as shares of the plane: across from the left, and up from the bottom."""
    (points,) = re.findall(rf'<polyline class="{kind}" points="([^"]*)"/>', html)
    pairs = [tuple(map(float, point.split(","))) for point in points.split()]
    return [((x - LEFT) / (RIGHT - LEFT), (BOTTOM - y) / (BOTTOM - TOP)) for x, y in pairs]


def test_losses_stand_over_their_steps_and_the_axis_ends_where_the_run_will():
    losses, heldout = [(5, 4.0), (10, 2.0), (15, 1.0)], [(0, 3.0), (15, 1.5)]
    html = chart.loss_curve(losses, heldout, 20)
    assert sum(line(html, "raw"), ()) == pytest.approx((0.25, 1, 0.5, 0.5, 0.75, 0.25), abs=0.001)
    assert sum(line(html, "heldout"), ()) == pytest.approx((0, 0.75, 0.75, 0.375), abs=0.001)
    smooth = [y for _, y in chart.smoothed(losses)]
    assert [y for _, y in line(html, "train")] == pytest.approx([y / 4 for y in smooth], abs=0.001)
    assert html.count('<circle class="heldout"') == 2
    assert 'data-points="3"' in html
    assert 'aria-label="Loss over 3 of 20 steps"' in html
    assert re.findall(r'text-anchor="end">([^<]*)</text>', html)[:5] == ["0", "1", "2", "3", "4"]
    assert re.findall(r'text-anchor="(\w+)">([^<]*)</text>', html)[5:] == [
        ("middle", "0"),
        ("middle", "5"),
        ("middle", "10"),
        ("middle", "15"),
        ("end", "20"),
    ]
    places = [(float(x), float(y)) for x, y in re.findall(r'<text x="([\d.]+)" y="([\d.]+)"', html)]
    assert places[:5] == [(38, y) for y in (210, 160.5, 111, 61.5, 12)]
    assert places[5:] == [(x, 230) for x in (44, 190, 336, 482, 628)]
    grid = re.findall(r'<line x1="([\d.]+)" y1="([\d.]+)" x2="([\d.]+)" y2="([\d.]+)"/>', html)
    assert grid[1] == ("44.0", "160.5", "628", "160.5")
    assert re.sub(r"\s+", " ", plain(html)).endswith("training loss held-out loss ")


def test_the_axes_reach_to_the_largest_loss_of_either_kind_and_end_with_the_last_step():
    html = chart.loss_curve([(3, 2.0), (6, 1.0)], [(0, 8.0), (6, 4.0)], 12)
    assert [y for _, y in line(html, "raw")] == pytest.approx([0.25, 0.125], abs=0.001)
    assert [y for _, y in line(html, "heldout")] == pytest.approx([1, 0.5], abs=0.001)
    below = re.findall(r'text-anchor="(\w+)">([^<]*)</text>', html)[5:]
    assert below == [("middle", "0"), ("middle", "2.5"), ("middle", "5"), ("middle", "7.5"), ("middle", "10")]
    # The last label also ends at the edge if the run goes on a little beyond it.
    assert 'text-anchor="end">20</text>' in chart.loss_curve([(3, 2.0)], [], 21)
    assert 'text-anchor="end">4</text>' in chart.loss_curve([], [], 9)  # before there are losses


def test_a_long_run_says_how_many_losses_it_has_and_draws_fewer():
    losses = [(step, 1.0 + step % 2) for step in range(1, 801)]
    html = chart.loss_curve(losses, [(0, 1.0), (800, 2.0)], 900)
    assert 'data-points="800"' in html
    assert "Loss over 800 of 900 steps" in html
    for kind in ("raw", "train"):
        assert len(line(html, kind)) == 400
        assert {round(y, 2) for _, y in line(html, kind)} == {0.75}  # 1.5, the mean of neighbors, of 2


def test_a_run_that_went_on_beyond_its_plan_or_has_none_ends_the_axis_itself():
    losses = [(5, 4.0), (40, 2.0)]
    for steps, named in ((20, "20"), (None, "?")):
        html = chart.loss_curve(losses, [], steps)
        assert [x for x, _ in line(html, "raw")] == pytest.approx([0.125, 1], abs=0.001)
        assert f"Loss over 2 of {named} steps" in html
    assert [x for x, _ in line(chart.loss_curve([(1, 2.0), (2, 1.0)], [(4, 2.0)], None), "raw")] == [0.25, 0.5]


def test_losses_that_are_no_numbers_are_left_out():
    nan, inf = float("nan"), float("inf")
    html = chart.loss_curve([(1, 4.0), (2, nan), (3, inf), (4, 2.0)], [(2, nan), (4, 1.0)], 4)
    assert [y for _, y in line(html, "raw")] == pytest.approx([1, 0.5], abs=0.001)
    assert html.count("<circle") == 1
    assert "nan" not in html
    assert "polyline" not in chart.loss_curve([(1, 2.0)], [], 4)  # one point is no line
    assert "Loss over 0 of 9 steps" in chart.loss_curve([], [], 9)


def test_the_smoothed_loss_is_a_moving_average_without_bias_at_the_start():
    assert chart.smoothed([(3, 2.0), (4, 2.0), (9, 2.0)]) == [(3, 2.0), (4, 2.0), (9, 2.0)]
    (_, first), (_, second) = chart.smoothed([(1, 4.0), (2, 2.0)])
    assert (first, second) == pytest.approx((4.0, (0.9 * 0.1 * 4.0 + 0.1 * 2.0) / (1 - 0.81)))


@pytest.mark.parametrize(
    ("size", "points", "first", "last"),
    [(400, 400, (1, 1), (400, 400)), (401, 201, (2, 1.5), (401, 401)), (1000, 334, (3, 2), (1000, 1000))],
)
def test_a_long_run_is_drawn_by_averages_of_neighbors_up_to_its_last_step(size, points, first, last):
    thinned = chart._thinned([(step, float(step)) for step in range(1, size + 1)])
    assert (len(thinned), thinned[0], thinned[-1]) == (points, first, last)
    assert chart._thinned([]) == []


@pytest.mark.parametrize(
    ("low", "high", "wanted", "ticks"),
    [
        (0, 4.0, 4, [0, 1, 2, 3, 4]),
        (0, 4.1, 4, [0, 2, 4, 6]),
        (0, 0.9, 4, [0, 0.25, 0.5, 0.75, 1]),
        (0, 300, 5, [0, 100, 200, 300]),
        (0, 12, 5, [0, 2.5, 5, 7.5, 10, 12.5]),
        (0, 0, 4, [0, 0]),
    ],
)
def test_ticks_are_round_numbers_that_reach_to_the_end(low, high, wanted, ticks):
    assert chart._ticks(low, high, wanted) == pytest.approx(ticks, abs=1e-8)


def test_scores_are_bars_of_their_size_with_their_interval():
    assert 'width:25.0%"></i><b style="left:12.5%;width:37.5%"></b>' in chart.score_bar(0.25, 0.125, 0.5, whole=1.0)
    assert "left:50.0%;width:50.0%" in chart.score_bar(3.0, 2.0, 4.0, whole=4.0)
    assert "<b" not in chart.score_bar(0.75, None, None, whole=1.0)


def test_rows_won_and_lost_are_parts_of_a_bar_and_those_of_nothing_are_not_drawn():
    html = chart.outcomes(14, 40, 0)
    assert re.findall(r'<i class="(\w+)" style="flex:(\d+)">', html) == [("better", "14"), ("same", "40")]
    assert plain(html).strip() == "14 better, 40 same, 0 worse"


def test_parts_of_a_whole_are_named_with_their_values_and_nothing_is_no_part():
    html = chart.parts(
        "Memory", "6 GB of 10 GB", [("weights", 4, "4 GB"), ("none", 0, "0 GB"), ("rest", 2, "2 GB")], 10
    )
    assert re.findall(r'<i style="width:([\d.]+)%" title="([^"]*)"', html) == [
        ("40.0", "weights: 4 GB"),
        ("20.0", "rest: 2 GB"),
    ]
    assert re.findall(r"<span>([^<]*)</span>", html) == ["Memory", "weights 4 GB", "rest 2 GB"]
    assert "<b>6 GB of 10 GB</b>" in html
    assert 'aria-label="Memory: 6 GB of 10 GB"' in html
    assert "width:0.5%" in chart.parts("Time", "", [("a little", 0.001, "")], 10)  # still to be seen


def test_lengths_are_bars_and_those_beyond_the_limit_are_marked():
    counts = [(3, 5, 20), (6, 8, 0), (9, 11, 1), (12, 14, 10)]
    for limit, cut in ((8, [False, False, True, True]), (9, [False, False, False, True]), (14, [False] * 4)):
        html = chart.histogram(counts, limit)
        bars = re.findall(r'<i class="(\w*)" style="height:([\d.]+)%" title="([^"]*)"', html)
        assert [kind == "cut" for kind, _, _ in bars] == cut
    assert [height for _, height, _ in bars] == ["100", "0", "5", "50"]
    assert [title for *_, title in bars] == [
        "3 to 5 tokens: 20 rows",
        "6 to 8 tokens: 0 rows",
        "9 to 11 tokens: 1 row",
        "12 to 14 tokens: 10 rows",
    ]
    assert plain(html).split() == ["3", "tokens", "per", "row", "14"]
    assert 'style="height:2%"' in chart.histogram([(1, 1, 1000), (2, 2, 1)], 9)
    assert plain(chart.histogram([], 9)).split() == ["0", "tokens", "per", "row", "0"]
