"""Pieces of HTML that every part of the page uses. Text from outside is escaped."""

import json
from html import escape

SHOWN_CHARACTERS = 600  # of a prompt or an answer
# The settings that a problem's remedy may change, and what its button says; `{}` is the value.
REMEDIES = {
    "data.encoding": "Read it as {}",
    "data.columns": "Use this mapping",
    "data.empty": "Leave out rows with an empty cell",
}


def tag(name: str, content: str, kind: str = "") -> str:
    """An HTML element of class `kind`; `content` is HTML already."""
    return f'<{name} class="{kind}">{content}</{name}>' if kind else f"<{name}>{content}</{name}>"


def problems(sentences: list[str], title: str = "") -> str:
    """A box with one sentence on each line; empty if there are none."""
    if not sentences:
        return ""
    title = title or ("This can't work yet" if len(sentences) == 1 else f"{len(sentences)} problems to fix")
    items = "".join(tag("li", escape(s) + _remedy(getattr(s, "remedy", {}))) for s in sentences)
    return f'<div class="t-problems" role="alert"><strong>{escape(title)}</strong><ul>{items}</ul></div>'


def _remedy(settings: dict) -> str:
    """A button that fills in the settings which solve a problem; empty if there are none."""
    labels = [REMEDIES[path].format(value) for path, value in settings.items() if path in REMEDIES]
    if not labels:
        return ""
    given = escape(json.dumps(settings))
    return f' <button class="t-remedy" data-remedy="{given}">{escape(", ".join(labels))}</button>'


def short(text: str) -> str:
    """A text from outside, cut off where it is long."""
    shown = text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + " …"
    return escape(shown) or "<em>(nothing)</em>"


def note(text: str) -> str:
    """A quiet box with a sentence; empty if there is none."""
    return tag("div", escape(text), "t-note") if text else ""


def busy(text: str) -> str:
    """A card for what is being done and can't be measured."""
    return tag("div", tag("h3", escape(text)) + tag("div", "<i></i>", "t-progress endless"), "t-card")


def folded(title: str, content: str) -> str:
    """HTML behind a title that opens it."""
    return tag("details", tag("summary", title) + content)
