"""Adapters of the Hub in the playground: the field in which one is named, and what happens then."""

from collections.abc import Callable, Iterator
from types import SimpleNamespace

import gradio as gr

from tuner import runs_cleanup
from tuner.errors import TunerError
from tuner.models.quantized import PRECISIONS
from tuner.runs import Run
from tuner.ui import actions, checking, elements, ownership, run_queue
from tuner.ui.problems import problems_of
from tuner.ui.visitor import ANYBODY, Visitor, for_visitor
from tuner.ui.wiring import PRIVATE, remembered, with_list, with_run


def adopt(name: str, quantization: str = "none", visitor: Visitor = ANYBODY) -> tuple[Run, str]:
    """A run that answers with the adapter owner/name[@revision], and its secret. Raises TunerError."""
    if quantization not in PRECISIONS:
        raise TunerError(f"quantization: choose one of {', '.join(PRECISIONS)}.")
    runs_cleanup.make_room(keep=run_queue.kept())
    run = checking.write_adopted(name or "", quantization, visitor)
    runs_cleanup.make_room_for(run, run_queue.kept() | {run.id})
    return run, ownership.claim(run, visitor)


def build(tab: SimpleNamespace) -> None:
    """Add the field and its button."""
    with gr.Row(elem_classes="t-line"):
        tab.adapter = gr.Textbox(
            label="An adapter on the Hub",
            info="answers beside its base model and beside your runs on that",
            placeholder="owner/name",
            max_lines=1,
            scale=3,
            min_width=280,
            elem_id="adapter",
        )
        tab.add = gr.Button("Add", size="sm", scale=1, min_width=140, elem_id="add-adapter")


def wire(tab: SimpleNamespace, update_runs: Callable[..., dict]) -> None:
    """Let the button add the adapter to the chosen runs; `update_runs` makes the update of their dropdown."""

    def add(name: str, chosen: list[str] | None, kept: dict | None, visitor: Visitor) -> Iterator[list]:
        yield from _add(name, chosen or [], kept, visitor, update_runs)

    given, shown = [tab.adapter, tab.run, tab.browser], [tab.browser, tab.run, tab.adapter, tab.problem]
    gr.on(
        [tab.add.click, tab.adapter.submit],
        for_visitor(add),
        given,
        shown,
        concurrency_limit=4,
        **PRIVATE,
    )


def _add(
    name: str, chosen: list[str], kept: dict | None, visitor: Visitor, update_runs: Callable[..., dict]
) -> Iterator[list]:
    """The browser's list, the chosen runs, the emptied field and the problem, if there is one."""
    yield [gr.skip(), gr.skip(), gr.skip(), elements.note("Fetching the adapter and its base model …")]
    try:
        precision = actions.open_run(chosen[0]).recipe.model.quantization if chosen else "none"
        run, secret = adopt(name, precision, visitor)
    except Exception as error:
        yield [gr.skip(), gr.skip(), gr.skip(), elements.problems(problems_of(error))]
        return
    listed = {**with_run(kept, run.id, secret), "shown": remembered(kept)["shown"]}
    beside = [*chosen, run.id]
    try:
        actions.lineup(beside, with_list(visitor, listed))
    except TunerError:  # too many, or on other bases
        beside = [run.id]
    yield [listed, update_runs(listed, beside), "", ""]
