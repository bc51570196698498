"""Scores against what they cost, as a PNG, as an SVG for the page, and as a table in CSV.

One drawing serves all: the SVG's colors are the page's own variables, so it is right in light and dark. Drawn with
matplotlib's Figure alone, which shares no state between threads.
"""

import csv
import io
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from tuner.experiments.results import Results
from tuner.metrics import METRICS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COSTS = {"seconds": "training seconds", "trainable_parameters": "trained parameters"}
# Part of the drawing -> its color in a PNG, where it also stands for the page's in an SVG.
COLORS = {
    "text": ("#1f2328", "currentColor"),
    "grid": ("#d0d7df", "var(--border-color-primary, #d0d7df)"),
    "point": ("#94a3b8", "var(--t-base, #94a3b8)"),
    "front": ("#0f766e", "var(--t-train, #0f766e)"),
    "rival": ("#c2410c", "var(--t-heldout, #c2410c)"),
}
SVG = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" class="t-plot"'
LONGEST_LABEL = 28  # characters
COLUMNS = (
    "rank", "label", "title", "status", "score", "low", "high", "spread", "choosing", "loss", "steps", "seconds",
    "trainable_parameters", "adapter_bytes", "fronts", "runs", "problems",
)  # fmt: skip


def svg(found: Results) -> str:
    """The drawing as an `<svg>` element to put into a page; empty without scores."""
    if not _drawable(found):
        return ""
    drawn = _saved(found, "svg").decode()
    box = re.search(r'viewBox="[^"]*"', drawn)[0]
    # Without the style, whose rule would be the whole page's, and the description of the program that drew it.
    _, _, inner = drawn.partition(box)[2].partition(">")
    inner = re.sub("<style.*?</style>|<metadata.*?</metadata>", "", inner, flags=re.DOTALL)
    for color, variable in COLORS.values():
        inner = inner.replace(f" {color}", f" {variable}")
    label = f"{METRICS[found.metric].title} against seconds and trained parameters" if found.metric else ""
    return f'<svg {SVG} {box} role="img" aria-label="{label}">{inner}'


def png(found: Results) -> bytes:
    """The drawing on white; nothing without scores."""
    return _saved(found, "png") if _drawable(found) else b""


def table(found: Results) -> str:
    """The lines as CSV, what needs no training at their end."""
    written = io.StringIO()
    writer = csv.DictWriter(written, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for line in [*found.lines, *({"status": "not trained", **rival} for rival in found.rivals)]:
        writer.writerow({key: _cell(line.get(key)) for key in COLUMNS})
    return written.getvalue()


def write(found: Results, folder: Path) -> list[Path]:
    """Write comparison.csv and, if there are scores, comparison.png; returns their paths. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {"comparison.csv": table(found).encode(), "comparison.png": png(found)}
    paths = [folder / name for name, content in files.items() if content]
    for path in paths:
        path.write_bytes(files[path.name])
    return paths


def _cell(value: object) -> object:
    text = " ".join(map(str, value)) if isinstance(value, list) else value
    # A spreadsheet would compute what begins like a formula.
    return f"'{text}" if isinstance(text, str) and text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def _drawable(found: Results) -> list[dict]:
    return [line for line in found.lines if line.get("score") is not None]


def _saved(found: Results, kind: str) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    figure, written = _figure(found), io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of letters that the font lacks
        if kind == "svg":
            FigureCanvasSVG(figure).print_figure(written, format="svg", facecolor="none", metadata={"Date": None})
        else:
            FigureCanvasAgg(figure).print_figure(written, format="png", facecolor="white", dpi=150)
    return written.getvalue()


def _figure(found: Results) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, len(COSTS), sharey=True)
    for ax, cost in zip(axes, COSTS):
        _draw(ax, found, cost)
    metric = METRICS[found.metric] if found.metric else None
    axes[0].set_ylabel(f"{metric.title} ({metric.direction})" if metric else "", color=_png("text"))
    return figure


def _draw(ax: "Axes", found: Results, cost: str) -> None:
    """One panel: the lines' scores against a cost, the front joined by a line, the rivals as dashed lines."""
    lines = [line for line in _drawable(found) if line[cost] is not None]
    front = sorted((line for line in lines if cost in line["fronts"]), key=lambda line: line[cost])
    ax.plot([line[cost] for line in front], [line["score"] for line in front], color=_png("front"), lw=1, zorder=1)
    for line in lines:
        color = _png("front" if line in front else "point")
        bounds = None
        if line["low"] is not None:
            # A mean may be above its bound by a rounding error, and matplotlib refuses that.
            bounds = [[max(0.0, line["score"] - line["low"])], [max(0.0, line["high"] - line["score"])]]
        ax.errorbar(line[cost], line["score"], bounds, fmt="o", ms=6, color=color, elinewidth=1, capsize=2)
        ax.annotate(
            _short(line["label"]), (line[cost], line["score"]), (6, 5), textcoords="offset points", fontsize=8,
            color=_png("text"), parse_math=False,
        )  # fmt: skip
    for rival in found.rivals:
        ax.axhline(rival["score"], color=_png("rival"), lw=1, ls="--", zorder=0)
        ax.annotate(
            _short(rival["label"]), (1, rival["score"]), (-3, 3), xycoords=("axes fraction", "data"), ha="right",
            textcoords="offset points", fontsize=8, color=_png("rival"), parse_math=False,
        )  # fmt: skip
    if cost == "trainable_parameters" and lines and min(line[cost] for line in lines) > 0:
        ax.set_xscale("log")
    ax.margins(x=0.2, y=0.15)
    ax.set_xlabel(COSTS[cost], color=_png("text"))
    ax.set_facecolor("none")
    ax.grid(color=_png("grid"), lw=0.6)
    ax.tick_params(colors=_png("text"), which="both", labelsize=8)
    for side, spine in ax.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_png("grid"))


def _png(part: str) -> str:
    return COLORS[part][0]


def _short(label: str) -> str:
    return label if len(label) <= LONGEST_LABEL else label[: LONGEST_LABEL - 1] + "…"
