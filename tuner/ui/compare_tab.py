"""Compare: train several methods, the trials of a search or several seeds; or hold finished runs beside each other."""

from collections.abc import Callable
from contextlib import suppress
from types import SimpleNamespace

import gradio as gr

from tuner.errors import TunerError
from tuner.recipe import Recipe
from tuner.ui import actions, chooser, compare_view, earlier, elements, experiments, form, plan_card
from tuner.ui.checking import Entered
from tuner.ui.experiments import Choice
from tuner.ui.problems import problems_of
from tuner.ui.visitor import ANYBODY, Visitor, for_visitor
from tuner.ui.wiring import CHECKS, LOOKS, PRIVATE, remembered, with_list, with_run

KINDS = [(title, kind) for kind, title in earlier.KINDS.items()]
# What each kind trains, and how many runs it starts with.
EXPLAINED = {
    "methods": "Each method trains with its own defaults, on the same rows and for the same seconds.",
    "search": "Each trial trains the method of the Train tab with other settings, proposed from the trials before.",
    "seeds": "The recipe of the Train tab is trained again and again, to see how far chance goes.",
}
NUMBERS = {"search": ("Trials", 6), "seeds": ("Seeds", 4)}
MOST_BESIDE = 6
TO_URL = """(id) => {
    const url = new URL(window.location);
    id ? url.searchParams.set('compare', id) : url.searchParams.delete('compare');
    window.history.replaceState(window.history.state, '', url);
}"""


def build(browser: gr.BrowserState, start: SimpleNamespace) -> SimpleNamespace:
    """The tab's inputs and outputs; `start` is the form whose recipe is compared."""
    tab = SimpleNamespace(browser=browser, start=start, shown=gr.Textbox(visible=False))
    tab.timer, tab.seen = gr.Timer(1, active=False), gr.Textbox(visible=False)
    with gr.Row():
        with gr.Column(scale=5, min_width=320, elem_classes="t-group", elem_id="compare-choice"):
            _choice(tab)
        with gr.Column(scale=6, min_width=320):
            tab.card = gr.HTML(elements.note("Choose what to compare."), elem_id="compare-card")
            with gr.Row(elem_classes="t-buttons"):
                tab.start_it = gr.Button("Start", variant="primary", size="lg", elem_id="compare-start")
                tab.stop = gr.Button("Stop", size="md", variant="stop", visible=False, elem_id="compare-stop")
                tab.resume = gr.Button("Resume", size="md", variant="primary", visible=False, elem_id="compare-resume")
                tab.again = gr.Button("Compare something else", size="md", visible=False, elem_id="compare-again")
    tab.results = gr.HTML(elem_id="compare-results")
    tab.earlier = earlier.build()
    with gr.Accordion("Hold finished runs beside each other", open=False, elem_id="beside") as tab.fold:
        tab.runs = gr.Dropdown(
            [],
            label="Runs",
            info=f"two to {MOST_BESIDE} finished ones, compared on the held-out rows that all of them answered",
            multiselect=True,
            max_choices=MOST_BESIDE,
            filterable=False,
            elem_id="beside-runs",
        )
        tab.hold = gr.Button("Compare these runs", size="md", elem_id="beside-compare")
        tab.beside = gr.HTML(elem_id="beside-results")
    # The outputs of `panel`, in its order.
    tab.panel = [tab.card, tab.results, tab.timer, tab.start_it, tab.stop, tab.resume, tab.again, tab.seen]
    _wire(tab)
    return tab


def _choice(tab: SimpleNamespace) -> None:
    # No limits for the numbers here: Gradio refuses one outside with a toast, and leaves an old estimate standing.
    tab.kind = gr.Radio(
        KINDS, value="methods", label="What to compare", info=EXPLAINED["methods"], elem_id="compare-kind"
    )
    tab.methods = gr.Dropdown(
        chooser.choices(),
        value=["lora", "ia3"],
        label="Methods",
        info=f"two to {experiments.MOST_METHODS}",
        multiselect=True,
        max_choices=experiments.MOST_METHODS,
        elem_id="compare-methods",
    )
    tab.number = gr.Number(
        6,
        label="Trials",
        precision=0,
        visible=False,
        elem_id="compare-number",
    )
    tab.seconds = gr.Number(experiments.SECONDS, label="Seconds of training for each run", elem_id="compare-seconds")


def _wire(tab: SimpleNamespace) -> None:
    everything = {*tab.start.inputs, tab.kind, tab.methods, tab.number, tab.seconds, tab.shown, tab.browser}
    run = [tab.shown, tab.browser]

    def estimate(data: dict, visitor: Visitor) -> str | dict:
        return _estimate(tab, data, visitor)

    def begin(data: dict, visitor: Visitor) -> list:
        return _begin(tab, data, visitor)

    tab.kind.input(_show_kind, tab.kind, [tab.kind, tab.methods, tab.number], queue=False, **PRIVATE)
    changed = [tab.kind.change, tab.methods.change, tab.number.change, tab.seconds.change]
    tab.estimate = for_visitor(estimate)
    tab.everything = everything
    gr.on(changed, tab.estimate, everything, tab.card, trigger_mode="always_last", **CHECKS, **PRIVATE)
    pressed = tab.start_it.click(_press, None, [tab.card, tab.start_it], queue=False, **PRIVATE)
    pressed.then(for_visitor(begin), everything, [tab.shown, tab.browser, *tab.panel], **CHECKS, **PRIVATE)
    tab.timer.tick(for_visitor(_tick), [*run, tab.seen], [tab.browser, *tab.panel], queue=False, **PRIVATE)
    for button, deed in ((tab.stop, experiments.stop), (tab.resume, experiments.resume)):
        button.click(for_visitor(_does(deed)), run, tab.panel, **PRIVATE)
    tab.shown.change(None, tab.shown, None, js=TO_URL, api_visibility="private")
    left = tab.again.click(lambda: ["", *panel("")], None, [tab.shown, *tab.panel], queue=False, **PRIVATE)
    left.then(tab.estimate, everything, tab.card, **CHECKS, **PRIVATE)
    # Whatever is shown is what the list of earlier ones has chosen.
    gr.on(
        [tab.earlier.fold.expand, tab.shown.change],
        for_visitor(_list_earlier),
        [tab.browser, tab.shown],
        tab.earlier.outputs,
        **LOOKS,
        **PRIVATE,
    )
    tab.earlier.listed.input(
        for_visitor(_choose), [tab.earlier.listed, tab.browser], [tab.shown, *tab.panel], **LOOKS, **PRIVATE
    )
    tab.earlier.delete.click(lambda: gr.update(visible=True), None, tab.earlier.asking, queue=False, **PRIVATE)
    emptied = [tab.browser, tab.earlier.problem, tab.shown, *tab.panel]
    gone = tab.earlier.sure.click(for_visitor(_delete), run, emptied, queue=False, **PRIVATE)
    gone.then(tab.estimate, everything, tab.card, **CHECKS, **PRIVATE)
    tab.fold.expand(_finished_runs, tab.browser, tab.runs, queue=False, **PRIVATE)
    tab.hold.click(_hold_beside, tab.runs, tab.beside, **LOOKS, **PRIVATE)


def _show_kind(kind: str) -> list:
    title, number = NUMBERS.get(kind, ("Trials", 6))
    return [
        gr.update(info=EXPLAINED.get(kind, "")),
        gr.update(visible=kind == "methods"),
        gr.update(visible=kind in NUMBERS, label=title, value=number),
    ]


def _press() -> list:
    return [elements.busy("Checking what is compared"), gr.update(interactive=False)]


def _asked(tab: SimpleNamespace, data: dict, visitor: Visitor) -> tuple[Choice, Recipe, Entered | None]:
    """What is to be compared, and the recipe and rows of the form. Raises TunerError."""
    requested, rows = form.read(tab.start, data, visitor)
    kind, number = data[tab.kind], int(data[tab.number] or 0)
    methods = data[tab.methods] if isinstance(data[tab.methods], list) else []
    seconds = data[tab.seconds]
    if not isinstance(seconds, (int, float)):
        raise TunerError("Enter the seconds of training for each run.")
    if kind in NUMBERS and not number:
        raise TunerError(f"Enter how many {NUMBERS[kind][0].lower()} to train, 2 to {experiments.MOST_RUNS}.")
    chosen = {"methods": tuple(map(str, methods))} if kind == "methods" else {kind: number}
    return Choice(seconds=seconds, **chosen), requested, rows


def _estimate(tab: SimpleNamespace, data: dict, visitor: Visitor = ANYBODY) -> str | dict:
    """What the experiment would cost; nothing while one is shown."""
    if data[tab.shown]:
        return gr.skip()
    try:
        choice, requested, rows = _asked(tab, data, visitor)
        choice.request(requested)
        if rows is None and not actions.is_local(requested):
            return elements.note("The base model or the rows are not on this machine yet. Start downloads them first.")
        common = f"{requested.model.name}, {requested.data.title}"
        name = common if choice.methods else plan_card.title(requested)
        return compare_view.cost(experiments.cost(choice, requested, rows, visitor), name)
    except Exception as error:
        return elements.problems(problems_of(error))


def _begin(tab: SimpleNamespace, data: dict, visitor: Visitor = ANYBODY) -> list:
    """A new experiment of the visitor's, or the problems in place of the estimate."""
    try:
        made, secret = experiments.start(*_asked(tab, data, visitor), visitor)
    except Exception as error:
        return [gr.skip(), gr.skip(), elements.problems(problems_of(error)), *panel("")[1:]]
    kept = remembered(data[tab.browser])
    kept = {**with_run(kept, made.id, secret), "shown": kept["shown"]}
    return [made.id, kept, *panel(made.id, with_list(visitor, kept))]


def _tick(name: str, kept: dict | None, seen: str = "", visitor: Visitor = ANYBODY) -> list:
    """The browser's list with the experiment's runs, and the panel; nothing that this page has been sent already."""
    visitor, problems = with_list(visitor, kept), []
    if name:
        try:
            experiments.advance(name, visitor)
        except Exception as error:
            problems = problems_of(error)
    listed, values = _with_runs(kept, name), panel(name, visitor, problems)
    if values[-1] == seen:
        values = [gr.skip()] * len(values)
    elif values[-1].partition(" ")[2] == seen.partition(" ")[2]:
        values[1] = gr.skip()  # the drawing, which is large
    return [gr.skip() if listed == remembered(kept) else listed, *values]


def _with_runs(kept: dict | None, name: str) -> dict:
    """What the browser remembers with the runs of its own experiment, which have the experiment's secret."""
    kept = remembered(kept)
    secret = kept["runs"].get(name)
    with suppress(TunerError):
        made = experiments.runs_of(experiments.open_experiment(name)) if secret else []
        new = {run: secret for run in made if not kept["runs"].get(run)}
        return remembered({**kept, "runs": {**new, **kept["runs"]}}) if new else kept
    return kept


def _does(deed: Callable) -> Callable:
    """The handler of a button that stops or resumes the experiment."""

    def do(name: str, kept: dict | None, visitor: Visitor = ANYBODY) -> list:
        visitor, problems = with_list(visitor, kept), []
        try:
            deed(name, visitor)
        except Exception as error:
            problems = problems_of(error)
        return panel(name, visitor, problems)

    return do


def panel(name: str, visitor: Visitor = ANYBODY, problems: list[str] | None = None) -> list:
    """An experiment's card, results, timer, the buttons that the visitor may use, and a mark of what is shown."""
    hidden = gr.update(visible=False)
    if not name:
        ready = gr.update(visible=True, interactive=True)
        return [gr.skip(), "", gr.Timer(active=False), ready, hidden, hidden, hidden, ""]
    try:
        opened = experiments.open_experiment(name)
        now, results = experiments.standing(opened), compare_view.results(opened)
    except Exception as error:
        again = gr.update(visible=True)
        return [
            elements.problems(problems_of(error)),
            "",
            gr.Timer(active=False),
            hidden,
            hidden,
            hidden,
            again,
            "gone",
        ]
    is_own, is_live = experiments.is_own(opened, visitor), now.phase in ("running", "next")
    note = "" if is_own else elements.note(experiments.NOT_YOURS)
    card = elements.problems(problems or []) + note + compare_view.live(now)
    return [
        card,
        results,
        gr.Timer(active=is_live),
        hidden,
        gr.update(visible=is_own and is_live),
        gr.update(visible=is_own and now.phase == "paused"),
        gr.update(visible=not is_live),
        f"{hash(card)} {hash(results)}",
    ]


def show(name: str, visitor: Visitor = ANYBODY) -> list:
    """Values of shown and panel for a visitor who comes by an experiment's link, or without one."""
    with suppress(TunerError):
        return [experiments.open_experiment(name).id, *panel(name, visitor)]
    return ["", *panel("")]


def show_outputs(tab: SimpleNamespace) -> list:
    """The outputs of `show`."""
    return [tab.shown, *tab.panel]


def _list_earlier(kept: dict | None, shown: str, visitor: Visitor = ANYBODY) -> list:
    return earlier.listing(kept, shown, visitor)


def _choose(name: str | None, kept: dict | None, visitor: Visitor = ANYBODY) -> list:
    """The chosen one of the browser's experiments."""
    return [name or "", *panel(name or "", with_list(visitor, kept))]


def _delete(name: str, kept: dict | None, visitor: Visitor = ANYBODY) -> list:
    """The browser's list without the experiment, but with its runs; or the problems."""
    kept = _with_runs(kept, name)
    try:
        earlier.delete(name, with_list(visitor, kept))
    except Exception as error:
        return [gr.skip(), elements.problems(problems_of(error)), *[gr.skip()] * len(show(""))]
    kept["runs"].pop(name, None)
    return [kept, "", *show("")]


def _finished_runs(kept: dict | None) -> dict:
    """The visitor's finished runs, and the example."""
    rows = [row for row in actions.summaries(list(remembered(kept)["runs"])) if row["status"] == "finished"]
    return gr.update(choices=[(row["name"] or f"{row['method']} · {row['data']}", row["run"]) for row in rows])


def _hold_beside(chosen: list[str] | None) -> str:
    try:
        if len(chosen or []) > MOST_BESIDE:
            raise TunerError(f"{len(chosen)} runs are too many here. Choose at most {MOST_BESIDE}.")
        return compare_view.held_beside([actions.open_run(run) for run in chosen or []])
    except Exception as error:
        return elements.problems(problems_of(error))
