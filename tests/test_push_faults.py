"""Each request of a push fails in each way, for a moment or for good: nothing half-written or empty is ever left."""

import shutil
from pathlib import Path

import pytest
from hub_double import Hub

from tuner import hub_errors, runs
from tuner.errors import TunerError
from tuner.hub.push import push
from tuner.inference.merge import merge

FAULTS = (429, 500, "half", "lost", "nothing")
ALWAYS = 10**6


@pytest.fixture(scope="module")
def merged(finished, tmp_path_factory) -> runs.Run:
    """A finished run with its merged model, on a base that is pushed as well."""
    run = runs.Run(Path(shutil.copytree(finished.path, tmp_path_factory.mktemp("pushed") / "run")))
    merge(run)
    return run


@pytest.fixture(autouse=True)
def impatient(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process may ask Hubs; nobody waits between attempts, nor long for a Hub that says nothing."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr(hub_errors, "PATIENCE", 0.2)


def requests(run: runs.Run, what: str) -> list[tuple[str, str]]:
    """The requests of a push to alice/x to which nothing happens, each once; uploads are known by what they carry."""
    hub = Hub()
    try:
        push(run, "x", what, token=hub.user("alice"), endpoint=hub.url)
        return list(dict.fromkeys((seen.method, seen.path) for seen in hub.seen))
    finally:
        hub.close()


def outcome(run: runs.Run, what: str, request: tuple[str, str], how: int | str, times: int) -> tuple[str, list[str]]:
    """How a push ended whose `request` fails so often: "pushed", or what was said; and what is half-written."""
    hub = Hub()
    hub.fail(*request, how, times)
    try:
        push(run, "x", what, token=hub.user("alice"), endpoint=hub.url)
        said = "pushed"
    except TunerError as error:
        said = str(error)
    finally:
        hub.close()
    whole = {"alice/x": "README.md", "alice/x-base": "model.safetensors", "alice/x-merged": "model.safetensors"}
    half = [name for _, name in hub.repos if whole[name] not in hub.repo(name).files]
    if said == "pushed":
        wanted = {"alice/x", "alice/x-base"} | ({"alice/x-merged"} if what == "both" else set())
        half += sorted(wanted - {name for _, name in hub.repos})
        half += [f"{name} twice" for _, name in hub.repos if len(hub.repo(name).commits) != 2]
    else:
        half += [name for _, name in hub.repos]
    return said, half


def held(run: runs.Run, what: str, faults: tuple, seldom: int = 1) -> dict[str, int]:
    """How many pushes ended how, for every `seldom`th pair of request and fault."""
    asked, count = requests(run, what), {"went through": 0, "refused": 0}
    pairs = [(request, how) for request in asked for how in faults][::seldom]
    for request, how in pairs:
        said, half = outcome(run, what, request, how, 1)
        assert (said, half) == ("pushed", []), (request, how)  # a moment's fault is never seen
        count["went through"] += 1
        said, half = outcome(run, what, request, how, ALWAYS)
        assert half == [], (request, how, said)
        if said == "pushed":  # all is there: only answers were lost, or what was asked for was not needed again
            count["went through"] += 1
        else:
            assert "Nothing is lost" in said or "No data is lost" in said or "too many requests" in said, said
            count["refused"] += 1
    return count


def test_a_fault_for_a_moment_is_not_seen_and_one_for_good_leaves_nothing(merged):
    count = held(merged, "adapter", (500, "half", "lost"), seldom=5)
    assert count["went through"] >= 5
    assert count["refused"] >= 5


@pytest.mark.long
def test_every_request_of_a_push_of_both_fails_in_every_way(merged):
    asked = requests(merged, "both")
    assert len(asked) >= 20
    count = held(merged, "both", FAULTS)
    print(f"\n{len(asked)} requests, each failing in {len(FAULTS)} ways, once and for good: {count}; 0 half-written")
    assert sum(count.values()) == 2 * len(asked) * len(FAULTS)
    assert count["refused"] >= 2 * len(asked)


@pytest.mark.parametrize("pause", ["3600", "Wed, 21 Oct 2099 07:28:00 GMT", "-1", "1e9"])
def test_a_hub_that_asks_for_a_long_pause_is_not_waited_for(pause, merged, hub, monkeypatch):
    slept = []
    monkeypatch.setattr("time.sleep", slept.append)
    monkeypatch.setattr(hub_errors, "PATIENCE", 7.0)
    hub.pause = pause
    hub.fail("POST", "/alice/x-base.git/info/lfs/objects/batch", 429, 2)
    push(merged, "x", token=hub.user("alice"), endpoint=hub.url)
    assert slept
    assert max(slept) <= 8.0
