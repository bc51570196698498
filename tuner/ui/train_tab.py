"""Train: the form, and next to it one card with the plan, then the progress, then the result."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from types import SimpleNamespace

import gradio as gr

from tuner import gpu
from tuner.errors import TunerError
from tuner.hub.card_data import without_paths
from tuner.methods.registry import METHODS
from tuner.ui import (
    actions,
    chooser,
    elements,
    form,
    looks,
    newest,
    ownership,
    plan_card,
    progress,
    render,
    result,
    rows_view,
    run_queue,
)
from tuner.ui.mapping import CLICKED, mapped, remedied, remedy
from tuner.ui.problems import problems_of
from tuner.ui.visitor import ANYBODY, Visitor, for_visitor
from tuner.ui.wiring import CHECKS, PRIVATE, remembered, resumed, with_list, with_run

TO_URL = """(id) => {
    const url = new URL(window.location);
    id ? url.searchParams.set('run', id) : url.searchParams.delete('run');
    window.history.replaceState(window.history.state, '', url);
}"""


def build(browser: gr.BrowserState) -> SimpleNamespace:
    """The tab's inputs and outputs; `browser` remembers the visitor's runs and the one shown."""
    tab = SimpleNamespace(browser=browser, shown=gr.Textbox(visible=False), timer=gr.Timer(1, active=False))
    tab.seen = gr.Textbox(visible=False)  # the mark of the panel that the last tick sent
    with gr.Row(elem_classes="t-train"):
        with gr.Column(scale=6, min_width=320, elem_classes="t-choices"):
            tab.form = form.build(actions.starting_recipe().model_copy(update={"name": None}))
        with gr.Column(scale=5, min_width=320, elem_classes="t-side"):
            _side(tab)
    tab.rows = rows_view.build(tab.shown)
    # The outputs of `panel`, in its order.
    tab.panel = [tab.card, tab.timer, tab.train, tab.stop, tab.resume, tab.chat, tab.push, tab.again, tab.rows.fold]
    _wire_form(tab)
    _wire_methods(tab)
    _wire_run(tab)
    return tab


def _side(tab: SimpleNamespace) -> None:
    tab.card = gr.HTML(elements.busy("Checking the example"), js_on_load=CLICKED + result.COPY, elem_id="card")
    with gr.Row(elem_classes="t-buttons"):
        tab.train = gr.Button("Train", variant="primary", size="lg", elem_id="train")
        tab.stop = gr.Button("Stop", size="md", variant="stop", visible=False, elem_id="stop")
        tab.resume = gr.Button("Resume", size="md", variant="primary", visible=False, elem_id="resume")
        tab.chat = gr.Button(
            "Chat with it", size="md", variant="primary", min_width=120, visible=False, elem_id="chat"
        )
        tab.push = gr.Button("Push to the Hub", size="md", min_width=120, visible=False, elem_id="push-it")
        tab.again = gr.Button("Change settings", size="md", min_width=120, visible=False, elem_id="again")
    tab.fetch = gr.Button("Download and check", visible=False, size="sm", elem_id="fetch")
    with gr.Accordion("Recipe (YAML)", open=False):
        tab.yaml = gr.Code(
            language="yaml", label="recipe.yaml", interactive=True, lines=8, max_lines=24, elem_id="yaml"
        )
        tab.yaml_problem = gr.HTML()
        tab.apply = gr.Button("Apply to the form", size="sm", elem_id="apply")
        gr.Code(
            "python -m tuner train recipe.yaml --out RUN",
            language="shell",
            label="Train it in a terminal",
            interactive=False,
            lines=1,
            show_line_numbers=False,
        )


def _wire_form(tab: SimpleNamespace) -> None:
    f, everything, checked = tab.form, {*tab.form.inputs, tab.shown}, [tab.card, tab.yaml, tab.fetch]
    check, fetch = checkers(tab)
    f.where.change(
        form.show_source, f.where, [f.example, f.file, f.pasted, f.hub_row, f.parts_row], queue=False, **PRIVATE
    )
    f.where.input(form.suit_budget, f.where, [f.kind, f.amount], queue=False, **PRIVATE)
    f.kind.input(_relabel, f.kind, f.amount, queue=False, **PRIVATE)
    shown = [c for c in f.inputs if not isinstance(c, gr.State)]
    changes = [c.blur if isinstance(c, gr.Textbox) else c.change for c in shown]
    tab.checking = gr.on(changes, check, everything, checked, trigger_mode="always_last", **CHECKS, **PRIVATE)
    tab.fetch.click(fetch, everything, checked, **CHECKS, **PRIVATE)
    rows_change = [f.settings["data.format"].change, f.where.change, f.file.change, f.example.change, f.pasted.blur]

    def columns(data: dict, visitor: Visitor) -> list:
        return form.show_columns(f, data, visitor)

    gr.on(rows_change, for_visitor(columns), everything, mapped(f), **CHECKS, **PRIVATE)
    tab.card.click(remedy, f.settings["data.format"], remedied(f), queue=False, **PRIVATE)

    def preview(data: dict, visitor: Visitor) -> str | dict:
        return _preview(tab, data, visitor)

    opened = f.preview_fold.expand(lambda: True, None, f.is_previewed, queue=False, **PRIVATE)
    f.preview_fold.collapse(lambda: False, None, f.is_previewed, queue=False, **PRIVATE)
    for event in (opened, tab.checking):
        event.then(for_visitor(preview), {*everything, f.is_previewed}, f.preview, **CHECKS, **PRIVATE)
    outputs = [*form.fill_outputs(f), tab.yaml_problem]

    def apply(text: str, visitor: Visitor) -> list:
        return _apply(tab, text, visitor)

    applied = tab.apply.click(for_visitor(apply), tab.yaml, outputs, **CHECKS, **PRIVATE)
    applied.then(check, everything, checked, **CHECKS, **PRIVATE)
    tab.check_again = lambda event: event.then(check, everything, checked, **CHECKS, **PRIVATE)


def _wire_methods(tab: SimpleNamespace) -> None:
    f, everything = tab.form, {*tab.form.inputs, tab.form.is_surveyed}
    name = f.settings["method.name"]

    def choose(method: str | None) -> list:
        return form.show_method(f, method or name.value)

    name.change(choose, name, form.method_outputs(f), queue=False, **PRIVATE)
    f.methods.click(_choose, None, name, queue=False, **PRIVATE)
    opened = f.methods_fold.expand(lambda: True, None, f.is_surveyed, queue=False, **PRIVATE)
    f.methods_fold.collapse(lambda: False, None, f.is_surveyed, queue=False, **PRIVATE)

    def fill(data: dict, visitor: Visitor) -> Iterator:
        yield from _survey(tab, data, visitor)

    for event in (opened, tab.checking):
        event.then(for_visitor(fill), everything, f.methods, **CHECKS, **PRIVATE)
    suited = [f.example, f.settings["model.name"], f.settings["model.quantization"]]
    f.example.input(form.show_example, f.example, suited, queue=False, **PRIVATE)


def checkers(tab: SimpleNamespace) -> tuple[Callable, Callable]:
    """Handlers that check the form, without and with downloading what is missing."""

    def handler(fetch: bool) -> Callable:
        def check(data: dict, visitor: Visitor) -> Iterator[list]:
            yield from newest.values(visitor.session, _check(tab, data, fetch, visitor))

        return for_visitor(check)

    return handler(False), handler(True)


def _wire_run(tab: SimpleNamespace) -> None:
    everything = {*tab.form.inputs, tab.shown, tab.browser}
    outputs = [tab.shown, tab.browser, *tab.panel]

    def prepare(data: dict, visitor: Visitor) -> list:
        return _prepare(tab, data, visitor)

    begun = tab.train.click(_begin, None, [tab.card, tab.train], queue=False, **PRIVATE)
    begun.then(for_visitor(prepare), everything, outputs, **CHECKS, **PRIVATE)
    run = [tab.shown, tab.browser]
    tab.resume.click(for_visitor(resume), run, [tab.browser, *tab.panel], **PRIVATE)
    tab.stop.click(for_visitor(_stop), run, tab.panel, queue=False, **PRIVATE)
    tab.timer.tick(for_visitor(_tick), [*run, tab.seen], [*tab.panel, tab.seen], queue=False, **PRIVATE)
    tab.shown.change(None, tab.shown, None, js=TO_URL, api_visibility="private")
    left = tab.again.click(_leave, tab.browser, outputs, queue=False, **PRIVATE)
    tab.check_again(left)


def _begin() -> list:
    return [elements.busy("Preparing the run"), gr.update(interactive=False)]


def _relabel(kind: str) -> dict:
    return gr.update(**form.amount_looks(kind))


def _check(tab: SimpleNamespace, data: dict, fetch: bool, visitor: Visitor = ANYBODY) -> Iterator[list]:
    """The plan's card, the recipe's YAML, and whether something must be downloaded first."""
    shown, hidden = data[tab.shown], gr.update(visible=False)  # while a run is shown, the card is the run's
    try:
        requested, rows = form.read(tab.form, data, visitor)
    except TunerError as error:
        yield [gr.skip() if shown else elements.problems(list(error.problems)), gr.skip(), hidden]
        return
    name, yaml = plan_card.title(requested), requested.to_yaml()
    if shown:
        yield [gr.skip(), yaml, hidden]
        return
    if not fetch and rows is None and not actions.is_local(requested):
        message = "The base model or the rows are not on this machine yet. Train downloads them from the Hub first."
        yield [elements.note(message), yaml, gr.update(visible=True)]
        return
    if plan := actions.known_plan(requested):  # shown while the estimate's imports are still running
        yield [plan_card.plan_card({**plan, "forecast": None}, name), yaml, hidden]
    try:
        card = plan_card.plan_card(actions.check(requested, rows, visitor), name, gpu.quota(visitor.token))
    except Exception as error:
        card = elements.problems(problems_of(error))
    yield [card, yaml, hidden]


def _preview(tab: SimpleNamespace, data: dict, visitor: Visitor = ANYBODY) -> str | dict:
    if not data[tab.form.is_previewed]:
        return gr.skip()
    try:
        requested, rows = form.read(tab.form, data, visitor)
        if rows is None and not actions.is_local(requested):
            return elements.note("The preview appears once base model and rows are downloaded.")
        return render.preview(actions.preview(requested, rows, visitor))
    except Exception as error:
        return elements.problems(problems_of(error))


def _choose(event: gr.EventData) -> str | dict:
    """The method that was clicked."""
    chosen = getattr(event, "method", None)
    return chosen if isinstance(chosen, str) and chosen in METHODS else gr.skip()


def _survey(tab: SimpleNamespace, data: dict, visitor: Visitor = ANYBODY) -> Iterator:
    """The method chooser as its figures arrive; they are computed only while it is open."""
    chosen = data[tab.form.settings["method.name"]]
    if not data[tab.form.is_surveyed]:
        yield gr.skip()
        return
    try:
        requested, rows = form.read(tab.form, data, visitor)
        if rows is None and not actions.is_local(requested):
            yield chooser.html({}, chosen)
            return
        yield from chooser.growing(actions.survey(requested, rows, visitor), chosen)
    except Exception as error:
        yield elements.problems(problems_of(error)) + chooser.html({}, chosen)


def _apply(tab: SimpleNamespace, text: str, visitor: Visitor = ANYBODY) -> list:
    try:
        return [*form.fill(tab.form, actions.read_recipe(text or "", visitor)), ""]
    except TunerError as error:
        return [*[gr.skip()] * len(form.fill_outputs(tab.form)), elements.problems(list(error.problems))]


def _prepare(tab: SimpleNamespace, data: dict, visitor: Visitor = ANYBODY) -> list:
    """A new run of the visitor's, or the problems in place of the plan."""
    try:
        with run_queue.bounds.admit(visitor):
            requested, rows = form.read(tab.form, data, visitor)
            run, secret = actions.prepare(requested, rows, visitor)
    except Exception as error:
        return [gr.skip(), gr.skip(), elements.problems(problems_of(error)), *panel("")[1:]]
    kept = with_run(data[tab.browser], run.id, secret)
    return [run.id, kept, *panel(run.id, with_list(visitor, kept))]


def resume(run: str, kept: dict | None, visitor: Visitor = ANYBODY) -> list:
    """Queue the run again; returns what the browser remembers, and the run's panel."""
    holding = with_list(visitor, kept)
    try:
        actions.resume(run, holding)
    except Exception as error:
        return [remembered(kept), elements.problems(problems_of(error)), *panel(run, holding)[1:]]
    kept = resumed(kept, run)
    return [kept, *panel(run, with_list(visitor, kept))]


def _tick(run: str, kept: dict | None, seen: str = "", visitor: Visitor = ANYBODY) -> list:
    """The panel and its mark for somebody who watches; nothing if this page has been sent that already."""
    visitor, look = with_list(visitor, kept), looks.at(run, looks.MOMENT) if run else None
    if look and _needs_its_owner(run, look):
        with suppress(TunerError):  # shown in the card
            actions.watch(run, visitor)
        look = looks.at(run)
    values, seconds = panel(run, visitor, look), looks.seconds_between(visitor.session)
    values[1] = gr.Timer(seconds, active=bool(look and look.is_live))
    mark = "-".join([look.mark if look else "", str(seconds), *(f"{button['visible']:d}" for button in values[2:])])
    return [gr.skip()] * (len(values) + 1) if mark == seen else [*values, mark]


def _needs_its_owner(run: str, look: looks.Look) -> bool:
    """Whether nothing happens to the run until its owner's page looks."""
    return look.phase in progress.WATCHED and not run_queue.queue.holds(run)


def _stop(run: str, kept: dict | None, visitor: Visitor = ANYBODY) -> list:
    visitor = with_list(visitor, kept)
    with suppress(TunerError):  # it has ended meanwhile, as the card shows
        actions.stop(run, visitor)
    return panel(run, visitor)


def _leave(kept: dict | None) -> list:
    return ["", {**remembered(kept), "shown": ""}, *panel("")]


def panel(run: str, visitor: Visitor = ANYBODY, look: looks.Look | None = None) -> list:
    """A run's card, timer and the buttons that the visitor may use; without a run, those of the plan."""
    if not run:
        hidden = gr.update(visible=False)
        ready = gr.update(visible=True, interactive=True)
        return [gr.skip(), gr.Timer(active=False), ready, *[hidden] * 5, rows_view.fold(None)]
    look = look or looks.at(run)
    phase, has_adapter, live = look.phase, look.has_adapter, look.is_live
    is_own, is_shared, note, opened = False, False, "", None
    with suppress(TunerError):  # it is gone
        opened = actions.open_run(run)
        is_own, is_shared = ownership.is_owner(opened, visitor), ownership.is_shared(opened, visitor)
        note = "" if is_shared else ownership.hindrance(opened, visitor)
    is_asked = is_own and run in visitor.by_link and _needs_its_owner(run, look)
    return [
        elements.note(ownership.BY_LINK if is_asked else note) + look.card,
        gr.Timer(active=live),
        gr.update(visible=False),
        gr.update(visible=is_own and phase in ("waiting", "training", "scoring", "continuing")),
        gr.update(
            visible=is_asked or (is_own and phase in progress.RESUMABLE and not live),
            value=progress.resume_label(phase),
        ),
        gr.update(visible=has_adapter and not live),
        gr.update(visible=is_shared and has_adapter and not live),
        gr.update(visible=not live),
        rows_view.fold(opened if phase in progress.SCORED else None),
    ]


def show(tab: SimpleNamespace, run: str, kept: dict | None, visitor: Visitor = ANYBODY) -> list:
    """Values of shown, browser, panel and form for a visitor who returns or opens a run."""
    kept, visitor = remembered(kept), with_list(visitor, kept)
    try:
        opened = actions.open_run(run) if run else None
    except TunerError:
        opened = None
    if not opened:
        return ["", {**kept, "shown": ""}, *panel(""), *[gr.skip()] * len(form.fill_outputs(tab.form))]
    values = [gr.skip()] * len(form.fill_outputs(tab.form))
    with suppress(TunerError):  # a recipe of another version; the card still shows what happened
        values = form.fill(tab.form, without_paths(opened))
    return [run, {**kept, "shown": run}, *panel(run, visitor), *values]


def show_outputs(tab: SimpleNamespace) -> list:
    """The outputs of `show`."""
    return [tab.shown, tab.browser, *tab.panel, *form.fill_outputs(tab.form)]
