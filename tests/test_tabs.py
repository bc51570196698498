"""The tabs' handlers: what the plan's card, a run's panel and the list of runs show, for each state of a run."""

import shutil
from contextlib import ExitStack
from dataclasses import replace
from types import SimpleNamespace

import gradio as gr
import pytest
from conftest import in_order, plain
from recorded import MERGED
from visitors_runs import ANN, VISITOR, copied, request_of, with_events

from tuner import gpu
from tuner.errors import TunerError
from tuner.methods.registry import METHODS
from tuner.recipe import Recipe
from tuner.runs import Run
from tuner.ui import actions, form, looks, newest, rows_view, run_queue, runs_tab, train_tab
from tuner.ui.visitor import Visitor
from tuner.ui.wiring import NOBODY

pytest_plugins = ["page_fixtures"]
SKIP = gr.skip()
HIDDEN = gr.update(visible=False)
KEPT = {"runs": {"mine": "secret"}, "shown": "mine"}
START = {"event": "start", "step": 0, "steps": 9}
CLOSED = {"event": "end", "reason": "window", "step": 4}


@pytest.fixture(scope="module")
def tab():
    """The tab for training."""
    with gr.Blocks():
        return train_tab.build(gr.BrowserState(NOBODY))


@pytest.fixture
def data(tab) -> dict:
    """What the form holds as the page starts, no run being shown."""
    inputs = {component: component.value for component in tab.form.inputs}
    return inputs | {tab.shown: "", tab.browser: None, tab.form.is_previewed: True, tab.form.is_surveyed: True}


@pytest.fixture
def planned(mine, monkeypatch) -> list[tuple]:
    """The recipes that were checked; each gets the plan of the shipped run, with another warning."""
    checked = []
    plan = dict(mine.plan) | {"warnings": ["A full check."]}
    monkeypatch.setattr(actions, "check", lambda *given: checked.append(given) or plan)
    return checked


def test_a_complete_form_gets_its_plan_and_its_recipe(tab, data, planned, monkeypatch):
    asked = []
    monkeypatch.setattr(gpu, "quota", lambda token: asked.append(token) or {"left": 4000, "resets_in": 1})
    data[tab.form.settings["name"]] = "my run"
    ((card, yaml, fetch),) = train_tab._check(tab, data, False, Visitor(VISITOR, token="hf_x"))
    assert in_order(plain(card), "What will happen", "my run", "Your GPU time", "A full check.")
    assert Recipe.from_yaml(yaml).name == "my run"
    assert (fetch, asked) == (HIDDEN, ["hf_x"])
    ((requested, table, visitor),) = planned
    assert (requested.name, table, visitor.token) == ("my run", None, "hf_x")


def test_the_shipped_runs_plan_is_shown_while_the_estimate_is_being_made(tab, data, planned):
    actions.install_example()
    first, second = train_tab._check(tab, data | {tab.form.settings["name"]: "my run"}, False)
    assert "my run" in first[0]
    assert "t-parts" not in first[0]
    assert "A full check." not in first[0]
    assert "A full check." in second[0]
    assert first[1:] == second[1:]
    assert first[2] == HIDDEN


def test_a_form_with_problems_lists_them_and_keeps_the_recipe(tab, data, planned):
    data |= {tab.form.settings["seed"]: -1, tab.form.settings["evaluation.rows"]: 0}
    ((card, yaml, fetch),) = train_tab._check(tab, data, False, ANN)
    assert in_order(plain(card), "2 problems to fix", "evaluation.rows", "seed")
    assert (yaml, fetch) == (SKIP, HIDDEN)
    assert list(train_tab._check(tab, data | {tab.shown: "mine"}, False)) == [[SKIP, SKIP, HIDDEN]]
    assert planned == []


def test_while_a_run_is_shown_only_the_recipe_follows_the_form(tab, data, planned):
    ((card, yaml, fetch),) = train_tab._check(tab, data | {tab.shown: "mine"}, True)
    assert (card, fetch, planned) == (SKIP, HIDDEN, [])
    assert Recipe.from_yaml(yaml) == form.read(tab.form, data)[0]


def test_what_is_missing_here_is_downloaded_when_it_is_asked_for(tab, data, planned, monkeypatch):
    monkeypatch.setattr(actions, "is_local", lambda requested: False)
    ((card, yaml, fetch),) = train_tab._check(tab, data, False, ANN)
    assert plain(card).strip() == (
        "The base model or the rows are not on this machine yet. Train downloads them from the Hub first."
    )
    assert yaml.startswith("name:")
    assert (fetch["visible"], planned) == (True, [])
    ((card, _, fetch),) = train_tab._check(tab, data, True, ANN)
    assert "A full check." in card
    assert fetch == HIDDEN
    given = {tab.form.where: "paste", tab.form.pasted: "prompt,completion\n" + "a,b\n" * 8}
    ((card, *_),) = train_tab._check(tab, data | given, False, ANN)  # the base is fetched for rows that are here
    assert "A full check." in card
    assert [rows and rows.pasted for _, rows, _ in planned] == [None, given[tab.form.pasted]]


def test_a_plan_that_cant_be_made_says_why(tab, data, monkeypatch):
    def refuse(*given):
        raise TunerError("Too many tokens.")

    monkeypatch.setattr(actions, "check", refuse)
    monkeypatch.setattr(actions, "has_example", lambda: False)
    ((card, yaml, fetch),) = train_tab._check(tab, data, False, ANN)
    assert in_order(plain(card), "This can't work yet", "Too many tokens.")
    assert yaml.startswith("name:")
    assert fetch == HIDDEN


def test_checking_knows_its_visitor_and_downloading_is_asked_for_by_its_own_button(tab, data, monkeypatch):
    asked = []
    monkeypatch.setattr(train_tab, "_check", lambda *given: asked.append(given) or iter([["card", "yaml", "fetch"]]))
    check, fetch = train_tab.checkers(tab)
    for handler in (check, fetch):
        assert list(handler(data, *request_of(ANN))) == [["card", "yaml", "fetch"]]
    assert [given[:2] for given in asked] == [(tab, data)] * 2
    assert [given[2:] for given in asked] == [(False, ANN), (True, ANN)]


def test_a_slow_check_does_not_overwrite_a_newer_one_of_the_same_visitor(monkeypatch):
    def checks(visitor: str, *values):
        return newest.values(visitor, ([value, value] for value in values))

    slow, other = checks("ann", 1, 2, 3), checks("bob", 7, 8)
    assert (next(slow), next(other)) == ([1, 1], [7, 7])
    fast = checks("ann", 4)
    assert list(fast) == [[4, 4]]
    assert list(slow) == [[SKIP, SKIP]]
    assert list(other) == [[8, 8]]
    monkeypatch.setattr(newest, "MOST_VISITORS", 2)
    for visitor in ("a", "b", "a", "c"):
        list(checks(visitor, 0))
    assert list(newest._checking) == ["a", "c"]


def test_the_preview_and_the_survey_are_made_only_while_their_folds_are_open(tab, data, monkeypatch):
    seen = []
    facts = {"rows": [], "histogram": [], "longest": 5, "max_length": 9, "warning": "", "format": "By name."}
    monkeypatch.setattr(actions, "preview", lambda *given: seen.append(given) or facts)
    assert train_tab._preview(tab, data | {tab.form.is_previewed: False}) == SKIP
    assert seen == []
    assert "By name." in train_tab._preview(tab, data)
    assert seen[0][1] is None
    monkeypatch.setattr(actions, "is_local", lambda requested: False)
    assert plain(train_tab._preview(tab, data)).strip() == (
        "The preview appears once base model and rows are downloaded."
    )
    given = {tab.form.where: "paste", tab.form.pasted: "prompt,completion\n" + "a,b\n" * 8}
    assert "By name." in train_tab._preview(tab, data | given)
    assert seen[1][1].pasted == given[tab.form.pasted]
    assert "seed" in train_tab._preview(tab, data | {tab.form.settings["seed"]: -1})


def test_the_methods_are_compared_only_while_that_is_open_and_the_chosen_one_is_marked(tab, data, monkeypatch):
    asked = []
    costs = [{"name": "lora", "problems": ["Not here."]}]
    monkeypatch.setattr(actions, "survey", lambda *given: asked.append(given) or iter(costs))
    data[tab.form.settings["method.name"]] = "dora"
    assert list(train_tab._survey(tab, data | {tab.form.is_surveyed: False})) == [SKIP]
    first, last = train_tab._survey(tab, data, ANN)
    assert "Not here." in first
    assert "Not here." in last
    ((requested, rows, visitor),) = asked
    assert (requested.method.name, rows, visitor) == ("dora", None, ANN)
    data[tab.form.settings["seed"]] = -1
    (refused,) = train_tab._survey(tab, data)
    assert "seed" in refused.partition("t-methods")[0]
    data[tab.form.settings["seed"]] = 0
    monkeypatch.setattr(actions, "is_local", lambda requested: False)
    (unknown,) = train_tab._survey(tab, data)
    for html in (first, last, refused, unknown):
        assert 'selected" data-method="dora"' in html
    assert len(asked) == 1
    assert unknown.count("data-method") == len(METHODS)
    given = {tab.form.where: "paste", tab.form.pasted: "ask,reply\n" + "a,b\n" * 8}
    *_, last = train_tab._survey(tab, data | given)  # the base is fetched for rows that are here
    assert "Not here." in last
    assert asked[1][1].pasted == given[tab.form.pasted]


def test_a_recipe_that_is_pasted_fills_the_form_or_says_what_is_wrong(tab):
    *values, problem = train_tab._apply(tab, "{seed: 7, budget: {epochs: 2}}")
    filled = dict(zip(form.fill_outputs(tab.form), values, strict=True))
    assert filled[tab.form.settings["seed"]]["value"] == 7
    assert filled[tab.form.kind]["value"] == "epochs"
    assert problem == ""
    *values, problem = train_tab._apply(tab, "{seed: x, color: red}")
    assert values == [SKIP] * len(filled)
    assert "2 problems to fix" in plain(problem)


def test_a_prepared_run_is_shown_first_in_the_list_and_refused_rows_are_a_problem(tab, data, mine, monkeypatch):
    given = []
    monkeypatch.setattr(actions, "prepare", lambda *args: given.append(args) or (mine, "secret"))
    data |= {tab.browser: {"runs": ["old"], "shown": "old"}, tab.form.settings["seed"]: 4}
    shown, browser, card, *_ = train_tab._prepare(tab, data, ANN)
    assert (shown, browser) == ("mine", {"runs": {"mine": "secret", "old": ""}, "shown": "mine"})
    assert "t-verdict" in card
    ((requested, table, visitor),) = given
    assert (requested.seed, table, visitor) == (4, None, ANN)
    pasted = {tab.form.where: "paste", tab.form.pasted: "ask,reply\n" + "a,b\n" * 8, tab.browser: None}
    assert train_tab._prepare(tab, data | pasted, ANN)[1] == {"runs": {"mine": "secret"}, "shown": "mine"}
    assert given[1][1].pasted == pasted[tab.form.pasted]
    shown, browser, card, timer, train, *others = train_tab._prepare(tab, data | {tab.form.where: "file"}, ANN)
    assert (shown, browser, timer.active) == (SKIP, SKIP, False)
    assert "There is no file of rows yet." in plain(card)
    assert train == gr.update(visible=True, interactive=True)
    assert others == [*[HIDDEN] * 5, rows_view.fold(None)]
    assert len(given) == 2


def test_pressing_train_shows_that_something_happens_and_cant_be_done_twice():
    card, button = train_tab._begin()
    assert plain(card).strip() == "Preparing the run"
    assert button == gr.update(interactive=False)
    assert train_tab._relabel("epochs") == gr.update(**form.amount_looks("epochs"))


BUTTONS = ("train", "stop", "resume", "chat", "push", "again", "rows")
# What has happened to a run that has an adapter, whether a process holds it, what its panel offers, and if it is live.
PANELS = {
    "waiting": ([{"event": "queued"}], False, {"stop"}, True),
    "starting": ([{"event": "starting"}], False, set(), True),
    "training": ([START], True, {"stop"}, True),
    "scoring": ([START, {"event": "end", "reason": "steps"}], True, {"stop"}, True),
    "continuing": ([START, CLOSED], False, {"stop"}, True),
    "paused": ([START, CLOSED, {"event": "withdrawn"}], False, {"resume", "chat", "push", "again"}, False),
    "interrupted": ([START], False, {"resume", "chat", "push", "again"}, False),
    "failed": ([{"event": "error", "problems": ["No."]}], False, {"resume", "chat", "push", "again"}, False),
}


@pytest.mark.parametrize("phase", PANELS)
@pytest.mark.parametrize("has_adapter", [True, False])
def test_a_panel_offers_what_can_be_done_in_each_phase(mine, phase, has_adapter):
    events, held, offered, live = PANELS[phase]
    with_events(mine, *events)
    if not has_adapter:
        shutil.rmtree(mine.adapter)
        offered = offered - {"chat", "push"}
    with ExitStack() as stack:
        stack.enter_context(mine.training()) if held else None
        card, timer, *buttons = train_tab.panel("mine", ANN)
    assert f'data-phase="{phase}"' in card
    assert timer.active is live
    assert {name for name, button in zip(BUTTONS, buttons, strict=True) if button["visible"]} == offered


def test_a_run_in_the_queue_is_live_though_its_folder_says_that_it_ended(mine):
    with_events(mine, START, {"event": "end", "reason": "stopped"})
    run_queue.queue.join("mine", VISITOR)
    with run_queue.queue.turn("mine"):
        _, timer, *buttons = train_tab.panel("mine", ANN)
    assert timer.active is True
    assert not any(button["visible"] for button in buttons)


def test_without_a_run_the_panel_is_that_of_the_plan_and_one_that_is_gone_says_so(root):
    card, timer, train, *others = train_tab.panel("")
    assert (card, timer.active, train) == (SKIP, False, gr.update(visible=True, interactive=True))
    assert others == [*[HIDDEN] * 5, rows_view.fold(None)]
    card, timer, *buttons = train_tab.panel("gone")
    assert "There is no run 'gone'" in plain(card)
    assert (timer.active, [button["visible"] for button in buttons]) == (False, [False] * 5 + [True, False])


def test_resuming_watching_and_stopping_act_and_then_show_the_panel(mine, monkeypatch):
    done = []
    for name in ("resume", "watch", "stop"):
        monkeypatch.setattr(actions, name, lambda *given, name=name: done.append((name, *given)))
    for act, given in (
        (train_tab.resume, ("mine", KEPT, ANN)),
        (train_tab._tick, ("mine", KEPT, "", ANN)),
        (train_tab._stop, ("mine", KEPT, ANN)),
    ):
        card = next(value for value in act(*given) if isinstance(value, str))
        assert 'data-phase="finished"' in card
    holding = replace(ANN, secrets={"mine": "secret"})
    assert done == [("resume", "mine", holding), ("stop", "mine", holding)]  # there is nothing to wait for
    with_events(mine, {"event": "start", "step": 0}, {"event": "end", "reason": "window"})
    train_tab._tick("mine", KEPT, "", ANN)
    assert done[2:] == []  # for a moment
    monkeypatch.setattr(looks, "MOMENT", 0)
    train_tab._tick("mine", KEPT, "", ANN)
    assert done[2:] == [("watch", "mine", holding)]
    assert train_tab._tick("", KEPT, "", ANN)[0] == SKIP
    assert len(done) == 3


def test_what_cant_be_resumed_says_why_and_what_has_ended_meanwhile_is_shown_as_it_is(mine):
    kept, card, _, *buttons = train_tab.resume("mine", None, ANN)
    assert kept == NOBODY
    assert "has finished, so there is nothing to resume" in plain(card)
    assert [button["visible"] for button in buttons] == [False, False, False, True, True, True, True]
    assert 'data-phase="finished"' in train_tab._stop("mine", None, ANN)[0]
    for act, given in ((train_tab._stop, ("gone", None)), (train_tab._tick, ("gone", None, ANN))):
        assert "There is no run 'gone'" in plain(act(*given)[0])


def test_leaving_a_run_keeps_the_list_and_shows_the_plan():
    for browser, runs in (({"runs": ["a", "b"], "shown": "a"}, {"a": "", "b": ""}), (None, {})):
        shown, kept, *panel = train_tab._leave(browser)
        assert (shown, kept) == ("", {"runs": runs, "shown": ""})
        assert panel[2] == gr.update(visible=True, interactive=True)


def test_a_run_is_shown_with_its_recipe_in_the_form(tab, mine):
    mine.write_text("recipe.yaml", mine.recipe.with_settings({"seed": 8}).to_yaml())
    browser = {"runs": ["x"], "shown": "x"}
    values = dict(zip(train_tab.show_outputs(tab), train_tab.show(tab, "mine", browser, ANN), strict=True))
    assert values[tab.shown] == "mine"
    assert values[tab.browser] == {"runs": {"x": ""}, "shown": "mine"}
    assert values[tab.form.settings["seed"]]["value"] == 8
    assert "t-verdict" in values[tab.card]
    assert values[tab.again]["visible"] is True
    for run in ("gone", ""):
        values = dict(zip(train_tab.show_outputs(tab), train_tab.show(tab, run, browser), strict=True))
        assert (values[tab.shown], values[tab.browser]) == ("", {"runs": {"x": ""}, "shown": ""})
        assert values[tab.form.settings["seed"]] == SKIP
        assert values[tab.train]["visible"] is True
    mine.write_text("recipe.yaml", "method: [")
    values = dict(zip(train_tab.show_outputs(tab), train_tab.show(tab, "mine", None), strict=True))
    assert (values[tab.shown], values[tab.browser]) == ("mine", {"runs": {}, "shown": "mine"})
    assert "recipe.yaml is damaged" in plain(values[tab.card])
    assert values[tab.form.settings["seed"]] == SKIP


@pytest.mark.parametrize(
    ("selected", "resume", "delete"),
    [("mine", False, True), ("open", True, True), ("example", False, False), ("broken", False, True)],
)
def test_the_list_offers_what_can_be_done_with_the_selected_run(mine, selected, resume, delete):
    with_events(copied("open"), START, CLOSED, {"event": "withdrawn"})
    copied("broken").write_text("plan.json", "{")
    copied("example")
    visitor = {"runs": {"mine": "secret", "open": "", "broken": ""}, "shown": ""}
    now, listed, offered, resumed, deleted, linked, pushing, failed, *said = runs_tab.refresh(visitor, selected, ANN)
    assert failed["visible"] is False
    assert (now, *said) == (selected, HIDDEN, "", "", "")
    assert listed.count("data-run") == 4
    assert f'data-run="{selected}" aria-pressed="true"' in listed
    assert listed.count("included example") == 1
    assert [update["visible"] for update in (offered, resumed, deleted)] == [True, resume, delete]
    assert (linked["visible"], pushing["visible"]) == (selected == "mine", True)
    chosen = runs_tab._select(visitor, SimpleNamespace(run=selected), ANN)
    assert chosen[0] == selected
    for event in (SimpleNamespace(run=None), SimpleNamespace()):
        nothing, _, offered, *_ = runs_tab._select(visitor, event, ANN)
        assert (nothing, offered) == ("", HIDDEN)
    assert runs_tab.refresh({"runs": []}, "mine")[0] == ""  # it is not in this browser's list
    assert runs_tab.refresh(None)[0] == ""


def test_a_deleted_run_leaves_the_list_and_the_others_stay(mine):
    copied("other")
    visitor = {"runs": ["other", "mine"], "shown": "other"}
    browser, selected, listed, offered, *_ = runs_tab._delete("mine", visitor, ANN)
    assert browser == {"runs": {"other": ""}, "shown": "other"}
    assert (selected, offered) == ("", HIDDEN)
    assert "other" in listed
    assert 'data-run="mine"' not in listed
    assert not mine.path.exists()
    with Run(mine.path.parent / "other").training():
        browser, selected, _, offered, *_, problem, pushed, _ = runs_tab._delete("other", visitor | {"shown": ""}, ANN)
    assert (browser, selected, offered["visible"], pushed) == (SKIP, "other", True, "")
    assert "in training" in plain(problem)


def test_a_failed_merge_is_said_before_a_push_and_asks_for_consent(mine):
    mine.write_json("merge_check.json", MERGED | {"merge_failed": True, "merge_error": 3.0, "merge_tolerance": 0.1})
    failed = runs_tab.refresh({"runs": {"mine": "secret"}, "shown": ""}, "mine", ANN)[7]
    assert (failed["visible"], failed["value"]) == (True, False)
    assert failed["info"].startswith("Merging changed the answers: ")
    mine.write_text("merge_check.json", "{")
    assert runs_tab.refresh({"runs": {"mine": "secret"}, "shown": ""}, "mine", ANN)[7]["visible"] is False


def test_a_push_links_to_what_was_pushed_and_forgets_the_token(monkeypatch):
    asked = []

    def push(*given, **options):
        tell = options.pop("tell")
        asked.append((*given, *options.values()))
        if given[1] == "full":
            raise TunerError("The Hub is full.")
        tell({"event": "push", "repo": "ann/x", "file": "a<b.safetensors", "sent": 2**20, "bytes": 4 * 2**20})
        return "https://hub/ann/x"

    monkeypatch.setattr(actions, "push", push)
    *_, (sent, kept), (told, token) = runs_tab._push("mine", None, "ann/x", False, False, "hf_x")
    assert in_order(plain(sent), "ann/x: a<b.safetensors, 1 MB of 4 MB sent")
    assert "width:25%" in sent
    assert "a<b" not in sent
    assert kept == SKIP
    assert in_order(plain(told), "Pushed:", "https://hub/ann/x")
    assert token == ""
    signed_in = replace(ANN, token="hf_own")
    list(runs_tab._push("mine", None, "ann/x", True, True, "", "both", "mine", "version-2", signed_in))
    assert [(*given[:3], given[3].token, *given[4:]) for given in asked] == [
        ("mine", "ann/x", False, "hf_x", False, "adapter", "", "main"),
        ("mine", "ann/x", True, "hf_own", True, "both", "mine", "version-2"),
    ]
    *_, (told, token) = runs_tab._push("mine", None, "full", True, False, "hf_x")
    assert in_order(plain(told), "Nothing was pushed", "The Hub is full.")
    assert token == SKIP
    assert len(asked) == 3
