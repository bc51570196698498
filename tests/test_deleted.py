"""A run that is deleted while something else is done with it: that says so in a sentence, and leaves nothing."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pkgutil import resolve_name

import pytest
from conftest import plain
from visitors_runs import ANN, streamed, with_events

from tuner.errors import TunerError
from tuner.runs import Run
from tuner.ui import actions, run_queue, train_tab
from tuner.ui.visitor import Visitor

pytest_plugins = ["page_fixtures"]

START, CLOSED = {"event": "start", "step": 0, "steps": 9}, {"event": "end", "reason": "window", "step": 4}
DELETED = ("Run mine was deleted.",)


@pytest.fixture
def deleting(mine: Run, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Deletes the run as soon as the function of this name is called, which then does what it does."""
    monkeypatch.setattr(run_queue, "queue", run_queue.RunQueue(0))

    def delete_at(place: str) -> None:
        do = resolve_name(place)

        def late(*given, **named):
            monkeypatch.setattr(place, do)
            Run(mine.path).delete()
            return do(*given, **named)

        monkeypatch.setattr(place, late)

    yield delete_at
    assert not os.path.lexists(mine.path)
    assert run_queue.queue.held() == []


def follow(run: str, visitor: Visitor) -> None:
    """Follow the run into its next window."""
    opened = actions.open_run(run)
    list(streamed(run_queue.follow(opened, visitor, opened.reader())))


def chat(run: str, visitor: Visitor) -> None:
    """Ask for an answer."""
    said = [{"role": "user", "content": "Hi"}]
    list(actions.chat(actions.lineup([run]), {"base": said, "adapter": said}, visitor, **SAMPLING))


def push(run: str, visitor: Visitor) -> None:
    """Push to a Hub."""
    actions.push(run, "ann/adapter", True, visitor)


SAMPLING = {"temperature": 0.0, "top_p": 1.0, "max_new_tokens": 2, "seed": 0}
APPEND = "tuner.events.EventLog.append"
DEEDS = [
    (actions.resume, APPEND),
    (actions.resume, "tuner.ui.run_queue.start"),
    (actions.stop, APPEND),
    (actions.stop, "tuner.ui.run_queue.withdraw"),
    (actions.watch, APPEND),
    (follow, APPEND),
    (actions.merge, "tuner.gpu.merge"),
    (actions.merge, "tuner.inference.merge._version"),
    (actions.merge, "tuner.inference.merge.load_from_disk"),
    (actions.merge, "tuner.inference.merge._save"),
    (chat, "tuner.gpu.chat"),
    (chat, "tuner.inference.variants.shared_base"),
    (push, "tuner.hub.push._run_problem"),
    (push, "tuner.hub.push._check_rights"),
    (push, "tuner.hub.push._look_at"),
    (push, "tuner.hub.upload.Upload._commit"),
]


@pytest.mark.parametrize(("do", "place"), DEEDS, ids=lambda value: getattr(value, "__name__", value))
def test_what_is_done_with_a_run_that_is_deleted_meanwhile_ends_with_that_sentence(
    do, place, deleting, mine, hub, caplog, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", hub.url)
    ann = replace(ANN, token=hub.user("ann"))
    with_events(mine, START, CLOSED)
    deleting(place)
    with pytest.raises(TunerError) as caught:
        do("mine", ann)
    assert caught.value.problems == DELETED
    assert [record for record in caplog.records if record.exc_info] == []


def test_a_run_that_is_deleted_just_before_it_is_stopped_is_not_said_to_stop(mine, deleting):
    with_events(mine, START, CLOSED)
    run_queue.queue = run_queue.RunQueue(1)
    run_queue.queue.join("mine", "ann")
    with run_queue.queue.turn("mine"):
        deleting("tuner.runs.Run.stop")
        with pytest.raises(TunerError) as caught:
            actions.stop("mine", ANN)
    assert caught.value.problems == DELETED


def test_a_page_that_watches_a_run_as_it_is_deleted_shows_that_it_is_gone(mine, deleting, caplog):
    with_events(mine, START, CLOSED)
    deleting(APPEND)
    assert "There is no run 'mine'." in plain(train_tab._tick("mine", None, "", ANN)[0])
    assert caplog.records == []
