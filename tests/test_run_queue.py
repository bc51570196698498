"""The queue for the places to train in, and the thread that takes each run through its turn."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from contextvars import ContextVar
from types import SimpleNamespace

import pytest
from conftest import small_recipe

from tuner import gpu, runs
from tuner.errors import TunerError
from tuner.events import EventReader
from tuner.runs import Run
from tuner.ui import run_queue
from tuner.ui.run_queue import RunQueue
from tuner.ui.visitor import Visitor

SECONDS = 20  # to wait for a thread that should be done at once
VISITOR = ContextVar("visitor")
ANN = Visitor("ann")
SAME = ("session", "ann")  # as the queue names her


def line(places: int, *joined: str) -> RunQueue:
    """A queue that these runs have joined; a run's first letter is its visitor."""
    queue = RunQueue(places)
    for run in joined:
        assert queue.join(run, run[0])
    return queue


class Turns:
    """Begins the turns of runs in a queue, one step at a time: `begun` are those that were given a place, in order."""

    def __init__(self, queue: RunQueue, *runs: str):
        self.queue, self.begun = queue, []
        for run in runs:
            assert queue.when_served(run, lambda run=run: self.begun.append(run))

    def end(self, run: str) -> bool:
        """Whether the run holds a place, which it then gives back."""
        with self.queue.turn(run) as served:
            return served


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


@pytest.mark.parametrize(
    ("training", "waiting", "order"),
    [
        # visitor, address, number: many names at one address are no way past the others
        ((), ("aX1", "bX1", "cX1", "dX1", "nY1"), ["aX1", "nY1", "bX1", "cX1", "dX1"]),
        (("aX1", "bX1"), ("cX1", "nY1", "nY2", "oZ1"), ["nY1", "oZ1", "nY2", "cX1"]),
        # within an address visitors take turns, as they do where it is not known
        ((), ("aX1", "aX2", "bX1", "nY1"), ["aX1", "nY1", "bX1", "aX2"]),
        (("aX1",), ("aX2", "bX1", "nY1"), ["nY1", "bX1", "aX2"]),
        # many addresses of one visitor are none either
        ((), ("aX1", "aY1", "aZ1", "nW1", "oW1"), ["aX1", "nW1", "oW1", "aY1", "aZ1"]),
        (("aX1",), ("aY1", "nW1", "oW1"), ["nW1", "oW1", "aY1"]),
        # of whom nothing is known, nothing is counted
        ((), ("  1", "  2", "aX1", "aX2", "  3"), ["  1", "  2", "aX1", "  3", "aX2"]),
    ],
)
def test_the_second_run_of_an_address_stands_behind_the_first_of_every_other(training, waiting, order):
    queue = RunQueue(9)
    with ExitStack() as stack:
        for run in (*training, *waiting):
            assert queue.join(run, run[0].strip(), run[1].strip())
            if run in training:
                assert stack.enter_context(queue.turn(run))
        assert sorted(waiting, key=queue.place) == order


@pytest.mark.parametrize("crowd", [("aX1", "aX2", "aX3"), ("aX1", "bX1", "cX1"), ("aX1", "aY1", "aZ1")])
def test_who_comes_new_is_next_as_its_place_says_though_others_came_earlier(crowd):
    queue = RunQueue(1)
    for run in (*crowd, "nW1"):
        assert queue.join(run, run[0], run[1])
    turns = Turns(queue, *crowd, "nW1")
    assert turns.begun == [crowd[0]]
    assert queue.place("nW1") == 1
    assert turns.end(crowd[0])
    assert turns.begun == [crowd[0], "nW1"]
    assert turns.end("nW1")
    assert all(map(turns.end, crowd[1:]))
    assert turns.begun == [crowd[0], "nW1", *crowd[1:]]
    assert not queue._latest


def test_an_invented_session_is_no_account_and_an_invented_crowd_no_way_past_a_newcomer(tmp_path, monkeypatch):
    queue = RunQueue(0)
    monkeypatch.setattr(run_queue, "queue", queue)
    crowd = [Visitor(f"session {number}", "8.8.8.8") for number in range(60)]
    alice = [Visitor("alice", "7.7.7.7"), Visitor("page", "9.9.9.9", account="alice")]
    unknown = [Visitor("", f"203.0.113.{number}") for number in range(2)]
    visitors = [*crowd, *alice, *unknown]
    for number, visitor in enumerate(visitors):
        (tmp_path / f"{number}").mkdir()
        run_queue.start(Run(tmp_path / f"{number}"), visitor)
    assert [queue.place(f"{number}") for number in (0, 60, 61, 62, 63, 1, 59)] == [1, 2, 3, 4, 5, 6, 64]


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
    turns = Turns(queue, *"dcba")
    assert turns.begun == ["d", "c"]  # they were ready before the others
    assert (queue.place("a"), queue.place("b")) == (1, 2)
    assert turns.end("d")
    assert turns.begun == ["d", "c", "a"]
    assert queue.place("b") == 1
    assert turns.end("c")
    assert all(map(turns.end, "ab"))
    assert turns.begun == ["d", "c", "a", "b"]
    assert queue.held() == []


def test_who_leaves_the_queue_is_not_served_and_lets_the_next_one_through():
    queue = line(1, "a", "b", "c")
    turns = Turns(queue, *"abc")
    assert turns.begun == ["a"]
    assert queue.leave("b")
    assert not queue.when_served("b", lambda: turns.begun.append("b"))
    assert turns.end("a")
    assert turns.begun == ["a", "c"]
    assert not turns.end("b")
    assert turns.end("c")


def test_a_run_that_is_not_ready_keeps_its_place_in_the_queue_and_holds_nobody_up():
    queue = line(1, "a", "b")
    turns = Turns(queue, "b")
    assert turns.begun == ["b"]
    assert queue.place("a") == 1
    assert queue.when_served("a", lambda: turns.begun.append("a"))
    assert turns.begun == ["b"]
    assert turns.end("b")
    assert turns.begun == ["b", "a"]


def test_only_the_one_that_is_served_is_called_and_a_waiting_run_has_no_thread(monkeypatch):
    ordered = []
    in_order = RunQueue._in_order
    monkeypatch.setattr(RunQueue, "_in_order", lambda queue: ordered.append(1) or in_order(queue))
    names = [f"{number}" for number in range(1000)]
    queue, before = line(1, "first"), threading.active_count()
    assert all(queue.join(name, name) for name in names)
    turns = Turns(queue, "first", *names)
    assert threading.active_count() == before
    assert len(ordered) == 1  # each of a thousand that join a full queue costs next to nothing
    assert turns.end("first")
    assert turns.begun == ["first", "0"]
    assert [queue.place(name) for name in names[1:]] == list(range(1, 1000))
    assert len(ordered) <= 4  # all places are counted at once, when the queue has changed


def test_the_wait_is_known_once_a_turn_has_ended(monkeypatch):
    seconds = iter((0.0, 60.0, 60.0, 90.0))
    monkeypatch.setattr(run_queue.time, "monotonic", lambda: next(seconds))
    queue = line(2, "a", "b")
    assert queue.seconds_to_wait(4) is None
    for run in "ab":
        with queue.turn(run):
            pass
    assert queue.seconds_to_wait(4) == 90.0  # places of 45 s on average, two at a time


def test_a_turn_that_breaks_gives_its_place_back():
    queue = line(1, "a", "b")
    with pytest.raises(RuntimeError), queue.turn("a"):
        raise RuntimeError
    assert queue.held() == ["b"]
    with queue.turn("b") as served:
        assert served


def test_a_turn_that_can_not_begin_gives_its_place_back_and_lets_the_next_one_through():
    """A machine may refuse to start another thread."""
    queue, begun = line(1, "a", "b", "c"), []

    def refuse():
        raise RuntimeError("can't start new thread")

    with pytest.raises(RuntimeError):
        queue.when_served("a", refuse)
    assert queue.held() == ["b", "c"]
    assert queue.when_served("b", lambda: begun.append("b"))
    assert queue.when_served("c", lambda: begun.append("c"))
    assert begun == ["b"]


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
    run_queue.start(run, ANN, {"event": "queued"})
    until(lambda: not run_queue.queue.holds(run.id))
    return [event["event"] for event in run.events()[before:]]


def test_a_run_is_trained_once_in_its_turn_for_the_visitor_who_asked(run, queue, training):
    training.may_end.clear()
    VISITOR.set("ann's request")
    before = set(threading.enumerate())
    run_queue.start(run, ANN, {"event": "queued", "signed_in": True})
    run_queue.start(run, ANN, {"event": "queued"})  # which is queued already
    until(lambda: training.trained)
    assert all(thread.daemon for thread in set(threading.enumerate()) - before)  # so that the app can be ended
    run_queue.start(run, ANN, {"event": "queued"})
    queue.join("another of ann's", SAME)
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
        run_queue.start(run, ANN)
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
    run_queue.start(run, ANN)
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
        assert not run_queue.start_next_window(run, ANN)
        assert len(run.events()) == len(log)
    queue.join("other", "bob")
    with queue.turn("other"):
        assert run_queue.start_next_window(run, ANN) == waits
        assert queue.holds(run.id) == waits
        assert [e["event"] for e in run.events()[len(log) :]] == ["continued"] * waits
        queue.join("another of ann's", SAME)
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
    assert not run_queue.start_next_window(run, ANN)
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


class Follower:
    """Somebody who follows a run, event by event."""

    def __init__(self, run: Run, **settings):
        self.events = run_queue.follow(run, ANN, settings.pop("reader", None) or run.reader(), **settings)
        self.loop = asyncio.new_event_loop()

    def next(self) -> dict | None:
        """The next event; None at the end."""
        return self.loop.run_until_complete(asyncio.wait_for(anext(self.events, None), SECONDS))

    def rest(self) -> Iterator[dict]:
        """All further events."""
        while event := self.next():
            yield event


def test_who_follows_a_run_reads_its_events_its_place_and_each_of_its_windows(run, queue, training):
    training.may_end.clear()
    training.events = [{"event": "start", "step": 0}, WINDOW_OVER]
    for name in ("other", "earlier"):
        queue.join(name, name)
    seen = []
    with queue.turn("other"):
        run_queue.start(run, ANN, QUEUED)
        follower = Follower(run)
        assert follower.next()["event"] == "queued"
        assert follower.next() == {"event": "waiting", "place": 2, "seconds": None}
        queue.leave("earlier")
        assert follower.next() == {"event": "waiting", "place": 1, "seconds": None}
    until(lambda: training.trained)
    assert follower.next()["event"] == "starting"
    training.may_end.set()
    for event in follower.rest():
        seen.append(event["event"])
        if len(training.trained) == 2:
            training.events = [STOPPED]
    window = ["start", "end", "continued", "starting"]
    assert [kind for kind in seen if kind != "waiting"][:4] == window
    assert seen[-1] == "end"
    assert len(training.trained) >= 2
    assert run.events()[-1]["reason"] == "stopped"
    assert not queue.holds(run.id)


def test_who_follows_a_run_is_told_its_place_for_each_window_and_keeps_the_turn_of_the_same_visitor(
    run, queue, training
):
    training.may_end.clear()
    training.events = [{"event": "start", "step": 0}, WINDOW_OVER]
    follower = Follower(run)
    queue.join("other", "bob")
    with queue.turn("other"):
        run_queue.start(run, ANN, QUEUED)
        assert [follower.next()["event"] for _ in range(2)] == ["queued", "waiting"]
    until(lambda: training.trained and queue.place(run.id) is None)
    assert follower.next()["event"] == "starting"
    training.may_end.set()
    until(lambda: not queue.holds(run.id))
    queue.join("other", "bob")
    with queue.turn("other"):
        assert [follower.next()["event"] for _ in range(3)] == ["start", "end", "continued"]
        told = follower.next()
        assert (told["event"], told["place"]) == ("waiting", 1)
        assert told["seconds"] > 0
        queue.join("another of ann's", SAME)
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
    follower = Follower(run, reader=Reader(run.log.path))
    assert [event["event"] for event in follower.rest()] == ["end"]


def test_who_follows_a_waiting_run_reads_its_log_once_and_looks_more_seldom_the_further_behind_it_is(
    run, queue, monkeypatch
):
    class Reader(EventReader):
        """Counts its looks at the disk."""

        looks = 0

        def read(self) -> list[dict]:
            Reader.looks += 1
            return super().read()

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 40:
            queue.leave("earlier0")

    pauses: list[float] = []
    monkeypatch.setattr(run_queue, "POLL", 0.2)
    monkeypatch.setattr(run_queue, "asyncio", SimpleNamespace(sleep=sleep, to_thread=asyncio.to_thread))
    for number in range(30):
        queue.join(f"earlier{number}", f"{number}")
    queue.join(run.id, "ann")
    follower = Follower(run, reader=Reader(run.log.path))
    assert [follower.next()["place"] for _ in range(2)] == [31, 30]
    assert Reader.looks == 1
    assert pauses == [31 / 5 * 0.2] * 40
    for number in range(1, 30):
        queue.leave(f"earlier{number}")
    assert follower.next()["place"] == 1
    follower.loop.run_until_complete(follower.events.aclose())
    assert Reader.looks == 1


def test_who_no_longer_listens_neither_follows_nor_starts_the_next_window(run, queue, training):
    listens = [True, False]
    run.append({"event": "start", "step": 0})
    run.append(WINDOW_OVER)
    queue.join(run.id, "ann")
    follower = Follower(run, is_listening=lambda: listens.pop(0))
    kinds = [event["event"] for event in follower.rest()]
    assert kinds == ["start", "end", "waiting"]
    assert training.trained == []
    queue.leave(run.id)
    assert list(Follower(run, is_listening=lambda: False).rest()) == []
    assert training.trained == []
