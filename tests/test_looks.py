"""A look at a run costs next to nothing, however long the run is and however many people watch it."""

import json
import os
import shutil
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import gradio as gr
import pytest
from conftest import small_recipe
from test_events import bytes_read

from tuner import runs
from tuner.runs import Run
from tuner.ui import actions, looks, render, run_queue, train_tab
from tuner.ui.visitor import Visitor

STEPS = 20_000
SKIP = gr.skip()


def step(number: int) -> dict:
    """A step's event as training writes it."""
    figures = {"loss": 2 + 1 / number, "learning_rate": 1e-3, "grad_norm": 0.5, "tokens": 100 * number}
    times = {"tokens_per_second": 900, "seconds": 0.1 * number, "seconds_to_go": 9.0, "epoch": 0.1}
    return {"event": "step", "step": number, "steps": 2 * STEPS, **figures, **times}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in the middle of its 40,000 steps."""
    run = runs.create(small_recipe(), path=tmp_path_factory.mktemp("long") / "long")
    run.write_json("plan.json", {"steps": 2 * STEPS, "forecast": None})
    events = [{"event": "start", "step": 0, "steps": 2 * STEPS}, *map(step, range(1, STEPS + 1))]
    run.write_text("events.jsonl", "".join(json.dumps({"time": 0.0, **event}) + "\n" for event in events))
    return run.path


@pytest.fixture
def long_run(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """A copy of that run, in training."""
    monkeypatch.setattr("tuner.runs.RUNS", tmp_path)
    run = Run(shutil.copytree(written, tmp_path / "long"))
    with run.training():
        yield run


@pytest.fixture
def rendered(monkeypatch) -> list[str]:
    """The runs whose cards were made."""
    rendered, run_card = [], render.run_card
    monkeypatch.setattr(render, "run_card", lambda run, now: rendered.append(run.id) or run_card(run, now))
    return rendered


def tick(seen: str = "", session: str = "ann") -> list:
    """What a page that watches the run is sent."""
    return train_tab._tick("long", {}, seen, Visitor(session))


def test_a_tick_of_a_long_run_reads_only_what_is_new_and_takes_no_time(long_run, monkeypatch):
    tick()
    monkeypatch.setattr(looks, "MOMENT", 0)  # each tick looks anew
    used, size = [], 0
    with bytes_read(monkeypatch) as (counts, _):
        for number in range(STEPS + 1, STEPS + 11):
            size += len(json.dumps(long_run.append(step(number)))) + 1
            began = time.thread_time()
            values = tick()
            used.append(time.thread_time() - began)
            assert f"Step {number:,} of" in values[0]
    print(f"\na tick reads {counts['events.jsonl'] / 10:.0f} bytes of events and takes {1000 * min(used):.1f} ms")
    assert counts["events.jsonl"] == size
    assert min(used) < 0.03  # the budget; most of it goes into the card
    assert len(values[0]) < 40_000  # however many steps there are


def test_a_page_is_sent_only_what_it_has_not_seen(long_run, monkeypatch):
    monkeypatch.setattr(looks, "MOMENT", 0)
    *_, seen = tick()
    assert tick(seen) == [SKIP] * 10
    long_run.append(step(STEPS + 1))
    *_, later = values = tick(seen)
    assert later != seen
    assert f"Step {STEPS + 1:,} of" in values[0]
    assert tick(later) == [SKIP] * 10
    long_run.stop()
    assert "Stopping after this step" in tick(later)[0]
    # A page that missed an answer has still the old mark, so it is sent the card again.
    assert tick(seen)[0] == tick("")[0] != SKIP


def test_all_who_watch_share_one_look_and_one_card(long_run, rendered, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(looks.time, "monotonic", lambda: clock[0])
    looked, look = [], run_queue.look
    monkeypatch.setattr(run_queue, "look", lambda run: looked.append(1) or look(run))
    cards = [tick(session=f"page{number}")[0] for number in range(200)]
    assert len(set(cards)) == 1
    assert (len(looked), len(rendered)) == (1, 1)
    clock[0] += looks.MOMENT
    threads = [threading.Thread(target=tick) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert (len(looked), len(rendered)) == (2, 1)  # nothing has changed
    long_run.append(step(STEPS + 1))
    assert tick()[0] == cards[0]  # for a moment
    assert f"Step {STEPS + 1:,} of" in train_tab.panel("long")[0]  # for who has pressed a button, at once
    assert (len(looked), len(rendered)) == (3, 2)


def test_what_a_look_shows_changes_with_everything_that_the_card_shows(long_run, rendered):
    def card() -> str:
        return looks.at("long").card

    assert card() == card()
    assert len(rendered) == 1
    for event, words in (
        ({"event": "micro_batch", "rows": 2, "of": 8}, "2 rows at a time"),
        ({"event": "heldout", "step": STEPS, "loss": 1.5}, "held-out loss"),
        ({"event": "evaluating", "row": 3, "rows": 7}, "3 of 7 answered"),
    ):
        before = len(rendered)
        long_run.append(event)
        assert words in card()
        assert len(rendered) == before + 1


def test_a_run_that_is_gone_says_so_and_one_made_again_under_its_name_is_shown(tmp_path, monkeypatch):
    monkeypatch.setattr("tuner.runs.RUNS", tmp_path)
    assert "There is no run" in looks.at("new").card
    assert looks.at("new").phase == "gone"
    runs.create(small_recipe(), path=tmp_path / "new").write_json("plan.json", {"steps": 3})
    assert looks.at("new").phase == "prepared"
    shutil.rmtree(tmp_path / "new")
    assert looks.at("new").phase == "gone"


def test_looks_of_no_more_runs_are_kept_than_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(looks, "MOST_LOOKS", 3)
    for number in range(6):
        looks.at(f"none{number}")
    assert [folder.name for folder in looks._watched] == ["none3", "none4", "none5"]


def test_the_more_pages_are_open_the_less_often_each_of_them_looks(monkeypatch):
    clock = [5000.0]
    monkeypatch.setattr(looks.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(looks, "_pages", type(looks._pages)())
    pages = {number: looks.seconds_between(f"page{number}") for number in range(1, 3001)}
    for number, seconds in ((1, 1), (40, 1), (41, 2), (80, 2), (81, 4), (1000, 32), (3000, 32)):
        assert pages[number] == pytest.approx(seconds, rel=0.25 * (seconds > 1))
    assert len({pages[number] for number in range(2000, 3000)}) > 100  # they don't look all at once
    clock[0] += looks.AWAY + 1  # all of them have been closed
    assert looks.seconds_between("new") == 1


def test_a_thousand_runs_that_are_open_take_little_memory(long_run):
    look = looks.at("long")
    now = run_queue.look(actions.open_run("long"))
    assert len(now.losses) < 400
    assert len(look.card) < 40_000
    assert os.path.getsize(long_run.log.path) > 4 * 2**20  # of which nothing else is kept


@pytest.mark.parametrize("name", ["x" * 65, "../x", "", "a b", "x" * 10**6])
def test_of_what_is_no_id_nothing_is_kept(name, monkeypatch):
    monkeypatch.setattr(looks, "_watched", OrderedDict())
    assert looks.at(name).phase == "gone"
    assert not looks._watched
