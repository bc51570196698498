"""The guards of a shared page are called on a visitor's path: the endpoint's function, the tab's handler."""

import os
import shutil
import time
from contextlib import ExitStack
from types import SimpleNamespace

import gradio as gr
import pytest
from conftest import small_recipe
from visitors_runs import ANN, request_of, streamed

from tuner import runs, runs_cleanup
from tuner.errors import TunerError
from tuner.planning import forecast, plan
from tuner.runs import Run, create
from tuner.ui import actions, api, ownership, page, playground_tab, progress, render, run_queue, runs_tab, train_tab
from tuner.ui.visitor import ANYBODY
from tuner.ui.wiring import NOBODY

VISITOR = ANN
ROWS = "prompt,completion\n" + "".join(f"hey can u do task {i},Could you please do task {i}?\n" for i in range(24))
SMALL = "method: {rank: 4}\nbudget: {steps: 2}\n"
DAY = 86400


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "RUNS", tmp_path / "runs")
    return tmp_path / "runs"


@pytest.fixture
def mine(finished, root) -> Run:
    """A copy of the finished run among this visitor's runs."""
    run = Run(shutil.copytree(finished.path, root / "mine"))
    ownership.claim(run, ANN)
    return run


@pytest.fixture
def crowd():
    """Others train at all places, so that who comes now waits."""
    with ExitStack() as stack:
        for number in range(run_queue.queue.places):
            run_queue.queue.join(f"other{number}", f"visitor{number}")
            assert stack.enter_context(run_queue.queue.turn(f"other{number}"))
        yield
        for run in run_queue.queue.held():
            run_queue.queue.leave(run)


@pytest.fixture
def tabs():
    """The tabs of a page, and the page."""
    with gr.Blocks() as blocks:
        browser = gr.BrowserState(NOBODY)
        yield SimpleNamespace(
            page=blocks,
            train=train_tab.build(browser),
            mine=runs_tab.build(browser, has_oauth=False),
        )


def handler(blocks: gr.Blocks, button):
    """The first thing that a click on the button does: a function, and its inputs."""
    return next(f for f in blocks.fns.values() if (button._id, "click") in f.targets)


def prepared(tabs) -> list:
    """What a click on Train answers when the form is as the page starts with it, with pasted rows."""
    form = tabs.train.form
    data = {component: component.value for component in form.inputs}
    data |= {tabs.train.shown: "", tabs.train.browser: NOBODY}
    return train_tab._prepare(tabs.train, data, VISITOR)


def aged(name: str, days: int = 2) -> Run:
    """A run that finished so many days ago."""
    run = create(small_recipe(), path=runs.RUNS / name)
    run.append({"event": "end", "reason": "steps"})
    run.write_json("evaluation.json", {})
    then = time.time() - days * DAY
    os.utime(run.path / "events.jsonl", (then, then))
    return run


def by_endpoint(tabs) -> str:
    return next(streamed(api.train(SMALL, None, ROWS, visitor=VISITOR)))["run"]


def by_page(tabs) -> str:
    return prepared(tabs)[0]


@pytest.mark.parametrize("way", [by_endpoint, by_page])
def test_preparing_a_run_makes_room_but_takes_neither_the_example_nor_what_waits(way, tabs, crowd, monkeypatch):
    old, example, waiting = aged("old"), aged(actions.EXAMPLE, 9), aged("waiting", 9)  # which would go first
    run_queue.queue.join("waiting", "bob")
    (old.path / "ballast").write_bytes(bytes(16 * 2**20))
    monkeypatch.setattr(runs_cleanup, "LIMIT", 16 * 2**20)  # enough for the new run
    new = way(tabs)
    assert not old.path.exists()
    assert example.path.exists()
    assert waiting.path.exists()
    assert [run.id for run in runs.list_runs() if run.id == new]
    assert runs.open_run(new).last_event("queued")


@pytest.mark.parametrize("way", [by_endpoint, by_page])
def test_room_that_is_there_is_not_made(way, tabs, crowd):
    old = aged("old")
    way(tabs)
    assert old.path.exists()


def test_a_visitors_model_may_not_be_larger_than_the_page_takes(tabs, monkeypatch):
    parameters = plan.check(small_recipe()).plan["model_parameters"]
    monkeypatch.setattr(forecast, "MAX_PARAMETERS", parameters - 1)
    (problem,) = api.check(SMALL, None, ROWS)["problems"]
    assert "billion parameters" in problem
    assert "billion parameters" in api.preview(SMALL, None, ROWS)["problems"][0]
    with pytest.raises(TunerError, match="billion parameters"):
        next(streamed(api.train(SMALL, None, ROWS, visitor=VISITOR)))
    assert "billion parameters" in prepared(tabs)[2]
    assert runs.list_runs() == []
    plan.check(small_recipe())  # on one's own machine one may
    monkeypatch.setattr(forecast, "MAX_PARAMETERS", parameters)
    assert "plan" in api.check(SMALL, None, ROWS)


def test_the_limits_on_seconds_and_tokens_hold_for_the_endpoints(monkeypatch):
    monkeypatch.setattr(forecast, "MAX_TOKENS", 10)
    monkeypatch.setattr(forecast, "MAX_SECONDS", 0.001)
    assert len(api.check(SMALL, None, ROWS)["problems"]) == 2
    with pytest.raises(TunerError, match="tokens"):
        next(streamed(api.train(SMALL, None, ROWS, visitor=VISITOR)))


def test_a_run_in_training_or_in_line_is_not_deleted(mine, tabs):
    browser = {"runs": ["mine"], "shown": ""}
    delete = handler(tabs.page, tabs.mine.sure)
    with mine.training():
        with pytest.raises(TunerError, match="in training"):
            api.delete("mine", visitor=ANN)
        assert "in training" in delete.fn("mine", browser, *request_of(VISITOR))[-3]
    run_queue.queue.join("mine", "ann")
    try:
        with pytest.raises(TunerError, match="in training"):
            api.delete("mine", visitor=ANN)
    finally:
        run_queue.queue.leave("mine")
    assert mine.path.exists()
    left, *_ = delete.fn("mine", browser, *request_of(VISITOR))
    assert left["runs"] == {}
    assert not mine.path.exists()


def test_a_finished_run_or_one_in_training_is_not_begun_again(mine):
    with pytest.raises(TunerError, match="finished"):
        next(streamed(api.resume("mine", visitor=VISITOR)))
    (mine.path / "evaluation.json").unlink()
    with mine.training(), pytest.raises(TunerError, match="in training"):
        next(streamed(api.resume("mine", visitor=VISITOR)))
    assert not mine.last_event("queued")


@pytest.mark.parametrize("private", [True, False])
def test_private_or_public_goes_from_the_page_to_the_hub(private, mine, tabs, hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", hub.url)
    click, tab = handler(tabs.page, tabs.mine.push), tabs.mine
    given = {
        tab.selected: "mine",
        tab.browser: None,
        tab.repository: "alice/x",
        tab.private: private,
        tab.failed_merge: False,
        tab.what: "adapter",
        tab.data_name: "",
        tab.into: "main",
        tab.token: hub.user("alice"),
    }
    *_, (told, token) = click.fn(*(given[component] for component in click.inputs), *request_of(VISITOR))
    assert "alice/x" in told
    assert token == ""
    assert hub.repo("alice/x").private == hub.repo("alice/x-base").private == private
    assert tab.private.value is True  # as the page starts


def test_a_push_that_is_refused_says_so_and_keeps_the_token_that_was_typed(mine, tabs):
    click, tab = handler(tabs.page, tabs.mine.push), tabs.mine
    given = {tab.selected: "mine", tab.browser: None, tab.repository: "no name!", tab.private: True, tab.token: "hf_x"}
    given |= {tab.failed_merge: False, tab.what: "adapter", tab.data_name: "", tab.into: "main"}
    *_, (told, token) = click.fn(*(given[component] for component in click.inputs), *request_of(VISITOR))
    assert "no name!" in told
    assert "Pushed" not in told
    assert token != ""


def test_who_has_not_signed_in_is_not_pushed_for_with_anothers_token(mine, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", hub.user("alice"))
    *_, (told, _) = runs_tab._push("mine", None, "alice/x", True, False, "", visitor=VISITOR)
    assert "There is no token" in told
    assert not hub.seen


BUTTONS = ("train", "stop", "resume", "chat", "push", "again", "rows")
SHOWN = {
    "prepared": ({"resume", "again", "chat", "push"}, []),
    "training": ({"stop"}, [{"event": "start", "step": 0, "steps": 9}]),
    "stopped": ({"resume", "again", "chat", "push"}, [{"event": "end", "reason": "stopped", "step": 3}]),
    "failed": ({"resume", "again", "chat", "push"}, [{"event": "error", "problems": ["It broke."]}]),
    "finished": ({"again", "chat", "push", "rows"}, [{"event": "end", "reason": "steps", "step": 8}]),
}


@pytest.mark.parametrize("phase", SHOWN)
def test_a_run_offers_what_can_be_done_with_it_now(phase, mine):
    wanted, events = SHOWN[phase]
    (mine.path / "events.jsonl").unlink()
    for event in events:
        mine.append(event)
    with ExitStack() as stack:
        if phase == "training":
            stack.enter_context(mine.training())
        card, timer, *buttons = train_tab.panel("mine", ANN)
    assert f'data-phase="{phase}"' in card
    assert timer.active == (phase == "training")
    assert {name for name, button in zip(BUTTONS, buttons, strict=True) if button["visible"]} == wanted


@pytest.mark.parametrize(("before", "said"), [(0, "next"), (1, "1 run "), (2, "2 runs ")])
def test_a_waiting_run_is_told_how_many_are_before_it(before, said, mine, crowd):
    for number in range(before):
        run_queue.queue.join(f"earlier{number}", f"somebody{number}")
    run_queue.queue.join("mine", "ann")
    assert run_queue.look(mine).phase == "waiting"
    assert said in render.run_card(mine)
    assert api.status("mine")["place"] == before + 1


def test_progress_says_what_is_done_of_what_there_is():
    step = {"seconds_to_go": 75, "loss": 1.5, "tokens_per_second": 100, "step": 30}
    told = render.status(progress.Progress("training", 30, 120, last=step), None)[1]
    assert "30" in told.partition("120")[0]
    assert "1 min 15 s" in told
    told = render.status(progress.Progress("scoring", 120, 120, scored=(3, 40)), None)[1]
    assert "3 of 40" in told
    told = render.status(progress.Progress("training", 30, 120, last=step, stopping=True), None)[1]
    assert "1 min 15 s" not in told
    numbers = render._numbers(progress.Progress("training", 30, 120, heldout=[(0, 2.5), (25, 1.25)], last=step))
    assert "1.250" in numbers
    assert "2.500" not in numbers
    for phase in ("paused", "interrupted"):
        assert "scoring" in render.status(progress.Progress(phase, 120, 120), None)[1]
        assert "scoring" not in render.status(progress.Progress(phase, 119, 120), None)[1]


def test_a_run_offered_for_chatting_has_an_adapter_and_names_its_base(mine, root):
    create(small_recipe(), path=root / "untrained")
    ((title, run),) = playground_tab.choices(["mine", "untrained", "gone"])
    assert run == "mine"
    assert "tiny-office" in title


def test_an_old_problem_is_not_shown_while_the_run_waits_to_be_resumed(root):
    run = create(small_recipe(), path=root / "broken")
    run.append({"event": "error", "problems": ["It broke."]})
    assert "It broke." in render.run_card(run)
    run.append({"event": "queued"})
    assert "It broke." not in render.run_card(run)


def test_the_second_question_before_a_run_is_deleted_is_put_anew_for_each_run(mine, tabs):
    values = dict(zip(tabs.mine.outputs, runs_tab.refresh({"runs": ["mine"]}, "mine", ANN), strict=True))
    assert values[tabs.mine.delete]["visible"]
    assert values[tabs.mine.sure]["visible"] is False


def test_a_link_opens_its_own_run_and_not_the_one_that_was_shown_last(mine, root):
    shutil.copytree(mine.path, root / "other")
    built = page.build()
    arrive = next(f for f in built.fns.values() if (built._id, "load") in f.targets)
    for run, kept, shown in (("mine", "other", "mine"), ("", "other", "other"), ("", "", "")):
        opened = {"run": run, "secret": ""}
        values = arrive.fn({"runs": {}, "shown": kept, "opened": opened}, *request_of(ANYBODY))
        assert (values[0], values[1]["shown"]) == (shown, shown)


def test_what_is_not_on_this_machine_is_downloaded_only_when_the_visitor_says_so(tabs, monkeypatch):
    monkeypatch.setattr(actions, "is_local", lambda requested: False)
    check, fetch = train_tab.checkers(tabs.train)
    data = {component: component.value for component in tabs.train.form.inputs} | {tabs.train.shown: ""}
    *_, (card, _, button) = check(data, *request_of(VISITOR))
    assert "per epoch" not in card
    assert button["visible"]
    *_, (card, _, button) = fetch(data, *request_of(VISITOR))
    assert "per epoch" in card
    assert not button["visible"]
