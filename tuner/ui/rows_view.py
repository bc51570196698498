"""The row browser: every scored row of the run that is shown, with what its answers have and lack marked by words."""

import difflib
from collections.abc import Callable, Sequence
from functools import cache
from html import escape
from itertools import islice
from types import SimpleNamespace
from typing import TYPE_CHECKING

import gradio as gr

from tuner.metrics import METRICS
from tuner.runs import Run
from tuner.ui import actions, elements, rows
from tuner.ui.elements import tag
from tuner.ui.problems import problems_of
from tuner.ui.result import NAMES
from tuner.ui.wiring import LOOKS, PRIVATE

if TYPE_CHECKING:
    import regex

MOST_WORDS = 150  # of a text that are compared, since comparing takes up to the cube of their number
OUTCOMES = {"all": "All", "better": "Adapter better", "worse": "Adapter worse", "equal": "Equal"}
ORDERS = {"worst": "Worst for the adapter first", "best": "Best for the adapter first", "scored": "As scored"}


def build(shown: gr.Textbox) -> SimpleNamespace:
    """The components, in a fold that its owner shows for a run with scored rows; `shown` holds the run's id."""
    view = SimpleNamespace(shown=shown, page=gr.Number(1, visible=False, precision=0))
    with gr.Accordion("All scored rows", open=False, visible=False, elem_id="scored-rows") as view.fold:
        with gr.Row(elem_classes="t-line"):
            view.over = gr.Dropdown(
                [], label="Compare the adapter with", filterable=False, min_width=220, elem_id="rows-over"
            )
            view.order = gr.Dropdown(
                [(title, name) for name, title in ORDERS.items()],
                value="worst",
                label="Order",
                filterable=False,
                min_width=220,
                elem_id="rows-order",
            )
            view.search = gr.Textbox(
                label="Search", placeholder="words of a prompt, an answer or a reference", min_width=220,
                max_length=rows.MOST_SEARCHED, elem_id="rows-search",
            )  # fmt: skip
        view.outcome = gr.Radio(
            [(title, name) for name, title in OUTCOMES.items()], value="all", label="Rows", elem_id="rows-outcome"
        )
        view.list = gr.HTML(elem_id="rows-list")
        with gr.Row(elem_classes="t-buttons"):
            view.previous = gr.Button("Previous", size="sm", min_width=100, interactive=False, elem_id="rows-previous")
            view.next = gr.Button("Next", size="sm", min_width=100, interactive=False, elem_id="rows-next")
    _wire(view)
    return view


def _wire(view: SimpleNamespace) -> None:
    given = [view.shown, view.over, view.outcome, view.order, view.search, view.page]
    outputs = [view.list, view.over, view.outcome, view.page, view.previous, view.next]
    chosen = [view.over.input, view.outcome.input, view.order.input, view.search.submit, view.search.blur]
    gr.on([view.fold.expand, *chosen], _turn(to=1), given, outputs, trigger_mode="always_last", **LOOKS, **PRIVATE)
    view.previous.click(_turn(by=-1), given, outputs, **LOOKS, **PRIVATE)
    view.next.click(_turn(by=1), given, outputs, **LOOKS, **PRIVATE)
    view.shown.change(_forget, None, [view.fold, *outputs, view.search], queue=False, **PRIVATE)


def fold(run: Run | None) -> dict:
    """An update that shows the fold for a scored run, and otherwise closes it."""
    return gr.update(visible=True) if run and rows.has_rows(run) else gr.update(visible=False, open=False)


def _forget() -> list:
    """Nothing of the run that was shown before."""
    off = gr.update(interactive=False)
    return [gr.update(open=False), "", gr.update(choices=[], value=None), gr.update(value="all"), 1, off, off, ""]


def _turn(by: int = 0, to: int | None = None) -> Callable:
    """A handler that shows the page with this number, or so many further on."""

    def turn(run: str, over: str | None, outcome: str, order: str, search: str | None, page: float | None) -> list:
        return show(run, over or "", outcome, order, search or "", to or int(page or 1) + by)

    return turn


def show(run: str, over: str, outcome: str, order: str, search: str, page: int) -> list:
    """A page of rows, the choices that this run offers, and the buttons that lead to its other pages."""
    try:
        found = rows.look(actions.open_run(run), over, outcome, order, search, page)
    except Exception as error:
        off = gr.update(interactive=False)
        return [elements.problems(problems_of(error)), gr.skip(), gr.skip(), 1, off, off]
    return [
        page_of_rows(found),
        gr.update(choices=[(NAMES[rival], rival) for rival in found["rivals"]], value=found["over"] or None),
        gr.update(choices=[(f"{title} ({found['outcomes'][name]:,})", name) for name, title in OUTCOMES.items()]),
        found["page"],
        gr.update(interactive=found["page"] > 1),
        gr.update(interactive=found["page"] < found["pages"]),
    ]


def page_of_rows(found: rows.Page) -> str:
    """A page of rows as HTML; text from outside is escaped."""
    if not found["rows"]:
        return tag("p", "No rows match the search and the choice above.", "t-note")
    first = (found["page"] - 1) * rows.PER_PAGE + 1
    told = f"Rows {first:,} to {first + len(found['rows']) - 1:,} of {found['found']:,}."
    key = "<mark>Marked</mark> words of an answer are not in the reference, and those of the reference not in the "
    head = f'<p class="t-sub" aria-live="polite">{told}</p>' + tag("p", key + "adapter's answer.", "t-sub")
    return head + tag("div", "".join(_row(row, found) for row in found["rows"]), "t-examples")


def _row(row: dict, found: rows.Page) -> str:
    references = row.get("references") or [row["reference"]]
    parts = [("Reference", marked(text, row["adapter"]), "") for text in references]
    parts += [(NAMES[v], marked(row[v], _closest(references, row[v])), v) for v in (*found["rivals"], "adapter")]
    shown = "".join(
        f"<dt>{escape(title)}{_scores(row, variant)}</dt><dd class='{variant}' tabindex='0'>{text}</dd>"
        for title, text, variant in parts
    )
    gain = row["gain"]
    kind = "better" if gain > 0 else "worse" if gain < 0 else "equal"
    badge = tag("span", f"{kind} by {abs(gain):.2f}" if gain else kind, f"t-badge {kind}")
    head = tag("p", f"<small>Row {row['row']:,}</small> {badge}", "t-row-head")
    prompt = f"<p class='prompt' tabindex='0'>{escape(row['prompt']) or elements.short('')}</p>"
    return tag("div", f"{head}{prompt}<dl>{shown}</dl>", "t-example t-scored")


def _scores(row: dict, variant: str) -> str:
    told = [f"{m.title} {row[f'{variant}_{name}']:.2f}" for name, m in METRICS.items() if f"{variant}_{name}" in row]
    return f"<small>{escape(', '.join(told))}</small>" if told else ""


def marked(text: str, other: str) -> str:
    """The text as HTML, with the words marked that the other one lacks; of long texts, the beginnings are compared."""
    pieces = [found[0] for found in _pieces().finditer(text)]
    places = [place for place, piece in enumerate(pieces) if not piece.isspace()][:MOST_WORDS]
    shown = [escape(piece) for piece in pieces]
    compared = difflib.SequenceMatcher(None, [pieces[place] for place in places], _words(other), autojunk=False)
    for kind, start, end, _, _ in compared.get_opcodes():
        if kind in ("delete", "replace"):
            shown[places[start]] = f"<mark>{shown[places[start]]}"
            shown[places[end - 1]] += "</mark>"
    return "".join(shown) or elements.short("")


def _words(text: str) -> list[str]:
    found = (piece[0] for piece in _pieces().finditer(text))
    return list(islice((piece for piece in found if not piece.isspace()), MOST_WORDS))


def _closest(references: Sequence[str], answer: str) -> str:
    """The reference with the most of an answer's words."""
    given = set(_words(answer))
    return max(references, key=lambda text: (text == answer, len(given & set(_words(text)))))


@cache
def _pieces() -> "regex.Pattern":
    import regex  # late, as in rouge.py

    # Scripts that are written without spaces are compared character by character.
    unspaced = r"[\p{Ideographic}\p{Hiragana}\p{Katakana}\p{Line_Break=SA}]"
    return regex.compile(rf"\s+|(?={unspaced})\X|[[\p{{L}}\p{{M}}\p{{N}}]--{unspaced}]+|\X", regex.V1)
