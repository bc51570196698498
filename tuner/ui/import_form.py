"""Import, in My runs: one button that takes the zip of a whole run, and lists it as this browser's own."""

from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace

import gradio as gr

from tuner.ui import elements, take_home
from tuner.ui.problems import problems_of
from tuner.ui.visitor import ANYBODY, Visitor, for_visitor
from tuner.ui.wiring import CHECKS, with_list, with_run

Refresh = Callable[[dict, str, Visitor], list]


def build(tab: SimpleNamespace) -> None:
    """Add the button to My runs."""
    tab.import_run = gr.UploadButton(
        "Import a run (zip)", size="sm", file_types=[".zip"], min_width=150, scale=0, elem_id="import-run"
    )


def wire(tab: SimpleNamespace, refresh: Refresh) -> None:
    """What the button does; `refresh` gives the values of the tab's outputs, for a list, a run and a visitor."""
    bring = partial(_import, refresh, len(tab.outputs))
    bring.__name__ = _import.__name__
    given, shown = [tab.import_run, tab.browser], [tab.browser, tab.imported, *tab.outputs]
    tab.import_run.upload(for_visitor(bring), given, shown, **CHECKS, api_visibility="private")


def _import(
    refresh: Refresh, outputs: int, file: str, kept: dict | None, visitor: Visitor = ANYBODY
) -> Iterator[list]:
    """The browser's list with the run, or the problems."""
    same = [gr.skip()] * outputs
    yield [gr.skip(), elements.note("Reading the run …"), *same]
    try:
        run, secret = take_home.import_run(file, visitor)
    except Exception as error:
        yield [gr.skip(), elements.problems(problems_of(error), "Nothing was imported"), *same]
        return
    kept = with_run(kept, run.id, secret)
    yield [kept, "", *refresh(kept, run.id, with_list(visitor, kept))]
