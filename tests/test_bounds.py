"""How many runs one visitor may have in line, and who a visitor is behind the platform's proxies."""

import asyncio
import threading
import time
from collections import Counter
from functools import partial
from types import SimpleNamespace

import pytest

from tuner.errors import TunerError
from tuner.recipe import Recipe
from tuner.runs import Run
from tuner.ui import actions, api, bounds, run_queue, visitor
from tuner.ui.bounds import Bounds
from tuner.ui.visitor import Visitor


class Held(Bounds):
    """Bounds for runs of which each waits until it is released."""

    def __init__(self):
        self.ended: set[str] = set()
        super().__init__(lambda run: run not in self.ended)

    def release(self, run: str) -> None:
        """End the run."""
        self.ended.add(run)


def fill(held: Bounds, number: int, **settings) -> None:
    """Hold so many runs, each of a visitor with a session of its own unless the settings name one."""
    first = len(held._runs)
    for n in range(first, first + number):
        held.hold(f"run{n}", Visitor(**{"session": f"session{n}", **settings}))


def refusal(held: Bounds, who: Visitor) -> str:
    """What the visitor is told; empty if admitted."""
    try:
        with held.admit(who):
            return ""
    except TunerError as error:
        return " ".join(error.problems)


@pytest.mark.parametrize(
    ("whose", "most", "begins"),
    [
        ({"session": "ann"}, 4, "You have 4 runs that wait or train, which is the most."),
        ({"account": "ann"}, 8, "Your account has 8 runs"),
        ({"address": "203.0.113.5"}, 60, "Your network address, which others may share, has 60 runs"),
    ],
)
def test_one_more_run_than_the_bound_is_refused_and_let_in_once_another_has_ended(whose, most, begins):
    held, who = Held(), Visitor(**{"session": "here", **whose})
    fill(held, 100)  # of others
    fill(held, most - 1, **whose)
    assert refusal(held, who) == ""
    fill(held, 1, **whose)
    assert refusal(held, who).startswith(begins)
    assert refusal(held, who).endswith("Wait until one has ended, or stop one.")
    assert refusal(held, Visitor("another")) == ""
    held.release("run100")
    assert refusal(held, who) == ""


def test_nobody_is_counted_by_what_is_not_known_of_them():
    held = Held()
    fill(held, 200)  # without account and address
    assert refusal(held, Visitor("here")) == ""
    fill(held, 5, session="")
    assert refusal(held, Visitor("")) == ""


def test_a_thousand_runs_are_the_most_of_all(monkeypatch):
    held = Held()
    fill(held, bounds.MOST_RUNS - 1)
    assert refusal(held, Visitor("here")) == ""
    fill(held, 1)
    assert refusal(held, Visitor("here")) == (
        "1,000 runs are waiting, and more can't be accepted. Try again in a few minutes."
    )


def test_a_run_counts_while_it_is_prepared_so_that_many_requests_at_once_are_no_way_around():
    held, ann = Held(), Visitor("ann")
    fill(held, 2, session="ann")
    with held.admit(ann), held.admit(ann):
        assert refusal(held, ann).startswith("You have 4 runs")
    assert refusal(held, ann) == ""
    with pytest.raises(ZeroDivisionError), held.admit(ann):
        raise ZeroDivisionError
    assert refusal(held, ann) == ""


def test_a_run_that_stands_in_the_queue_counts_and_a_withdrawn_one_does_not(tmp_path, monkeypatch):
    monkeypatch.setattr(run_queue, "queue", run_queue.RunQueue(0))
    monkeypatch.setattr(run_queue, "bounds", Bounds(lambda run: run_queue.queue.holds(run)))
    ann = Visitor("ann")
    for number in range(4):
        assert refusal(run_queue.bounds, ann) == ""
        (tmp_path / f"{number}").mkdir()
        run_queue.start(Run(tmp_path / f"{number}"), ann, {"event": "queued"})
    assert refusal(run_queue.bounds, ann).startswith("You have 4 runs")
    assert run_queue.withdraw(Run(tmp_path / "0"))
    assert refusal(run_queue.bounds, ann) == ""


ADDRESSES = [
    # on a Space: who called, X-Forwarded-For -> whose address
    (True, "10.16.1.2", "198.41.30.7", "198.41.30.7"),
    (True, "10.16.1.2", "1.1.1.1, 198.41.30.7", "198.41.30.7"),  # the visitor wrote the first one
    (True, "10.16.1.2", "1.1.1.1,198.41.30.7, 10.16.9.9", "198.41.30.7"),  # through two proxies
    (True, "10.16.1.2", "nonsense, 10.1.1.1", "10.16.1.2"),
    (True, "10.16.1.2", "1.1.1.1, unknown", "10.16.1.2"),  # whoever the proxy did not know wrote the first one
    (True, "10.16.1.2", "1.1.1.1, 198.41.30.7:51234", "198.41.30.7"),
    (True, "10.16.1.2", "1.1.1.1, [2a01:4f8:1:2::9]:443", "2a01:4f8:1::/48"),
    (True, "10.16.1.2", "1.1.1.1, ::ffff:198.41.30.7", "198.41.30.7"),
    (True, "10.16.1.2", "", "10.16.1.2"),
    (True, "198.41.30.7", "1.1.1.1", "198.41.30.7"),  # not through the platform's proxy
    (True, "10.16.1.2", "2a01:4f8:1:2:aaaa::1", "2a01:4f8:1::/48"),
    (True, "10.16.1.2", "2a01:4f8:1:2:bbbb::9", "2a01:4f8:1::/48"),  # the same visitor
    (False, "192.168.1.9", "1.1.1.1", "192.168.1.9"),  # anybody could write that
    (False, "2a01:4f8:1:2::9", "", "2a01:4f8:1::/48"),
    (False, "testclient", "", "testclient"),
    (False, None, "", ""),
]


@pytest.mark.parametrize(("on_space", "peer", "forwarded", "address"), ADDRESSES)
def test_an_address_can_not_be_made_up(on_space, peer, forwarded, address, monkeypatch):
    monkeypatch.delenv("SPACE_ID", raising=False)
    if on_space:
        monkeypatch.setenv("SPACE_ID", "alice/tuner")
    headers = {"x-forwarded-for": forwarded} if forwarded else {}
    client = SimpleNamespace(host=peer) if peer else None
    assert visitor.network_address(SimpleNamespace(client=client, headers=headers)) == address


def test_one_visitors_slow_preparations_hold_up_nobody_elses(monkeypatch):
    goes_on = threading.Event()

    def prepare(requested: Recipe, rows: actions.Entered | None, visitor: Visitor) -> None:
        if visitor.session == "eve":
            goes_on.wait()
        raise TunerError(f"{visitor.session}'s run is prepared.")

    async def ask() -> None:
        slow = [asyncio.create_task(anext(api.train("{}", visitor=Visitor("eve")))) for _ in range(4)]
        await asyncio.sleep(0)
        try:
            with pytest.raises(TunerError, match="ann's run is prepared"):
                await asyncio.wait_for(anext(api.train("{}", visitor=Visitor("ann"))), 3)
        finally:
            goes_on.set()
            await asyncio.gather(*slow, return_exceptions=True)

    monkeypatch.setattr(actions, "prepare", prepare)
    asyncio.run(ask())


def test_the_preparations_of_two_addresses_hold_up_no_third_ones(monkeypatch):
    goes_on, preparing = threading.Event(), Counter()

    def prepare(requested: Recipe, rows: actions.Entered | None, visitor: Visitor) -> None:
        preparing[visitor.address] += 1
        if visitor.address != "9.9.9.9":
            assert goes_on.wait(20)
        raise TunerError(f"{visitor.address}'s run is prepared.")

    def train(number: int, address: str) -> asyncio.Task:
        return asyncio.create_task(anext(api.train("{}", visitor=Visitor(f"{number}", address))))

    async def ask() -> None:
        flood = [train(number, address) for address in ("8.8.8.8", "7.7.7.7") for number in range(300)]
        await asyncio.sleep(0)
        try:
            with pytest.raises(TunerError, match=r"9\.9\.9\.9's run is prepared"):
                await asyncio.wait_for(train(0, "9.9.9.9"), 10)
            assert preparing["8.8.8.8"] <= 12  # of 120 threads
        finally:
            goes_on.set()
            errors = await asyncio.gather(*flood, return_exceptions=True)
        assert preparing == {"8.8.8.8": 60, "7.7.7.7": 60, "9.9.9.9": 1}
        assert sum("has 60 runs that wait or train" in str(error) for error in errors) == 480

    monkeypatch.setattr(actions, "prepare", prepare)
    monkeypatch.setattr(actions, "read_recipe", lambda text, visitor: Recipe())
    asyncio.run(ask())


def test_those_who_join_again_have_two_threads_and_an_address_has_one_of_them():
    goes_on, begun = threading.Event(), []

    def deed(address: str) -> None:
        begun.append(address)
        assert goes_on.wait(20)

    async def join() -> None:
        addresses = ["8.8.8.8"] * 20 + ["7.7.7.7", "9.9.9.9"]
        tasks = [asyncio.create_task(api._joining.run(partial(deed, it), Visitor("", it))) for it in addresses]
        try:
            deadline = time.monotonic() + 20
            while len(begun) < 2 and time.monotonic() < deadline:
                await asyncio.sleep(0.001)
            assert begun == ["8.8.8.8", "7.7.7.7"]
            assert sum(thread.name.startswith("join") for thread in threading.enumerate()) <= 2
        finally:
            goes_on.set()
            await asyncio.gather(*tasks)
        assert begun[2] == "9.9.9.9"

    asyncio.run(join())
