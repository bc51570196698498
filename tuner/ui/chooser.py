"""The method chooser: all methods by kind, each with what it does and what it would cost here. A method that can't
be used is disabled, with the reason."""

import re
from collections.abc import Iterator
from html import escape

from tuner.methods.registry import METHODS
from tuner.methods.spec import KINDS, MethodRow
from tuner.planning.forecast import duration
from tuner.ui.render import tag
from tuner.words import count, file_size, gigabytes

CLICKED = """element.addEventListener('click', (event) => {
    const row = event.target.closest('[data-method]');
    if (row && !row.disabled) trigger('click', {method: row.dataset.method});
});"""
SUMMARIES = {
    "reparameterization": "Freeze the weights and learn a small update, which can be merged into them afterwards.",
    "additive adapter": "Add small trained layers to the model.",
    "soft prompt": "Freeze the model and learn vectors that come before the prompt.",
    "selective": "Train some of the model's own weights.",
    "hybrid": "Combine two methods in one run.",
    "full": "Train all weights.",
    "more": "Less common methods, for comparison.",
}


def choices() -> list[tuple[str, str]]:
    """Title and name of every method, for a dropdown."""
    return [(row.title, row.name) for row in METHODS.values()]


def explanation(name: str) -> str:
    """What the method does and trains, with a link to its paper."""
    row = METHODS[name]
    link = f'<a href="{row.paper}" target="_blank" rel="noopener">paper</a>'
    return tag("p", f"{escape(row.explanation)} Trains {escape(row.trains)} ({link}).", "t-sub")


def html(costs: dict[str, dict], chosen: str, waiting: bool = False) -> str:
    """The chooser as HTML; `costs` are those of `method_costs` known so far, by method."""
    groups = [(kind, [row for row in METHODS.values() if row.kind == kind and not row.more]) for kind in KINDS]
    shown = "".join(_group(kind, rows, costs, chosen, waiting) for kind, rows in groups if rows)
    more = [row for row in METHODS.values() if row.more]
    folded = tag("summary", f"More ({len(more)})") + _group("more", more, costs, chosen, waiting)
    is_open = " open" if chosen in {row.name for row in more} else ""
    return f'<div class="t-methods">{shown}<details{is_open}>{folded}</details></div>'


def _group(kind: str, rows: list[MethodRow], costs: dict[str, dict], chosen: str, waiting: bool) -> str:
    title = tag("h4", kind.capitalize()) if kind != "more" else ""
    listed = "".join(_row(row, costs.get(row.name), row.name == chosen, waiting) for row in rows)
    return tag("section", title + tag("p", SUMMARIES[kind], "t-sub") + listed)


def _row(row: MethodRow, cost: dict | None, is_chosen: bool, waiting: bool) -> str:
    problems = cost["problems"] if cost else []
    # A link within a button can't be clicked; the chosen method's explanation above has it.
    text = re.sub(r" \(https?://[^)]+\)", "", row.explanation)
    below = tag("small", escape(problems[0] if problems else text))
    figures = (
        _figures(cost) if cost and not problems else tag("span", "…" if waiting and not cost else "", "t-figures")
    )
    return (
        f'<button type="button" class="t-method {"selected" if is_chosen else ""}" data-method="{row.name}" '
        f'aria-pressed="{"true" if is_chosen else "false"}"{" disabled" if problems else ""}>'
        f"{tag('span', tag('b', escape(row.title)) + below, 't-method-name')}{figures}</button>"
    )


def _figures(cost: dict) -> str:
    figures = {
        "parameters": _short(cost["trainable_parameters"]),
        "adapter": file_size(cost["adapter_bytes"]),
        "memory": gigabytes(cost["memory"]) if cost["memory"] else "unknown",
        "training": f"{duration(cost['seconds'])}, {count(cost['steps'], 'step')}",
    }
    return tag("span", "".join(f"<span><b>{v}</b><i>{n}</i></span>" for n, v in figures.items()), "t-figures")


def _short(number: int) -> str:
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= 0.9995 * size:  # with three digits it reads as one of these
            return f"{number / size:.3g} {unit}"
    return str(number)


def growing(costs: Iterator[dict], chosen: str) -> Iterator[str]:
    """The chooser's HTML, renewed as the costs of each method arrive."""
    known_costs: dict[str, dict] = {}
    for cost in costs:
        known_costs[cost["name"]] = cost
        yield html(known_costs, chosen, waiting=True)
    yield html(known_costs, chosen)
