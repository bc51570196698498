"""The queue for the places to train in, and the thread that takes each run through its turn."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from contextvars import ContextVar

import pytest
from conftest import small_recipe

from tuner import gpu, runs
from tuner.errors import TunerError
from tuner.events import EventReader
from tuner.runs import Run
from tuner.ui import run_queue
from tuner.ui.run_queue import RunQueue

SECONDS = 20  # to wait for a thread that should be done at once
VISITOR = ContextVar("visitor")


class Watched(RunQueue):
    """A queue that tells when a thread has begun to wait for its turn."""

    def __init__(self, places: int):
        super().__init__(places)
        self.asked: dict[str, threading.Event] = {}

    def _is_next(self, run: str) -> bool:
        self.asked.setdefault(run, threading.Event()).set()
        return super()._is_next(run)


class Waiter(threading.Thread):
    """A thread that takes a run's turn: `served` is what it got, `done` ends the turn."""

    def __init__(self, queue: Watched, run: str):
        super().__init__(daemon=True)
        self.queue, self.run_id, self.served, self.ended = queue, run, None, False
        self.through, self.done = threading.Event(), threading.Event()
        queue.asked[run] = threading.Event()
        self.start()
        # It holds the queue's lock from here until it waits, so whatever is done to the queue comes later.
        assert queue.asked[run].wait(SECONDS)

    def run(self) -> None:
        """Take the turn."""
        with self.queue.turn(self.run_id) as self.served:
            self.through.set()
            self.done.wait(SECONDS)
        self.ended = True

    def result(self) -> bool:
        """Whether the turn was served, as soon as it is known."""
        assert self.through.wait(SECONDS)
        return self.served


def line(places: int, *joined: str) -> Watched:
    """A queue that these runs have joined; a run's first letter is its visitor."""
    queue = Watched(places)
    for run in joined:
        assert queue.join(run, run[0])
    return queue


@pytest.mark.parametrize(
    ("training", "waiting", "order"),
    [
        ((), ("a1", "a2", "b1", "b2", "c1"), ["a1", "b1", "c1", "a2", "b2"]),
        (("a1",), ("a2", "a3", "b1"), ["b1", "a2", "a3"]),
        (("a1", "b1", "b2"), ("b3", "a2", "a3"), ["a2", "b3", "a3"]),
        (("a1", "a2", "b1"), ("a3", "b2", "b3", "c1"), ["c1", "b2", "a3", "b3"]),
    ],
)
def test_next_is_the_visitor_with_the_fewest_runs_in_training_and_then_who_came_first(training, waiting, order):
    queue = line(9)
    with ExitStack() as stack:
        for run in training:
            queue.join(run, run[0])
            assert stack.enter_context(queue.turn(run))
        for run in waiting:
            assert queue.join(run, run[0])
        assert [queue.place(run) for run in order] == list(range(1, len(order) + 1))
        assert queue.held() == [*waiting, *training]
        assert all(queue.place(run) is None for run in training)
    assert queue.held() == list(waiting)


def test_a_run_is_in_the_queue_once_and_leaves_it_once():
    queue = line(1, "a")
    assert (queue.holds("a"), queue.holds("b")) == (True, False)
    assert not queue.join("a", "another")
    assert not queue.leave("b")
    with queue.turn("a") as served:
        assert served
        assert queue.holds("a")
        assert not queue.join("a", "another")
        assert not queue.leave("a")  # it is in training, and ends by itself
        assert queue.holds("a")
    assert not queue.holds("a")
    assert queue.join("a", "another")
    assert queue.leave("a")
    assert not queue.leave("a")
    assert queue.held() == []


def test_as_many_train_at_once_as_there_are_places_and_a_place_given_back_goes_to_the_next():
    queue = line(2, "a", "b", "c", "d")
    last, third, second = (Waiter(queue, run) for run in "dcb")
    first = Waiter(queue, "a")  # which lets the second take its turn as well
    assert first.result()
    assert second.result()
    assert (queue.place("c"), queue.place("d")) == (1, 2)
    assert not third.through.is_set()
    first.done.set()
    assert third.result()
    assert (queue.place("d"), last.through.is_set()) == (1, False)
    third.done.set()
    second.done.set()
    assert last.result()
    last.done.set()
    for waiter in (first, second, third, last):
        waiter.join(SECONDS)
    assert queue.held() == []


def test_who_leaves_the_queue_waits_no_longer_and_lets_the_next_one_through():
    queue = line(2, "a", "b", "c")
    with queue.turn("a"):
        # There is a place left, for b, which has not taken its turn yet.
        third = Waiter(queue, "c")
        assert queue.leave("b")
        assert third.result()
        queue.join("d", "d")
        fourth = Waiter(queue, "d")
        assert queue.leave("d")
        assert not fourth.result()
        for waiter in (third, fourth):
            waiter.done.set()
            waiter.join(SECONDS)
            assert waiter.ended


def test_a_turn_that_breaks_gives_its_place_back():
    queue = line(1, "a", "b")
    with pytest.raises(RuntimeError), queue.turn("a"):
        raise RuntimeError
    assert queue.held() == ["b"]
    with queue.turn("b") as served:
        assert served


# A run's turn


@pytest.fixture
def queue(monkeypatch) -> RunQueue:
    """A queue with one place, in place of the app's."""
    queue = RunQueue(1)
    monkeypatch.setattr(run_queue, "queue", queue)
    monkeypatch.setattr(run_queue, "POLL", 0.001)
    return queue


@pytest.fixture
def run(tmp_path) -> Run:
    return runs.create(small_recipe(), path=tmp_path / "run")


class Training:
    """Stands in for a window of training: waits until it may end, then writes these events, or raises."""

    def __init__(self):
        self.trained, self.visitors, self.may_end = [], [], threading.Event()
        self.events, self.error = [{"event": "start", "step": 0}, {"event": "end", "reason": "stopped"}], None
        self.may_end.set()

    def __call__(self, run: Run, slot: int) -> Iterator[dict]:
        self.trained.append(run.id)
        self.visitors.append(VISITOR.get(None))
        assert self.may_end.wait(SECONDS)
        for event in self.events:
            yield run.append(event)
        if self.error:
            raise self.error


@pytest.fixture
def training(monkeypatch) -> Training:
    training = Training()
    monkeypatch.setattr(gpu, "train", training)
    return training


def until(true: Callable[[], bool]) -> None:
    """Wait until it is true."""
    deadline = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def take_turn(run: Run) -> list[str]:
    """Queue the run and wait for the end of its turn; what was logged meanwhile."""
    before = len(run.events())
    run_queue.start(run, "ann", {"event": "queued"})
    until(lambda: not run_queue.queue.holds(run.id))
    return [event["event"] for event in run.events()[before:]]


def test_a_run_is_trained_once_in_its_turn_for_the_visitor_who_asked(run, queue, training):
    training.may_end.clear()
    VISITOR.set("ann's request")
    before = set(threading.enumerate())
    run_queue.start(run, "ann", {"event": "queued", "signed_in": True})
    run_queue.start(run, "ann", {"event": "queued"})  # which is queued already
    until(lambda: training.trained)
    assert all(thread.daemon for thread in set(threading.enumerate()) - before)  # so that the app can be ended
    run_queue.start(run, "ann", {"event": "queued"})
    queue.join("another of ann's", "ann")
    queue.join("bob's", "bob")
    assert queue.place("bob's") == 1
    training.may_end.set()
    until(lambda: not queue.holds(run.id))
    assert training.trained == [run.id]
    assert training.visitors == ["ann's request"]  # ZeroGPU reads there whose quota to charge
    assert [e["event"] for e in run.events()] == ["queued", "starting", "start", "end"]
    assert run.events()[0]["signed_in"]


def test_a_run_that_left_the_queue_is_not_trained(run, queue, training):
    queue.join("other", "bob")
    with queue.turn("other"):
        run_queue.start(run, "ann")
        assert run_queue.withdraw(run)
    queue.join("last", "bob")
    with queue.turn("last"):
        pass
    assert training.trained == []
    assert [e["event"] for e in run.events()] == ["withdrawn"]


def test_an_error_of_the_turn_is_logged_once(run, queue, training):
    said = {"event": "error", "problems": ["It broke."]}
    training.events, training.error = [], TunerError("It broke.")
    assert take_turn(run) == ["queued", "starting", "error"]
    assert run.last_event("error")["problems"] == ["It broke."]
    training.events = [said]  # as the training process itself logs it
    assert take_turn(run) == ["queued", "starting", "error"]
    training.events = [said | {"problems": ["It broke otherwise."]}]
    assert take_turn(run) == ["queued", "starting", "error", "error"]
    training.events = [said, {"event": "died"}]
    assert take_turn(run) == ["queued", "starting", "error", "died", "error"]
    training.events, training.error = [], ValueError("secret")
    assert take_turn(run) == ["queued", "starting", "error"]
    (problem,) = run.last_event("error")["problems"]
    assert problem == f"Tuner failed unexpectedly (run {run.id}). What the run learned is kept."
    training.error = None
    assert take_turn(run) == ["queued", "starting"]


def test_a_run_that_was_deleted_while_it_waited_leaves_nothing_behind(run, queue, training, tmp_path, monkeypatch):
    broken, before = [], set(threading.enumerate())
    monkeypatch.setattr(threading, "excepthook", broken.append)
    training.may_end.clear()
    run_queue.start(run, "ann")
    until(lambda: training.trained)
    run.path.rename(tmp_path / "deleted")
    training.may_end.set()
    for thread in set(threading.enumerate()) - before:
        thread.join(SECONDS)
    assert not queue.holds(run.id)
    assert not run.path.exists()
    assert not broken


QUEUED, CONTINUED = {"event": "queued"}, {"event": "continued"}
WINDOW_OVER = {"event": "end", "reason": "window", "step": 3}
STOPPED = {"event": "end", "reason": "stopped", "step": 3}
# What was logged last, how many seconds ago, and whether the run goes on by itself then.
WAITS = [
    (QUEUED, 0, True),
    (QUEUED, 3590, True),
    (QUEUED, 3610, False),
    (CONTINUED, 0, True),
    (WINDOW_OVER, 0, True),
    (WINDOW_OVER, 80, True),
    (WINDOW_OVER, 100, False),
    ({"event": "died"}, 0, True),
    (STOPPED, 0, False),
    ({"event": "error", "problems": ["It broke."]}, 0, False),
    ({"event": "withdrawn"}, 0, False),
]


@pytest.mark.parametrize(("event", "ago", "waits"), WAITS)
def test_a_run_whose_window_closed_or_that_lost_its_turn_is_queued_again_or_given_up(
    event, ago, waits, run, queue, training
):
    then = time.time() - ago
    log = [{"event": "start", "step": 0, "time": then}, event | {"time": then}]
    for entry in log:
        run.append(entry)
    queue.join(run.id, "ann")
    with queue.turn(run.id):
        assert not run_queue.start_next_window(run, "ann")
        assert len(run.events()) == len(log)
    queue.join("other", "bob")
    with queue.turn("other"):
        assert run_queue.start_next_window(run, "ann") == waits
        assert queue.holds(run.id) == waits
        assert [e["event"] for e in run.events()[len(log) :]] == ["continued"] * waits
        queue.join("another of ann's", "ann")
        queue.join("carl's", "carl")
        assert queue.place("carl's") == 2
        for name in (run.id, "another of ann's", "carl's"):
            queue.leave(name)
    (run.path / "events.jsonl").unlink()
    for entry in log:
        run.append(entry)
    assert run_queue.withdraw(run) == waits
    assert [e["event"] for e in run.events()[len(log) :]] == ["withdrawn"] * waits
    assert not run_queue.withdraw(run)


def test_only_a_run_that_stands_in_the_queue_is_shown_as_waiting(run, queue):
    assert not run_queue.start_next_window(run, "ann")
    run.append(STOPPED)
    assert run_queue.look(run).phase == "stopped"
    queue.join(run.id, "ann")
    assert run_queue.look(run).phase == "waiting"
    with queue.turn(run.id):
        assert run_queue.look(run).phase == "stopped"  # as its folder shows it
        assert not run_queue.withdraw(run)
    queue.join(run.id, "ann")
    assert run_queue.withdraw(run)
    assert not queue.holds(run.id)


def test_who_follows_a_run_reads_its_events_its_place_and_each_of_its_windows(run, queue, training):
    training.may_end.clear()
    training.events = [{"event": "start", "step": 0}, WINDOW_OVER]
    for name in ("other", "earlier"):
        queue.join(name, name)
    heartbeat, seen = {"event": "heartbeat"}, []
    with queue.turn("other"):
        run_queue.start(run, "ann", QUEUED)
        following = run_queue.follow(run, "ann", run.reader())
        assert next(following)["event"] == "queued"
        assert [next(following) for _ in range(3)] == [{"event": "waiting", "place": 2}, heartbeat, heartbeat]
        queue.leave("earlier")
        assert [next(following) for _ in range(3)] == [{"event": "waiting", "place": 1}, heartbeat, heartbeat]
    until(lambda: training.trained)
    assert [next(following)["event"] for _ in range(3)] == ["starting", "heartbeat", "heartbeat"]
    training.may_end.set()
    for event in following:
        if event != heartbeat:
            seen.append(event["event"])
        if len(training.trained) == 2:
            training.events = [STOPPED]
    window = ["start", "end", "continued", "starting"]
    assert seen[:4] == window
    assert seen[-1] == "end"
    assert len(training.trained) >= 2
    assert run.events()[-1]["reason"] == "stopped"
    assert not queue.holds(run.id)


def test_who_follows_a_run_is_told_its_place_for_each_window_and_keeps_the_turn_of_the_same_visitor(
    run, queue, training
):
    training.may_end.clear()
    training.events = [{"event": "start", "step": 0}, WINDOW_OVER]
    following = run_queue.follow(run, "ann", run.reader())
    queue.join("other", "bob")
    with queue.turn("other"):
        run_queue.start(run, "ann", QUEUED)
        assert [next(following)["event"] for _ in range(3)] == ["queued", "waiting", "heartbeat"]
    until(lambda: training.trained and queue.place(run.id) is None)
    assert [next(following)["event"] for _ in range(2)] == ["starting", "heartbeat"]
    training.may_end.set()
    until(lambda: not queue.holds(run.id))
    queue.join("other", "bob")
    with queue.turn("other"):
        assert [next(following)["event"] for _ in range(3)] == ["start", "end", "continued"]
        assert next(following) == {"event": "waiting", "place": 1}
        queue.join("another of ann's", "ann")
        queue.join("carl's", "carl")
        assert queue.place("carl's") == 2
        for name in (run.id, "another of ann's", "carl's"):
            queue.leave(name)


def test_what_a_run_logs_just_before_it_gives_its_place_back_is_still_read(run, queue):
    class Reader(EventReader):
        """After the first look at the log the run ends at once."""

        def read(self) -> list[dict]:
            events = super().read()
            if queue.leave(run.id):
                run.append(STOPPED)
            return events

    queue.join(run.id, "ann")
    seen = [event["event"] for event in run_queue.follow(run, "ann", Reader(run.log.path))]
    assert seen == ["heartbeat", "end"]
