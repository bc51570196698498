"""Heartbeats: a thread works while the generator yields, and nothing of what it did is lost."""

import threading
import time

import pytest

from tuner import heartbeat
from tuner.heartbeat import with_heartbeat
from tuner.ui import actions, runs_tab

SECONDS = 20  # to wait for a thread that should go on at once


@pytest.fixture
def stopped(monkeypatch):
    monkeypatch.setattr(heartbeat, "HEARTBEAT", SECONDS)  # none, however busy the machine is
    return threading.Event()


def test_a_heartbeat_comes_at_least_once_a_second():
    assert 0 < heartbeat.HEARTBEAT <= 0.5


def test_values_come_in_order_with_a_heartbeat_in_each_pause(monkeypatch, stopped):
    go_on = threading.Event()

    def work(put) -> None:
        for value in ({"step": 1}, {}, 0):
            put(value)
        assert go_on.wait(SECONDS)
        put("last")

    values = with_heartbeat(work, stopped.set)
    assert [next(values) for _ in range(3)] == [{"step": 1}, {}, 0]
    monkeypatch.setattr(heartbeat, "HEARTBEAT", 0.02)
    assert [next(values) for _ in range(2)] == [None, None]
    go_on.set()
    assert [value for value in values if value is not None] == ["last"]
    assert not stopped.is_set()


def test_an_error_of_the_work_is_raised_after_what_it_put(stopped):
    def work(put) -> None:
        put(1)
        raise KeyError("odd")

    values = with_heartbeat(work, stopped.set)
    assert next(values) == 1
    with pytest.raises(KeyError, match="odd"):
        list(values)


def test_whoever_stops_listening_stops_the_work_and_waits_for_its_end(stopped):
    done = []

    def work(put) -> None:
        put(1)
        assert stopped.wait(SECONDS)
        time.sleep(0.05)  # its last step
        done.append(threading.current_thread().daemon)

    values = with_heartbeat(work, stopped.set)
    assert next(values) == 1
    values.close()
    assert done == [True]  # a daemon, so that it can't keep the process alive


def test_work_that_has_ended_is_not_stopped(stopped):
    threads = set(threading.enumerate())
    values = with_heartbeat(lambda put: put(1), stopped.set)
    assert next(values) == 1
    for thread in set(threading.enumerate()) - threads:
        thread.join(SECONDS)
    values.close()
    assert not stopped.is_set()


def test_a_last_step_of_many_heartbeats_is_waited_for(monkeypatch, stopped):
    monkeypatch.setattr(heartbeat, "HEARTBEAT", 0.01)
    done = []

    def work(put) -> None:
        put(1)
        assert stopped.wait(SECONDS)
        time.sleep(0.3)  # the last step and its checkpoint
        done.append(True)

    values = with_heartbeat(work, stopped.set)
    assert next(values) == 1
    values.close()
    assert done


def test_without_a_stop_whoever_stops_listening_does_not_wait():
    left, done = threading.Event(), threading.Event()

    def work(put) -> None:
        put(1)
        assert left.wait(SECONDS)
        done.set()

    values = with_heartbeat(work, None)
    assert next(values) == 1
    values.close()  # would hang until the work ends, which waits for what comes next
    left.set()
    assert done.wait(SECONDS)


def test_pushes_whose_visitors_have_left_keep_their_places_and_nobody_waits_for_them(monkeypatch):
    go_on = threading.Event()

    def push(*given, tell, **options) -> str:
        tell({"repo": "ann/x", "file": "a", "sent": 1, "bytes": 2})
        assert go_on.wait(SECONDS)
        return "https://there"

    monkeypatch.setattr(actions, "push", push)
    for _ in range(runs_tab.AT_ONCE):
        left = runs_tab._push("example", None, "x", True, False, "token")
        assert "ann/x: a" in [next(left), next(left)][1][0]
        left.close()
    refused = runs_tab._push("example", None, "x", True, False, "token")
    assert "Try again in a few minutes" in [next(refused), next(refused)][1][0]
    go_on.set()
    for _ in range(runs_tab.AT_ONCE):
        assert runs_tab._pushing.acquire(timeout=SECONDS)
    runs_tab._pushing.release(runs_tab.AT_ONCE)
    assert "https://there" in str(list(runs_tab._push("example", None, "x", True, False, "token")))
