"""What each control of the page does: its handler, what it reads and writes; and how the page starts."""

import inspect
import os
import runpy
from types import SimpleNamespace

import gradio as gr
import pytest
from conftest import ROOT, in_order
from visitors_runs import ANN, copied, request_of
from wires import BuiltPage

from tuner.data import table
from tuner.data.parse import NAMED
from tuner.planning import forecast
from tuner.ui import (
    actions,
    api,
    checking,
    chooser,
    compare_api,
    door,
    form,
    home_api,
    page,
    run_queue,
    runs_tab,
    train_tab,
)
from tuner.ui.visitor import GIVEN, Visitor
from tuner.ui.wiring import NOBODY, remembered

pytest_plugins = ["page_fixtures"]

# For each handler: trigger: function(inputs) -> outputs [how many at once, with which other handlers].
WIRES = """
form.where.change: show_source(form.where) -> form.example form.file form.pasted form.hub_row \
form.parts_row [at once]
form.where.input: suit_budget(form.where) -> form.kind form.amount [at once]
form.kind.input: _relabel(form.kind) -> form.amount [at once]
form.example.input: show_example(form.example) -> form.example model.name model.quantization [at once]
any input: check(form train.shown) -> train.card train.yaml train.fetch [240 check, newest]
train.fetch.click: check(form train.shown) -> train.card train.yaml train.fetch [240 check]
data.format.change or form.where.change or form.file.change or form.example.change or form.pasted.blur: \
columns(form train.shown) -> form.roles [240 check, newest]
train.card.click: remedy(data.format) -> data.encoding data.empty form.roles [at once]
form.preview_fold.expand: <lambda>() -> form.is_previewed [at once]
form.preview_fold.collapse: <lambda>() -> form.is_previewed [at once]
after form.preview_fold.expand: preview(form form.is_previewed train.shown) -> form.preview [240 check]
after any input: preview(form form.is_previewed train.shown) -> form.preview [240 check]
train.apply.click: apply(train.yaml) -> form.fill train.yaml_problem [240 check]
after train.apply.click: check(form train.shown) -> train.card train.yaml train.fetch [240 check]
method.name.change: choose(method.name) -> form.explained method.rank method.alpha method.dropout \
method.target_modules method.virtual_tokens method.bottleneck method.layers \
method.start_from [at once]
form.methods.click: _choose() -> method.name [at once]
form.methods_fold.expand: <lambda>() -> form.is_surveyed [at once]
form.methods_fold.collapse: <lambda>() -> form.is_surveyed [at once]
after form.methods_fold.expand: fill(form form.is_surveyed) -> form.methods [240 check]
after any input: fill(form form.is_surveyed) -> form.methods [240 check]
train.train.click: _begin() -> train.card train.train [at once]
after train.train.click: prepare(form train.browser train.shown) -> train.shown train.browser train.panel [240 check]
train.resume.click: resume(train.shown train.browser) -> train.browser train.panel [default]
train.stop.click: _stop(train.shown train.browser) -> train.panel [at once]
train.timer.tick: _tick(train.shown train.browser train.seen) -> train.panel train.seen [at once]
train.shown.change: None(train.shown) ->  [at once]
train.again.click: _leave(train.browser) -> train.shown train.browser train.panel [at once]
after train.again.click: check(form train.shown) -> train.card train.yaml train.fetch [240 check]
train.browser.change: None(train.browser) ->  [at once]
rows.fold.expand or rows.over.input or rows.outcome.input or rows.order.input or rows.search.submit or \
rows.search.blur: turn(train.shown rows.over rows.outcome rows.order rows.search rows.page) -> rows.list rows.over \
rows.outcome rows.page rows.previous rows.next [4 rows, newest]
rows.previous.click: turn(train.shown rows.over rows.outcome rows.order rows.search rows.page) -> rows.list rows.over \
rows.outcome rows.page rows.previous rows.next [4 rows]
rows.next.click: turn(train.shown rows.over rows.outcome rows.order rows.search rows.page) -> rows.list rows.over \
rows.outcome rows.page rows.previous rows.next [4 rows]
train.shown.change: _forget() -> rows.fold rows.list rows.over rows.outcome rows.page rows.previous rows.next \
rows.search [at once]
train.chat.click: to_playground(train.shown train.browser) -> tabs play.run [default]
train.push.click: to_push(train.shown train.browser) -> tabs mine.push_fold mine.list [default]
play.send.click or play.prompt.submit: _begin(play.prompt play.run play.pending play.sent) -> play.prompt \
play.pending play.send play.stop play.problem play.sent [default]
play.sent.change: _answer(play.run train.browser play.pending play.system play.temperature \
play.top_p play.length play.seed play.columns) -> play.columns play.problem play.check [1 models, newest]
after play.sent.change: _end(play.pending play.prompt play.problem) -> play.prompt play.pending play.send \
play.stop play.problem [at once]
after play.sent.change: _fail(play.pending play.prompt play.problem) -> play.prompt play.pending play.send \
play.stop play.problem [at once]
play.stop.click: None() ->  [at once]
play.stop.click: None() ->  [cancels play.sent.change]
after play.stop.click: _end(play.pending play.prompt play.problem) -> play.prompt play.pending play.send play.stop \
play.problem [at once]
play.run.change: choose(play.run train.browser play.shown play.prompt play.columns0) -> play.shown play.examples \
play.check play.check_fold play.system play.sampling_fold play.prompt play.reference \
play.problem play.columns [default, newest]
play.add.click or play.adapter.submit: add(play.adapter play.run train.browser) -> train.browser play.run \
play.adapter play.problem [4]
play.clear.click: <lambda>() -> play.problem [at once]
play.examples.select: _use_example(play.shown) -> play.prompt play.reference play.system play.columns [at once]
play.shown.change or play.clear.click or play.examples.select: None() ->  [at once]
play.shown.change or play.clear.click or play.examples.select: None() ->  [cancels play.sent.change]
play.shown.change or play.clear.click or play.examples.select: None() -> play.columns play.pending \
play.send play.stop [at once]
mine.rows.click: _select(train.browser) -> mine.list [at once]
mine.selected.change: None(mine.selected train.browser) -> mine.link mine.owner_link [at once]
mine.delete.click: <lambda>() -> mine.sure [at once]
mine.sure.click: _delete(mine.selected train.browser) -> train.browser mine.list [at once]
mine.push.click: _push(mine.selected train.browser mine.repository mine.private mine.failed_merge mine.token \
mine.what mine.data_name mine.into) -> mine.pushed mine.token [4]
mine.download_adapter.click: offer(mine.selected train.browser) -> mine.download [4]
after mine.download_adapter.click: None() ->  [at once]
mine.download_merged.click: offer(mine.selected train.browser) -> mine.download [1 models]
after mine.download_merged.click: None() ->  [at once]
mine.download_gguf.click: offer(mine.selected train.browser) -> mine.download [1 models]
after mine.download_gguf.click: None() ->  [at once]
mine.download_run.click: offer(mine.selected train.browser) -> mine.download [4]
after mine.download_run.click: None() ->  [at once]
mine.import_run.upload: _import(mine.import_run train.browser) -> train.browser mine.imported mine.list [240 check]
mine.chat.click: to_playground(mine.selected train.browser) -> tabs play.run [default]
mine.open.click: to_train(mine.selected train.browser) -> tabs train.shown train.browser train.panel form.fill \
[default]
mine.resume.click: to_resume(mine.selected train.browser) -> tabs train.shown train.browser train.panel form.fill \
[default]
Playground.select: update_runs(train.browser play.run) -> play.run [default]
My runs.select: refresh(train.browser mine.selected) -> mine.list [default]
Compare.select: estimate(form compare.kind compare.methods compare.number compare.seconds compare.shown \
train.browser) -> compare.card [240 check]
compare.kind.change or compare.methods.change or compare.number.change or compare.seconds.change: estimate(form \
compare.kind compare.methods compare.number compare.seconds compare.shown train.browser) -> compare.card \
[240 check, newest]
compare.kind.input: _show_kind(compare.kind) -> compare.kind compare.methods compare.number [at once]
compare.start_it.click: _press() -> compare.card compare.start_it [at once]
after compare.start_it.click: begin(form compare.kind compare.methods compare.number compare.seconds compare.shown \
train.browser) -> compare.shown train.browser compare.panel [240 check]
compare.timer.tick: _tick(compare.shown train.browser compare.seen) -> train.browser compare.panel [at once]
compare.stop.click: do(compare.shown train.browser) -> compare.panel [default]
compare.resume.click: do(compare.shown train.browser) -> compare.panel [default]
compare.shown.change: None(compare.shown) ->  [at once]
compare.again.click: <lambda>() -> compare.shown compare.panel [at once]
after compare.again.click: estimate(form compare.kind compare.methods compare.number compare.seconds compare.shown \
train.browser) -> compare.card [240 check]
earlier.fold.expand or compare.shown.change: _list_earlier(train.browser compare.shown) -> earlier.listed \
earlier.delete earlier.asking earlier.problem [4 rows]
earlier.listed.input: _choose(earlier.listed train.browser) -> compare.shown compare.panel [4 rows]
earlier.delete.click: <lambda>() -> earlier.asking [at once]
earlier.sure.click: _delete(compare.shown train.browser) -> train.browser earlier.problem compare.shown compare.panel \
[at once]
after earlier.sure.click: estimate(form compare.kind compare.methods compare.number compare.seconds compare.shown \
train.browser) -> compare.card [240 check]
compare.fold.expand: _finished_runs(train.browser) -> compare.runs [at once]
compare.hold.click: _hold_beside(compare.runs) -> compare.beside [4 rows]
page.load: arrive(train.browser) -> train.shown train.browser train.panel form.fill tabs compare.shown compare.panel \
[default]
after page.load: check(form train.shown) -> train.card train.yaml train.fetch [240 check]
"""
LOGIN = "mine.login.click: None(mine.login) ->  [at once]"
ROWS_GIVEN = {"recipe": inspect.Parameter.empty, "file": None, "rows": ""}
NEEDED = inspect.Parameter.empty
OWNER = {"secret": ""}
SAMPLED = {"temperature": 0.0, "top_p": 1.0, "max_new_tokens": 96, "seed": 0}
# Each endpoint's parameters with their defaults, and how many calls of it run at once.
ENDPOINTS = {
    "check": (ROWS_GIVEN, "240 check"),
    "preview": (ROWS_GIVEN, "240 check"),
    "train": (ROWS_GIVEN, "1200 follow"),
    "resume": ({"run": NEEDED, **OWNER}, "1200 follow"),
    "status": ({"run": NEEDED}, 4),
    "rows": (
        {"run": NEEDED, "over": "base", "outcome": "all", "order": "worst", "search": "", "page": 1},
        "4 rows",
    ),
    "compare": (
        {**ROWS_GIVEN, "methods": "", "search": 0, "seeds": 0, "seconds": 30, "experiment": "", **OWNER},
        "1200 follow",
    ),
    "comparison": ({"experiment": NEEDED}, "4 rows"),
    "stop": ({"run": NEEDED, **OWNER}, 4),
    "runs": ({"runs": NEEDED}, 4),
    "delete": ({"run": NEEDED, **OWNER}, 4),
    "chat": ({"run": NEEDED, "message": NEEDED, "history": None, "system": "", **SAMPLED, **OWNER}, "1 models"),
    "merge": ({"run": NEEDED, **OWNER}, "1 models"),
    "push": (
        {
            "run": NEEDED,
            "repository": NEEDED,
            "token": "",
            "private": True,
            "failed_merge": False,
            "what": "adapter",
            "data_name": "",
            "into": "main",
            **OWNER,
        },
        4,
    ),
    "download": ({"run": NEEDED, "what": "adapter", **OWNER}, 4),
    "import_run": ({"file": NEEDED}, "240 check"),
    "adopt": ({"adapter": NEEDED, "quantization": "none"}, 4),
}
BUTTONS = {
    "train.train": "Train", "train.stop": "Stop", "train.resume": "Resume", "train.chat": "Chat with it",
    "train.push": "Push to the Hub", "train.again": "Change settings", "train.fetch": "Download and check",
    "train.apply": "Apply to the form", "play.add": "Add", "play.send": "Send", "play.stop": "Stop",
    "play.clear": "New conversation",
    "mine.open": "Open", "mine.chat": "Chat", "mine.resume": "Resume", "mine.delete": "Delete",
    "mine.sure": "Delete for good", "mine.push": "Push", "mine.download_adapter": "Adapter",
    "mine.download_merged": "Merged model", "mine.download_run": "Whole run", "mine.download_gguf": "GGUF",
    "rows.previous": "Previous", "rows.next": "Next",
    "compare.start_it": "Start", "compare.stop": "Stop", "compare.resume": "Resume",
    "compare.again": "Compare something else", "compare.hold": "Compare these runs",
    "earlier.delete": "Delete", "earlier.sure": "Delete for good",
}  # fmt: skip
HIDDEN = {
    "play.pending",
    "train.seen",
    "train.shown", "train.stop", "train.resume", "train.chat", "train.push", "train.again", "train.fetch",
    "form.file", "form.pasted", "form.hub_row", "form.parts_row", *(f"form.roles{n}" for n in range(7)),
    "method.virtual_tokens", "method.bottleneck", "method.layers",
    "play.columns3", "play.stop", "mine.selected", "mine.actions", "mine.resume", "mine.sure",
    "mine.failed_merge", "rows.fold", "rows.page",
    "compare.shown", "compare.seen", "compare.stop", "compare.resume", "compare.again", "compare.number",
    "earlier.delete", "earlier.asking",
}  # fmt: skip
DISABLED = {"mine.link", "mine.owner_link", "rows.previous", "rows.next"}
LABELS = {
    "form.file": f"Files of rows ({NAMED})",
    "form.pasted": "Rows as CSV, JSON Lines, or two columns copied from a spreadsheet",
    "form.where": "Source of the rows", "form.example": "Example", "form.hub": "Dataset", "form.kind": "Budget",
    "model.name": "Base model", "model.quantization": "Precision", "method.name": "Method",
    "rows.over": "Compare the adapter with", "rows.outcome": "Rows", "rows.order": "Order", "rows.search": "Search",
    "compare.kind": "What to compare", "compare.methods": "Methods", "compare.runs": "Runs",
    "compare.seconds": "Seconds of training for each run", "earlier.listed": "Experiments",
    "play.columns0": "Base model", "play.columns1": "Adapter", "play.columns2": "Merged model", "play.run": "Runs",
    "play.temperature": "Temperature", "play.top_p": "Top-p", "play.length": "Max new tokens", "play.seed": "Seed",
    "play.system": "System prompt", "play.adapter": "An adapter on the Hub", "play.prompt": "Prompt",
    "mine.repository": "Repository", "mine.private": "Private", "mine.token": "Hub token with write access",
    "mine.failed_merge": "Push it although merging failed",
    "mine.link": "Private link to this run", "mine.owner_link": "Owner's link",
}  # fmt: skip

FOLDS = {
    "How the rows are read": False,
    "What the model will see": False,
    "Compare all methods": False,
    "More settings": False,
    "All scored rows": False,
    "Earlier experiments": False,
    "Hold finished runs beside each other": False,
    "Recipe (YAML)": False,
    "Sampling and system prompt": False,
    "Does merging change the answers?": True,
    "Download": False,
    "Push to the Hub": False,
    "More": False,
}

INFOS = {
    "play.temperature": "likeliest token each time",
    "play.top_p": "total probability",
    "play.length": "longest answer",
    "play.seed": "same seed gives the same answer",
    "play.system": "starts each new conversation",
    "mine.private": "only you can see",
    "mine.token": "used once and not stored",
}
SOURCES = ["example", "file", "paste", "hub"]
CHOICES = {
    "form.where": {
        "Included example": "example",
        "Upload a file": "file",
        "Paste rows": "paste",
        "Hub dataset": "hub",
    },
    "form.kind": {"Auto": "auto", "Steps": "steps", "Epochs": "epochs", "Seconds": "seconds"},
    "model.quantization": {"4-bit (NF4)": "nf4", "8-bit": "int8", "16-bit": "none"},
}


@pytest.fixture(scope="module")
def built() -> BuiltPage:
    """The page as it is on one's own machine."""
    return BuiltPage(has_oauth=False)


@pytest.fixture(scope="module")
def signed_in() -> BuiltPage:
    """The page of a Space, where visitors can sign in."""
    return BuiltPage(has_oauth=True)


def state(built: BuiltPage, name: str) -> dict:
    """How the control starts."""
    (number,) = [number for number, known in built.names.items() if known == name]
    return built.blocks.blocks[number].get_config()


def test_each_control_is_wired_to_its_handler_with_its_inputs_and_outputs(built):
    assert sorted(built.wires()) == sorted(WIRES.strip().split("\n"))


def test_where_visitors_can_sign_in_they_find_a_button_for_it_and_type_no_token(signed_in):
    assert sorted(signed_in.wires()) == sorted([LOGIN, *WIRES.strip().split("\n")])
    assert state(signed_in, "mine.token")["visible"] is False


def test_every_endpoint_is_public_with_its_parameters_and_its_limit(built):
    found = {}
    for handler in built.blocks.fns.values():
        if handler.api_visibility == "public":
            parameters = inspect.signature(handler.fn).parameters
            given = {name: p.default for name, p in parameters.items() if name not in GIVEN}
            limit = built.limits(handler)
            found[handler.api_name] = (given, int(limit) if limit.isdigit() else limit)
            assert handler.fn.__module__ in (api.__name__, compare_api.__name__, home_api.__name__)
            if given == ROWS_GIVEN:  # these have components of their own, whose order is that of the parameters
                assert [c.label for c in handler.inputs] == ["Recipe (YAML)", "File of rows", "Pasted rows"]
                assert [type(c) for c in handler.inputs] == [gr.Textbox, gr.File, gr.Textbox]
                assert handler.inputs[2].value == ""
    assert {name: found[name] for name in ENDPOINTS} == ENDPOINTS
    assert run_queue.queue.places < 100


def test_the_page_starts_with_these_controls_shown_and_enabled(built):
    states = {name: state(built, name) for number, name in built.names.items() if name != "page"}
    assert {name for name, s in states.items() if s.get("visible") is False} == HIDDEN
    assert {name for name, s in states.items() if s.get("interactive") is False} == DISABLED
    assert {name: s["value"] for name, s in states.items() if s["name"] == "button"} == BUTTONS
    assert {name: states[name]["label"] for name in LABELS} == LABELS
    folds = [block.get_config() for block in built.blocks.blocks.values() if isinstance(block, gr.Accordion)]
    assert {fold["label"]: fold["open"] for fold in folds} == FOLDS
    assert states["train.timer"]["active"] is False
    assert built.train.timer.value == 1
    assert "Checking the example" in states["train.card"]["value"]
    assert "Reading the rows" in states["form.preview"]["value"]
    assert states["mine.token"]["type"] == "password"
    assert states["mine.private"]["value"] is True
    assert (states["play.run"]["multiselect"], states["play.run"]["max_choices"]) == (True, 3)
    assert states["mine.link"]["buttons"] == ["copy"]
    assert built.train.browser.default_value == NOBODY
    assert all(column.value == [] for column in built.play.columns)


def test_sampling_starts_greedy_and_has_its_bounds(built):
    bounds = {
        name: [state(built, f"play.{name}").get(key) for key in ("minimum", "maximum", "value", "step")]
        for name in ("temperature", "top_p", "length")
    }
    assert bounds == {"temperature": [0, 2, 0, 0.05], "top_p": [0.05, 1, 1, 0.05], "length": [1, 512, 96, 1]}
    assert (state(built, "play.seed")["value"], state(built, "play.seed")["precision"]) == (0, 0)


def test_opening_a_fold_computes_what_is_in_it_and_closing_it_stops_that(built):
    for fold in ("preview", "methods"):
        assert built.function(f"form.{fold}_fold.expand")() is True
        assert built.function(f"form.{fold}_fold.collapse")() is False
    assert built.function("mine.delete.click")() == {"visible": True, "__type__": "update"}
    assert built.function("play.clear.click", "<lambda>")() == ""
    assert built.function("form.methods.click")(SimpleNamespace(method="dora")) == "dora"


def test_each_choice_and_each_tab_has_its_own_value_and_each_input_its_own_help(built):
    for name, choices in CHOICES.items():
        assert dict(state(built, name)["choices"]) == choices
    assert all(label.split(" · ")[0] == value for label, value in state(built, "model.name")["choices"])
    assert all(words in state(built, name)["info"] for name, words in INFOS.items())
    tabs = [block for block in built.blocks.blocks.values() if isinstance(block, gr.Tab)]
    ids = {"Train": "train", "Playground": "playground", "Compare": "compare", "My runs": "runs"}
    assert {tab.label: tab.id for tab in tabs} | ids == {tab.label: tab.id for tab in tabs}
    browser = built.train.browser
    # A new secret at each start would make the lists in the browsers unreadable.
    assert (browser.storage_key, browser.secret) == ("tuner", "tuner")
    code = [block.value for block in built.blocks.blocks.values() if isinstance(block, gr.Code)]
    assert code == [None, "python -m tuner train recipe.yaml --out RUN"]


def test_what_is_clicked_in_a_list_and_the_run_in_an_address_have_one_name_in_page_and_browser():
    for script, name in ((runs_tab.CLICKED, "run"), (chooser.CLICKED, "method")):
        assert f"closest('[data-{name}]')" in script
        assert f"trigger('click', {{{name}: row.dataset.{name}}})" in script
    assert "!row.disabled" in chooser.CLICKED
    assert "searchParams.set('run', id) : url.searchParams.delete('run')" in train_tab.TO_URL
    assert "searchParams.set('run', id)" in runs_tab.LINKS


def test_the_handlers_pass_on_what_the_page_holds(built, signed_in, mine, monkeypatch):
    train, ann = built.train, Visitor("ann")
    for name in ("_preview", "_apply", "_prepare"):
        monkeypatch.setattr(train_tab, name, lambda *given, name=name: (name, *given))
    monkeypatch.setattr(train_tab, "_survey", lambda *given: iter(given))
    monkeypatch.setattr(form, "show_columns", lambda *given: given)
    for trigger in ("after any input", "after form.preview_fold.expand"):
        assert built.function(trigger, "preview")("data", *request_of(ann)) == ("_preview", train, "data", ann)
    assert built.function("train.apply.click")("text", *request_of(ann)) == ("_apply", train, "text", ann)
    assert list(built.function("after form.methods_fold.expand")("data", *request_of(ann))) == [train, "data", ann]
    assert built.function("data.format.change")("data", *request_of(ann)) == (train.form, "data", ann)
    assert built.function("method.name.change")("ia3") == form.show_method(train.form, "ia3")
    for page_of, visitor in ((built, ann), (signed_in, ann), (signed_in, Visitor("ann", "", "ann-on-hub", "hf_x"))):
        prepare = page_of.function("after train.train.click")
        assert prepare("data", *request_of(visitor)) == ("_prepare", page_of.train, "data", visitor)
    choose = built.function("play.run.change")
    column = [{"role": "user", "content": "again"}]
    changed = choose(["mine"], None, [], "", column, *request_of(ann))
    assert (changed[built.play.shown], changed[built.play.prompt]["value"]) == (["mine"], "again")
    assert choose(["mine"], None, ["mine"], "", column, *request_of(ann)) == {built.play.problem: ""}
    assert choose(None, None, ["mine"], "typed", None, *request_of(ann))[built.play.shown] == []


def test_the_buttons_of_a_run_lead_to_the_playground_to_the_push_and_back_to_training(built, mine):
    copied("other", budget={"epochs": 7}, seed=5)
    kept = {"runs": ["mine", "other"], "shown": "mine"}
    for button in ("train.chat", "mine.chat"):
        tabs, run = built.function(f"{button}.click")("other", kept)
        assert tabs.selected == "playground"
        assert (run["value"], [id for _, id in run["choices"]]) == (["other"], ["mine", "other"])
    tabs, fold, selected, listed, *_ = built.function("train.push.click")("other", kept, *request_of(ANN))
    assert (tabs.selected, fold["open"], selected) == ("runs", True, "other")
    assert in_order(listed, 'data-run="mine" aria-pressed="false"', 'data-run="other" aria-pressed="true"')
    tabs, *values = built.function("mine.open.click")("other", kept, *request_of(ANN))
    assert (tabs.selected, values[0], values[1]) == (
        "train",
        "other",
        {"runs": {"mine": "", "other": ""}, "shown": "other"},
    )
    filled = dict(zip(built.groups["form.fill"], values[2 + len(built.train.panel) :], strict=True))
    assert filled[built.train.form.settings["seed"]]["value"] == 5
    assert (filled[built.train.form.kind]["value"], filled[built.train.form.amount]["value"]) == ("epochs", 7)


def test_resuming_in_the_list_of_runs_queues_the_run_and_opens_it(built, mine, monkeypatch):
    resumed = []
    monkeypatch.setattr(actions, "resume", lambda *given: resumed.append(given))
    to_resume = built.function("mine.resume.click")
    tabs, shown, browser, *_ = to_resume("mine", {"runs": ["mine"], "shown": ""}, *request_of(Visitor("ann")))
    assert resumed == [("mine", Visitor("ann", secrets={"mine": ""}))]
    assert (tabs.selected, shown, browser["shown"]) == ("train", "mine", "mine")


def test_why_a_run_of_the_list_cannot_be_resumed_is_told(built, mine):
    values = built.function("mine.resume.click")("mine", {"runs": {"mine": ""}}, *request_of(ANN))
    assert "has finished, so there is nothing to resume" in str(values[3])


@pytest.mark.parametrize(
    ("run", "kept", "shown", "told"),
    [
        ("mine", {"runs": ["a"], "shown": "other"}, "mine", ""),
        ("", {"runs": ["mine"], "shown": "mine"}, "mine", ""),
        ("gone", {"runs": ["mine"], "shown": "mine"}, "", "There is no run"),
        ("<img src=x onerror=f()>", {}, "", "&lt;img src=x onerror=f()&gt;"),
        ("", {"runs": ["gone"], "shown": "gone"}, "", ""),
        ("", {}, "", ""),
    ],
)
def test_who_arrives_sees_the_run_of_the_link_or_the_one_shown_last_and_keeps_the_list(
    built, mine, run, kept, shown, told, monkeypatch
):
    opened, warnings = {"run": run, "secret": ""}, []
    monkeypatch.setattr(page.gr, "Warning", lambda text, title: warnings.append(text))
    values = built.function("page.load")(kept | {"opened": opened}, *request_of(Visitor("bob")))
    assert values[:2] == [shown, {"runs": dict.fromkeys(kept.get("runs", []), ""), "shown": shown}]
    assert ("t-verdict" in str(values[2])) == bool(shown)
    assert [told in text for text in warnings] == [True] * bool(told), warnings


def test_of_what_a_browser_sends_only_ids_and_secrets_are_remembered():
    sent = {
        "runs": {"../x": "s", "x" * 65: "s", "mine": "t" * 101, "other": "s", "": ""},
        "shown": "x" * 65,
        "more": 1,
    }
    assert remembered(sent) == {"runs": {"mine": "", "other": "s"}, "shown": ""}
    assert remembered({"runs": ["a", 5, "b/c"], "shown": "a"}) == {"runs": {"a": ""}, "shown": "a"}


def test_the_about_text_states_the_limits_with_their_units(monkeypatch):
    monkeypatch.setattr("tuner.data.table.MAX_FILE_BYTES", 3 * 2**20)
    monkeypatch.setattr("tuner.data.table.MAX_ROWS", 45_000)
    monkeypatch.setattr(forecast, "MAX_TOKENS", 6e6)
    monkeypatch.setattr(forecast, "MAX_PARAMETERS", 7.5e9)
    monkeypatch.setattr(forecast, "MAX_SECONDS", 480)
    text = " ".join(page.about().split())
    assert "files of up to 3 MB with 45,000 rows and 6,000,000 tokens" in text
    assert "base models of up to 7.5 billion parameters, and runs of up to 8 minutes." in text


@pytest.mark.parametrize(
    ("client", "space", "expected"), [("id", "a/b", True), ("id", None, False), (None, "a/b", False)]
)
def test_visitors_sign_in_on_a_space_with_a_client_id_alone(client, space, expected, monkeypatch):
    monkeypatch.setenv("OAUTH_CLIENT_ID", client) if client else monkeypatch.delenv("OAUTH_CLIENT_ID", raising=False)
    monkeypatch.setattr(gr.utils, "get_space", lambda: space)
    assert page.has_oauth() is expected


def test_uploads_are_deleted_after_a_day_and_the_page_reports_nothing(built):
    assert built.blocks.delete_cache == (3600, 86400)
    assert built.blocks.analytics_enabled is False
    assert built.blocks.title == "Tuner"
    assert built.installed == ["example"]


@pytest.mark.parametrize("space", [None, "alice/tuner"])
def test_the_server_starts_with_its_limits_and_opens_to_others_on_a_space_alone(space, monkeypatch):
    monkeypatch.setenv("SPACE_ID", "x")
    monkeypatch.setenv("SPACE_ID", space) if space else monkeypatch.delenv("SPACE_ID")
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE", "GRADIO_ANALYTICS_ENABLED"):
        monkeypatch.setenv(name, "0")
        monkeypatch.delenv(name)
    started = {}

    class Page:
        def queue(self, **settings):
            started.update(settings)
            return self

        def launch(self, **settings):
            started.update(settings)

    monkeypatch.setattr(page, "build", Page)
    monkeypatch.setattr(checking, "warm_up", lambda: None)
    app = runpy.run_path(str(ROOT / "app.py"), run_name="app")
    assert (os.environ["HF_HUB_DISABLE_PROGRESS_BARS"], os.environ["TQDM_DISABLE"]) == ("1", "1")
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    app["main"]()
    assert started.pop("theme").name == page.theme().name
    assert started == {
        "max_size": 2000,
        "default_concurrency_limit": 8,
        "api_open": False,
        "server_name": "0.0.0.0" if space else None,
        "css_paths": page.CSS,
        "footer_links": ["api"],
        "run_history": False,
        "mcp_server": False,
        "enable_monitoring": False,
        "state_session_capacity": 2000,
        "max_file_size": table.MAX_FILE_BYTES + 2**20,
        "app_kwargs": door.APP,
        "ssr_mode": False,
        "max_threads": 1400,
    }
    assert page.CSS.is_file()
