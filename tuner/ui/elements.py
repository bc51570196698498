"""Pieces of HTML that every part of the page uses. Text from outside is escaped."""

from html import escape


def tag(name: str, content: str, kind: str = "") -> str:
    """An HTML element of class `kind`; `content` is HTML already."""
    return f'<{name} class="{kind}">{content}</{name}>' if kind else f"<{name}>{content}</{name}>"


def problems(sentences: list[str], title: str = "") -> str:
    """A box with one sentence on each line; empty if there are none."""
    if not sentences:
        return ""
    title = title or ("This can't work yet" if len(sentences) == 1 else f"{len(sentences)} problems to fix")
    items = "".join(tag("li", escape(s)) for s in sentences)
    return f'<div class="t-problems" role="alert"><strong>{escape(title)}</strong><ul>{items}</ul></div>'


def note(text: str) -> str:
    """A quiet box with a sentence; empty if there is none."""
    return tag("div", escape(text), "t-note") if text else ""


def busy(text: str) -> str:
    """A card for what is being done and can't be measured."""
    return tag("div", tag("h3", escape(text)) + tag("div", "<i></i>", "t-progress endless"), "t-card")


def folded(title: str, content: str) -> str:
    """HTML behind a title that opens it."""
    return tag("details", tag("summary", title) + content)
