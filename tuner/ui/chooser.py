"""The method chooser: all methods by kind, each with what it is and what it would take here, greyed where it can't be
used."""

import re
from collections.abc import Iterator
from html import escape

from tuner.methods.registry import METHODS
from tuner.methods.spec import KINDS, MethodRow
from tuner.planning.forecast import duration, gigabytes
from tuner.ui.render import tag

CLICKED = """element.addEventListener('click', (event) => {
    const row = event.target.closest('[data-method]');
    if (row && !row.disabled) trigger('click', {method: row.dataset.method});
});"""
SAID = {
    "reparameterisation": "The weights stay; a small update is learned beside them and can be added in afterwards.",
    "additive adapter": "Small new parts are put into the model.",
    "soft prompt": "The model stays as it is; vectors before the prompt are learned.",
    "selective": "Some of the model's own weights are trained.",
    "hybrid": "Two methods in one run.",
    "full": "All weights are trained.",
    "more": "For those who compare methods.",
}


def choices() -> list[tuple[str, str]]:
    """Title and name of every method, for a dropdown."""
    return [(row.title, row.name) for row in METHODS.values()]


def explained(name: str) -> str:
    """What the method does, with its paper."""
    row = METHODS[name]
    link = f'<a href="{row.paper}" target="_blank" rel="noopener">paper</a>'
    return tag("p", f"{escape(row.explanation)} It trains {escape(row.trains)} ({link}).", "t-sub")


def drawn(found: dict[str, dict], chosen: str, waiting: bool = False) -> str:
    """The chooser; `found` holds what `survey` has told so far, by method."""
    groups = [(kind, [row for row in METHODS.values() if row.kind == kind and not row.more]) for kind in KINDS]
    shown = "".join(_group(kind, rows, found, chosen, waiting) for kind, rows in groups if rows)
    more = [row for row in METHODS.values() if row.more]
    folded = tag("summary", f"More ({len(more)})") + _group("more", more, found, chosen, waiting)
    is_open = " open" if chosen in {row.name for row in more} else ""
    return f'<div class="t-methods">{shown}<details{is_open}>{folded}</details></div>'


def _group(kind: str, rows: list[MethodRow], found: dict, chosen: str, waiting: bool) -> str:
    title = tag("h4", kind.capitalize()) if kind != "more" else ""
    listed = "".join(_row(row, found.get(row.name), row.name == chosen, waiting) for row in rows)
    return tag("section", title + tag("p", SAID[kind], "t-sub") + listed)


def _row(row: MethodRow, told: dict | None, is_chosen: bool, waiting: bool) -> str:
    problems = (told or {}).get("problems", [])
    # A link within a button can't be clicked; the chosen method's is shown above.
    explanation = re.sub(r" \(https?://[^)]+\)", "", row.explanation)
    below = tag("small", escape(problems[0] if problems else explanation))
    figures = (
        _figures(told) if told and not problems else tag("span", "…" if waiting and not told else "", "t-figures")
    )
    return (
        f'<button type="button" class="t-method {"selected" if is_chosen else ""}" data-method="{row.name}" '
        f'aria-pressed="{"true" if is_chosen else "false"}"{" disabled" if problems else ""}>'
        f"{tag('span', tag('b', escape(row.title)) + below, 't-method-name')}{figures}</button>"
    )


def _figures(told: dict) -> str:
    memory = gigabytes(told["memory"]) if told["memory"] else "not known"
    size = told["adapter_bytes"]
    shown = {
        "trained": _short(told["trainable_parameters"]),
        "adapter": f"{size / 2**10:.0f} KB" if size < 2**20 else gigabytes(size),
        "memory": memory,
        "training": f"{duration(told['seconds'])}, {told['steps']:,} steps",
    }
    return tag("span", "".join(f"<span><b>{v}</b><i>{n}</i></span>" for n, v in shown.items()), "t-figures")


def _short(number: int) -> str:
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def growing(told: Iterator[dict], chosen: str) -> Iterator[str]:
    """The chooser as the survey goes on."""
    found: dict[str, dict] = {}
    for each in told:
        found[each["name"]] = each
        yield drawn(found, chosen, waiting=True)
    yield drawn(found, chosen)
