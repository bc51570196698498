"""Download, in My runs: a button for each thing that can be taken home, and the link to its zip."""

from collections.abc import Iterator
from functools import partial
from html import escape
from types import SimpleNamespace

import gradio as gr

from tuner.hub.contents import CONTENTS
from tuner.ui import actions, elements
from tuner.ui.problems import problems_of
from tuner.ui.visitor import ANYBODY, Visitor, for_visitor
from tuner.ui.wiring import MODELS, PRIVATE, with_list
from tuner.words import file_size

HELP = "One zip each. Adapter and model come with card, recipe, tokenizer and a short script that loads them."
# The address is completed by the browser, which knows under which path this page is served. A click on the link starts
# the browser's own download, which shows progress and resumes.
START = """() => {
    const link = document.querySelector('#download a[data-path]');
    if (!link) return;
    link.href = new URL(link.dataset.path.slice(1), window.location.origin + window.location.pathname).href;
    link.click();
}"""


def build(tab: SimpleNamespace) -> None:
    """Add the fold to My runs; `tab` has its selected run and the browser's list."""
    with gr.Accordion("Download", open=False) as tab.download_fold:
        gr.HTML(f'<p class="t-sub">{HELP}</p>')
        with gr.Row(elem_classes="t-buttons"):
            buttons = {
                what: gr.Button(content.title, size="md", min_width=120, elem_id=f"download-{what}")
                for what, content in CONTENTS.items()
            }
        helps = "<br>".join(f"<b>{escape(c.title)}</b>: {escape(c.help)}" for c in CONTENTS.values())
        gr.HTML(f'<p class="t-sub">{helps}</p>')
        tab.download = gr.HTML(elem_id="download")
    for what, button in buttons.items():
        setattr(tab, f"download_{what}", button)
        given = [tab.selected, tab.browser]
        limits = MODELS if CONTENTS[what].needs_merge else {"concurrency_limit": 4}
        offering = partial(offer, what)
        offering.__name__ = offer.__name__
        offered = button.click(for_visitor(offering), given, tab.download, **limits, **PRIVATE)
        offered.success(None, None, None, js=START, api_visibility="private")


def offer(what: str, run: str, kept: dict | None, visitor: Visitor = ANYBODY) -> Iterator[str]:
    """The link to a zip of `what`, or the problems; a run that is not merged yet is merged first."""
    visitor = with_list(visitor, kept)
    try:
        if CONTENTS[what].needs_merge and not actions.is_merged(actions.open_run(run)):
            yield elements.note("Merging the adapter into the 16-bit base and checking the result …")
            actions.merge(run, visitor)
        yield elements.note(f"{'Converting' if what == 'gguf' else 'Preparing the zip'} …")
        yield link(actions.download(run, what, visitor))
    except Exception as error:
        yield elements.problems(problems_of(error), "Nothing was downloaded")


def link(offered: dict) -> str:
    """The link to what is offered."""
    path, name = escape(offered["address"], quote=True), escape(offered["name"])
    return elements.tag(
        "div",
        f'<a data-path="{path}" href="{path[1:]}" download>{name}</a> ({file_size(offered["bytes"])}). If it does not '
        "start by itself, press the link, which is good for an hour.",
        "t-note good",
    )
