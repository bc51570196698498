"""Each request of a push fails in each way: what is left is nothing or the whole, and what was there before stays.

python -m pytest -m long -s tests/test_push_faults.py prints the counts.
"""

import collections
import shutil
from pathlib import Path

import pytest
from hub_double import FAULTS, Hub

from tuner import hub_errors, runs
from tuner.errors import TunerError
from tuner.hub import push as pushing
from tuner.recipe import EXAMPLES

MINE = {".gitattributes": b"", "README.md": b"mine"}
pytestmark = pytest.mark.usefixtures("no_waiting")


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> runs.Run:
    """The shipped finished run, whose base model is pushed as well; its files are put together only once."""
    made, pushes = {}, pushing._pushes
    monkeypatch.setattr(pushing, "_pushes", lambda run, *rest, **told: made or made.update(pushes(run, *rest)) or made)
    monkeypatch.setattr(hub_errors, "PATIENCE", 0.4)
    return runs.Run(Path(shutil.copytree(EXAMPLES / "finished", tmp_path / "run")))


class Stand:
    """A Hub that is set up afresh for each push, and what a push leaves there."""

    def __init__(self, hub: Hub, run: runs.Run, into: str) -> None:
        self.hub, self.run, self.into, self.token = hub, run, into, hub.user("alice")
        self.set_up()
        self.push()
        self.requests = [(seen.method, seen.path) for seen in hub.seen]
        self.whole = self.state()
        self.set_up()
        self.before = self.state()

    def set_up(self) -> None:
        """An empty Hub for a push to main, else one with both repositories."""
        self.hub.repos.clear()
        self.hub.blobs.clear()
        self.hub.fault = None
        self.hub.is_expired = False
        self.hub.seen.clear()
        for name in ("alice/x", "alice/x-base") if self.into != "main" else ():
            self.hub.add_model(name, MINE, private=True)

    def push(self) -> str:
        return pushing.push(self.run, "x", into=self.into, token=self.token, endpoint=self.hub.url)

    def state(self) -> dict:
        """Repository -> branch or pull request -> content."""
        return {
            name: {head: repo.commits[sha] for head, sha in repo.heads.items()} | {"commits": len(repo.commits)}
            for (_, name), repo in self.hub.repos.items()
        }

    def is_told(self, left: dict, said: str) -> bool:
        """Whether each repository that is left is named, and each of its branches is new and empty, or whole."""
        empty = [{".gitattributes"}, MINE.keys()]
        return all(
            name in said and all(files == self.whole[name][head] or files.keys() in empty for head, files in heads)
            for name, repo in left.items()
            if repo != self.before.get(name)
            for heads in [[item for item in repo.items() if item[0] != "commits"]]
        )

    def outcome(self, number: int, how: str, forever: bool) -> str:
        """One push with this fault: "saved", "nothing left", or what is wrong."""
        self.set_up()
        self.hub.fail(number, how, forever)
        try:
            self.push()
        except TunerError as error:
            said, left = " ".join(error.problems), self.state()
            assert self.token not in said
            assert "unexpected error" not in said, said
            if left == self.before:
                return "nothing left"
            if how == "401" and self.is_told(left, said):
                return "a whole or empty one left, and said so"  # an expired token can't delete, either
            if left == self.whole:
                return "whole, and said to have failed"
            return f"half-written: {left.keys()} {said}"
        return "saved" if self.state() == self.whole else "half-written, and said to be whole"


def counts(stand: Stand, cases: list[tuple[int, str, bool]]) -> collections.Counter:
    found = collections.Counter()
    for number, how, forever in cases:
        outcome = stand.outcome(number, how, forever)
        assert "half-written" not in outcome, (stand.requests[number - 1], how, forever, outcome)
        found["for good" if forever else "once", how, outcome] += 1
    return found


@pytest.mark.parametrize("into", ["main", "version-2", "pull request"])
def test_a_fault_at_any_request_of_a_push_leaves_all_or_nothing(into, hub, trained):
    stand = Stand(hub, trained, into)
    number = len(stand.requests)
    kinds = [how for how in FAULTS if how != "stall"]
    found = counts(stand, [(n, kinds[n % len(kinds)], False) for n in range(1, number + 1)])
    assert {key[2] for key in found if key[1] != "401"} == {"saved"}


@pytest.mark.long
@pytest.mark.parametrize("into", ["main", "version-2", "pull request"])
def test_every_fault_at_every_request_of_a_push_leaves_all_or_nothing(into, hub, trained):
    stand = Stand(hub, trained, into)
    every = range(1, len(stand.requests) + 1)
    found = counts(stand, [(n, how, forever) for n in every for how in FAULTS for forever in (False, True)])
    passing = sum(count for (_, how, _), count in found.items() if how != "401")
    print(f"\n{into}: {len(every)} requests, {passing} pushes, 0 half-written or empty repositories; then 401:")
    for (times, how, outcome), count in sorted(found.items()):
        print(f"  {how:>6} {times:8} {outcome:32} {count}")
    assert {key[2] for key in found if key[1] != "401" and key[0] == "once"} == {"saved"}
