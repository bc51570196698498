"""Train: the form, and beside it one card that says what will happen, how the run goes, and what came of it."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import SimpleNamespace

import gradio as gr

from tuner import gpu
from tuner.errors import TunerError
from tuner.methods.files import CONFIG
from tuner.planning.method_costs import method_costs
from tuner.recipe import Recipe
from tuner.ui import actions, chooser, form, progress, render, run_queue
from tuner.ui.problems import problems_of
from tuner.ui.wiring import CHECKS, NOBODY, PRIVATE

MOST_VISITORS = 1000  # whose newest look at the form is known
_looking: OrderedDict[str, object] = OrderedDict()  # visitor -> the newest look
TO_URL = """(id) => {
    const url = new URL(window.location);
    id ? url.searchParams.set('run', id) : url.searchParams.delete('run');
    window.history.replaceState(window.history.state, '', url);
}"""


def build(browser: gr.BrowserState, *, has_oauth: bool) -> SimpleNamespace:
    """The tab's inputs and outputs; `browser` keeps the visitor's runs and the one that is shown."""
    tab = SimpleNamespace(
        has_oauth=has_oauth, browser=browser, shown=gr.Textbox(visible=False), timer=gr.Timer(1, active=False)
    )
    with gr.Row(elem_classes="t-train"):
        with gr.Column(scale=6, min_width=320, elem_classes="t-choices"):
            tab.form = form.build(actions.starting_recipe().model_copy(update={"name": None}))
        with gr.Column(scale=5, min_width=320, elem_classes="t-side"):
            _side(tab)
    # In the order in which `panel` returns their values.
    tab.panel = [tab.card, tab.timer, tab.train, tab.stop, tab.resume, tab.chat, tab.push, tab.again]
    _wire_form(tab)
    _wire_methods(tab)
    _wire_run(tab)
    return tab


def _side(tab) -> None:
    tab.card = gr.HTML(render.busy("Looking at the example"), elem_id="card")
    with gr.Row(elem_classes="t-buttons"):
        tab.train = gr.Button("Train", variant="primary", size="lg", elem_id="train")
        tab.stop = gr.Button("Stop", size="md", variant="stop", visible=False, elem_id="stop")
        tab.resume = gr.Button("Go on", size="md", variant="primary", visible=False, elem_id="resume")
        tab.chat = gr.Button(
            "Chat with it", size="md", variant="primary", min_width=120, visible=False, elem_id="chat"
        )
        tab.push = gr.Button("Push to the Hub", size="md", min_width=120, visible=False, elem_id="push-it")
        tab.again = gr.Button("Other settings", size="md", min_width=120, visible=False, elem_id="again")
    tab.fetch = gr.Button("Fetch it and check", visible=False, size="sm", elem_id="fetch")
    with gr.Accordion("The same as a recipe", open=False):
        tab.yaml = gr.Code(
            language="yaml", label="recipe.yaml", interactive=True, lines=8, max_lines=24, elem_id="yaml"
        )
        tab.taken = gr.HTML()
        tab.take = gr.Button("Take these settings", size="sm", elem_id="take")
        gr.Code(
            "python -m tuner train recipe.yaml --out RUN",
            language="shell",
            label="In a terminal",
            interactive=False,
            lines=1,
            show_line_numbers=False,
        )


def _wire_form(tab) -> None:
    f, everything, looked = tab.form, {*tab.form.inputs, tab.shown}, [tab.card, tab.yaml, tab.fetch]

    look, fetch = lookers(tab)
    f.where.change(form.show_source, f.where, [f.example, f.file, f.pasted, f.hub_row], queue=False, **PRIVATE)
    f.kind.input(_relabel, f.kind, f.amount, queue=False, **PRIVATE)
    changes = [c.blur if isinstance(c, gr.Textbox) else c.change for c in f.inputs]
    tab.looking = gr.on(changes, look, everything, looked, trigger_mode="always_last", **CHECKS, **PRIVATE)
    tab.fetch.click(fetch, everything, looked, **CHECKS, **PRIVATE)
    rows_change = [f.settings["data.format"].change, f.where.change, f.file.change, f.example.change, f.pasted.blur]
    gr.on(rows_change, lambda data: form.role_inputs(f, data), everything, f.roles, concurrency_limit=4, **PRIVATE)
    opened = f.preview_fold.expand(lambda: True, None, f.is_previewed, queue=False, **PRIVATE)
    f.preview_fold.collapse(lambda: False, None, f.is_previewed, queue=False, **PRIVATE)
    for event in (opened, tab.looking):
        event.then(lambda data: _preview(tab, data), {*everything, f.is_previewed}, f.preview, **CHECKS, **PRIVATE)
    taken = tab.take.click(lambda text: _take(tab, text), tab.yaml, [*form.filled(f), tab.taken], **PRIVATE)
    taken.then(look, everything, looked, **CHECKS, **PRIVATE)
    tab.look_again = lambda event: event.then(look, everything, looked, **CHECKS, **PRIVATE)


def _wire_methods(tab) -> None:
    f, everything = tab.form, {*tab.form.inputs, tab.form.is_surveyed}
    name = f.settings["method.name"]
    name.change(lambda method: form.method_inputs(f, method), name, form.method_outputs(f), queue=False, **PRIVATE)
    f.methods.click(_choose, None, name, queue=False, **PRIVATE)
    opened = f.methods_fold.expand(lambda: True, None, f.is_surveyed, queue=False, **PRIVATE)
    f.methods_fold.collapse(lambda: False, None, f.is_surveyed, queue=False, **PRIVATE)

    def fill(data: dict) -> Iterator:
        yield from _survey(tab, data)

    for event in (opened, tab.looking):
        event.then(fill, everything, f.methods, **CHECKS, **PRIVATE)
    made_for = [f.example, f.settings["model.name"], f.settings["model.quantization"]]
    f.example.input(form.example_inputs, f.example, made_for, queue=False, **PRIVATE)


def lookers(tab) -> tuple[Callable, Callable]:
    """Handlers that look at the form, without and with fetching what is missing."""

    def handler(fetch: bool) -> Callable:
        def look(data: dict, request: gr.Request) -> Iterator[list]:
            yield from _newest(request.session_hash, _look(tab, data, fetch))

        def look_signed_in(data: dict, request: gr.Request, signed_in: gr.OAuthToken | None) -> Iterator[list]:
            yield from _newest(request.session_hash, _look(tab, data, fetch, signed_in and signed_in.token))

        return look_signed_in if tab.has_oauth else look

    return handler(False), handler(True)


def _newest(visitor: str, looks: Iterator[list]) -> Iterator[list]:
    """The looks, until a newer one of the visitor's began: a slow look must not overwrite it."""
    mine = _looking[visitor] = object()
    _looking.move_to_end(visitor)
    while len(_looking) > MOST_VISITORS:
        _looking.popitem(last=False)
    for values in looks:
        if _looking.get(visitor, mine) is not mine:
            yield [gr.skip()] * len(values)
            return
        yield values


def _wire_run(tab) -> None:
    everything = {*tab.form.inputs, tab.shown, tab.browser}
    attached = [tab.shown, tab.browser, *tab.panel]

    def prepare(data: dict, request: gr.Request) -> list:
        return _prepare(tab, data, request.session_hash)

    def prepare_signed_in(data: dict, request: gr.Request, signed_in: gr.OAuthToken | None) -> list:
        return _prepare(tab, data, request.session_hash, signed_in is not None)

    begun = tab.train.click(_begin, None, [tab.card, tab.train], queue=False, **PRIVATE)
    prepared = prepare_signed_in if tab.has_oauth else prepare
    begun.then(prepared, everything, attached, concurrency_limit=4, **PRIVATE)
    tab.resume.click(resume, tab.shown, tab.panel, **PRIVATE)
    tab.stop.click(_stop, tab.shown, tab.panel, queue=False, **PRIVATE)
    tab.timer.tick(_tick, tab.shown, tab.panel, queue=False, **PRIVATE)
    tab.shown.change(None, tab.shown, None, js=TO_URL, api_visibility="private")
    left = tab.again.click(_leave, tab.browser, attached, queue=False, **PRIVATE)
    tab.look_again(left)


def _begin() -> list:
    return [render.busy("Preparing the run"), gr.update(interactive=False)]


def _relabel(kind: str):
    return gr.update(label=kind.capitalize(), info=form.meaning(kind))


def _look(tab, data: dict, fetch: bool, token: str | None = None) -> Iterator[list]:
    """The card that says what will happen, the recipe's YAML, and whether something has to be fetched first."""
    shown, hidden = data[tab.shown], gr.update(visible=False)  # a run that is shown keeps the card
    try:
        asked, table = form.asked(tab.form, data)
    except TunerError as error:
        yield [gr.skip() if shown else render.problems(list(error.problems)), gr.skip(), hidden]
        return
    name, yaml = render.recipe_name(asked), asked.to_yaml()
    if shown:
        yield [gr.skip(), yaml, hidden]
        return
    if not fetch and table is None and not actions.is_at_hand(asked):
        what = "The base model or the rows are not on this machine yet: Train fetches them from the Hub."
        yield [render.note(what), yaml, gr.update(visible=True)]
        return
    if known := actions.known_plan(asked):  # at once, while what the estimate needs is being imported
        yield [render.plan({**known, "forecast": None}, name), yaml, hidden]
    try:
        card = render.plan(actions.check(asked, table).plan, name, gpu.quota(token))
    except Exception as error:
        card = render.problems(problems_of(error))
    yield [card, yaml, hidden]


def _preview(tab, data: dict):
    if not data[tab.form.is_previewed]:
        return gr.skip()
    try:
        asked, table = form.asked(tab.form, data)
        if table is None and not actions.is_at_hand(asked):
            return render.note("It can be shown when base model and rows are fetched.")
        return render.preview(actions.preview(asked, table))
    except Exception as error:
        return render.problems(problems_of(error))


def _choose(event: gr.EventData) -> str:
    """The method that was clicked on."""
    return event.method


def _survey(tab, data: dict) -> Iterator:
    """The method chooser as it is filled in; methods are only counted while it is open."""
    chosen = data[tab.form.settings["method.name"]]
    if not data[tab.form.is_surveyed]:
        yield gr.skip()
        return
    try:
        asked, table = form.asked(tab.form, data)
        if table is None and not actions.is_at_hand(asked):
            yield chooser.html({}, chosen)
            return
        gpu.import_core()
        yield from chooser.growing(method_costs(asked, table, local=False), chosen)
    except Exception as error:
        yield render.problems(problems_of(error)) + chooser.html({}, chosen)


def _take(tab, text: str) -> list:
    try:
        return [*form.fill(tab.form, Recipe.from_yaml(text)), ""]
    except TunerError as error:
        return [*[gr.skip()] * len(form.filled(tab.form)), render.problems(list(error.problems))]


def _prepare(tab, data: dict, visitor: str, signed_in: bool = False) -> list:
    """A run of the visitor's, or the problems in place of the plan."""
    browser = data[tab.browser] or NOBODY
    try:
        asked, table = form.asked(tab.form, data)
        run = actions.prepare(asked, visitor, table, signed_in=signed_in)
    except Exception as error:
        return [gr.skip(), gr.skip(), render.problems(problems_of(error)), *panel("")[1:]]
    return [run.id, {"runs": [run.id, *browser["runs"]], "shown": run.id}, *panel(run.id)]


def resume(run: str, request: gr.Request) -> list:
    """Let the run wait for its turn again; values of its panel."""
    try:
        actions.resume(run, request.session_hash)
    except Exception as error:
        return [render.problems(problems_of(error)), *panel(run)[1:]]
    return panel(run)


def _tick(run: str, request: gr.Request) -> list:
    if run:
        with suppress(TunerError):  # the card says so
            actions.watch(run, request.session_hash)
    return panel(run)


def _stop(run: str) -> list:
    with suppress(TunerError):  # it ended meanwhile, and the card says so
        actions.stop(run)
    return panel(run)


def _leave(browser: dict | None) -> list:
    return ["", {**(browser or NOBODY), "shown": ""}, *panel("")]


def panel(run: str) -> list:
    """The card of a run with its timer and buttons; without a run, those of the plan."""
    if not run:
        hidden = gr.update(visible=False)
        ready = gr.update(visible=True, interactive=True)
        return [gr.skip(), gr.Timer(active=False), ready, hidden, hidden, hidden, hidden, hidden]
    try:
        opened = actions.open_run(run)
        now = run_queue.look(opened)
        card, phase = render.view(opened, now), now.phase
        has_adapter = (opened.adapter / CONFIG).is_file()
    except Exception as error:
        card, phase, has_adapter = render.problems(problems_of(error)), "gone", False
    # Between a worker's death and the note of it the folder alone would say that all is over.
    live = phase in progress.LIVE or run_queue.queue.holds(run)
    return [
        card,
        gr.Timer(active=live),
        gr.update(visible=False),
        gr.update(visible=phase in ("waiting", "training", "scoring", "continuing")),
        gr.update(visible=phase in progress.CAN_GO_ON and not live),
        gr.update(visible=has_adapter and not live),
        gr.update(visible=has_adapter and not live),
        gr.update(visible=not live),
    ]


def attach(tab, run: str, browser: dict | None) -> list:
    """Values of shown, browser, panel and form for a visitor who comes back, or opens a run."""
    browser = {**NOBODY, **(browser or {})}
    try:
        opened = actions.open_run(run) if run else None
    except TunerError:
        opened = None
    if not opened:
        return ["", {**browser, "shown": ""}, *panel(""), *[gr.skip()] * len(form.filled(tab.form))]
    values = [gr.skip()] * len(form.filled(tab.form))
    with suppress(TunerError):  # a recipe of an older version: the card still tells what it was
        values = form.fill(tab.form, opened.recipe)
    return [run, {**browser, "shown": run}, *panel(run), *values]


def attached(tab) -> list:
    """The outputs that `attach` has values for."""
    return [tab.shown, tab.browser, *tab.panel, *form.filled(tab.form)]
