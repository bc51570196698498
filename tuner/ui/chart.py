"""Small charts in SVG and HTML: the loss curve, score bars with intervals, parts of a whole, a histogram of lengths.

They are drawn from plain numbers. Colors come from style.css, so one chart serves light and dark.
"""

import math
from collections.abc import Callable, Sequence
from html import escape

from tuner.words import count

WIDTH, HEIGHT = 640, 240  # of the loss curve, in SVG units
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 12, 30  # margins
MOST_POINTS = 400  # a screen can't show more
SMOOTHING = 0.9

Point = tuple[float, float]


def loss_curve(
    losses: Sequence[Point],
    heldout: Sequence[Point],
    steps: int | None,
    done: int | None = None,
    kept: int | None = None,
) -> str:
    """Training loss (raw and smoothed) and held-out loss by step; the axis ends where the run will end.

    `done` is the number of steps done, where `losses` has fewer points. Step `kept` is marked on the held-out loss.
    """
    done = done or len(losses)
    place, frame = _frame([*losses, *heldout], steps)
    few = _thinned(losses)
    marks = "".join(f'<circle class="heldout" r="3.5" cx="{p[0]}" cy="{p[1]}"/>' for p in _split(place, heldout))
    kept_at = _split(place, [point for point in heldout if point[0] == kept])
    marks += "".join(f'<circle class="kept" r="7" cx="{p[0]}" cy="{p[1]}"/>' for p in kept_at)
    kept_name = '<span class="kept">weights that were kept</span>' if kept_at else ""
    return (
        f'<svg class="t-curve" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" data-points="{done}" '
        f'aria-label="Loss over {done} of {steps or "?"} steps">{frame}'
        f"{_line('raw', few, place)}{_line('train', smoothed(few), place)}{_line('heldout', heldout, place)}"
        f'{marks}</svg><div class="t-legend"><span class="train">training loss</span>'
        f'<span class="heldout">held-out loss</span>{kept_name}</div>'
    )


def curves(lines: dict[str, Sequence[Point]], title: str) -> str:
    """Several runs' losses by step, each under its label, which is escaped."""
    place, frame = _frame([point for points in lines.values() for point in points], None)
    drawn = "".join(_line(f"run{i}", points, place) for i, points in enumerate(lines.values()))
    legend = "".join(f'<span class="run{i}">{escape(label)}</span>' for i, label in enumerate(lines))
    return (
        f'<svg class="t-curve" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title} by step">{frame}{drawn}'
        f'</svg><div class="t-legend">{legend}</div>'
    )


def _frame(points: Sequence[Point], steps: int | None) -> tuple[Callable[[float, float], str], str]:
    """Where a point is, and the grid with its labels: losses from 0, and steps at least to `steps`."""
    shown = [p for p in points if math.isfinite(p[1])]
    last = max([steps or 1, *(x for x, _ in shown)])
    ticks = _ticks(0.0, max((y for _, y in shown), default=4.0))
    top = ticks[-1]

    def place(x: float, y: float) -> str:
        across = LEFT + (WIDTH - LEFT - RIGHT) * x / last
        return f"{across:.1f},{TOP + (HEIGHT - TOP - BOTTOM) * (1 - y / top):.1f}"

    grid = "".join(_grid_line(place(0, y), f"{y:g}") for y in ticks)
    below = "".join(_step_label(place(x, 0), f"{x:g}", x > 0.95 * last) for x in _ticks(0, last, 5) if x <= last)
    return place, grid + below


def smoothed(points: Sequence[Point]) -> list[Point]:
    """An exponential moving average with Adam's bias correction at the start."""
    mean, out = 0.0, []
    for number, (x, y) in enumerate(points, 1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * y
        out.append((x, mean / (1 - SMOOTHING**number)))
    return out


def score_bar(value: float, low: float | None, high: float | None, whole: float) -> str:
    """A bar as long as `value` of `whole`, with the 95% interval drawn over its end, if there is one."""
    drawn = ""
    if low is not None:
        drawn = f'<b style="left:{low / whole:.1%};width:{max(0.0, high - low) / whole:.1%}"></b>'
    return f'<span class="t-bar-track"><i style="width:{value / whole:.1%}"></i>{drawn}</span>'


def outcomes(better: int, same: int, worse: int) -> str:
    """Rows that are better, the same and worse, as parts of a bar with their numbers in words."""
    numbers = {"better": better, "same": same, "worse": worse}
    bars = "".join(f'<i class="{kind}" style="flex:{rows}"></i>' for kind, rows in numbers.items() if rows)
    words = ", ".join(f"{rows:,} {kind}" for kind, rows in numbers.items())
    return f'<span class="t-outcomes">{bars}</span><small>{words}</small>'


def parts(name: str, total: str, shares: Sequence[tuple[str, float, str]], whole: float) -> str:
    """A bar in parts (name, value, value in words) of a whole, with the total above and the parts' names below."""
    drawn = [(n, v, words) for n, v, words in shares if v > 0]
    bars = "".join(
        f'<i style="width:{max(0.5, 100 * v / whole):.1f}%" title="{n}: {words}"></i>' for n, v, words in drawn
    )
    names = "".join(f"<span>{n} {words}</span>" for n, _, words in drawn)
    return (
        f'<div class="t-parts"><div class="t-parts-head"><span>{name}</span><b>{total}</b></div>'
        f'<div class="t-parts-track" role="img" aria-label="{name}: {total}">{bars}</div>'
        f'<div class="t-parts-names">{names}</div></div>'
    )


def histogram(counts: Sequence[tuple[int, int, int]], limit: int) -> str:
    """Bars of (from, to, rows); those beyond `limit` are drawn as cut off."""
    tallest = max((rows for *_, rows in counts), default=1) or 1
    bars = "".join(
        f'<i class="{"cut" if low > limit else ""}" style="height:{max(2, 100 * rows / tallest) if rows else 0:.0f}%" '
        f'title="{low} to {high} tokens: {count(rows, "row")}"></i>'
        for low, high, rows in counts
    )
    first, last = (counts[0][0], counts[-1][1]) if counts else (0, 0)
    return (
        f'<div class="t-histogram" role="img" aria-label="Rows by length in tokens">{bars}</div>'
        f'<div class="t-histogram-axis"><span>{first}</span><span>tokens per row</span><span>{last}</span></div>'
    )


def _ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round numbers from `low` to at least `high`."""
    rough = max(high - low, 1e-9) / wanted
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * 0.999)
    count = math.ceil((high - low) / step - 1e-9)
    return [round(low + i * step, 10) for i in range(max(1, count) + 1)]


def _thinned(points: Sequence[Point]) -> list[Point]:
    """Averages of neighbors, so that a long run keeps its shape and its beginning."""
    size = -(-len(points) // MOST_POINTS) or 1
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(g[-1][0], sum(y for _, y in g) / len(g)) for g in groups]


def _line(kind: str, points: Sequence[Point], place: Callable[[float, float], str]) -> str:
    finite = [place(x, y) for x, y in points if math.isfinite(y)]
    return f'<polyline class="{kind}" points="{" ".join(finite)}"/>' if len(finite) > 1 else ""


def _split(place: Callable[[float, float], str], points: Sequence[Point]) -> list[list[str]]:
    return [place(x, y).split(",") for x, y in points if math.isfinite(y)]


def _grid_line(at: str, label: str) -> str:
    x, y = at.split(",")
    line = f'<line x1="{x}" y1="{y}" x2="{WIDTH - RIGHT}" y2="{y}"/>'
    return f'{line}<text x="{LEFT - 6}" y="{y}" dy="4" text-anchor="end">{label}</text>'


def _step_label(at: str, label: str, is_last: bool) -> str:
    x, y = at.split(",")
    return f'<text x="{x}" y="{float(y) + 20:.1f}" text-anchor="{"end" if is_last else "middle"}">{label}</text>'
