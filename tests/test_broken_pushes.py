"""A push that fails at any request leaves nothing behind, and the next one goes through."""

import json
import shutil
from pathlib import Path

import pytest
from hub_double import Hub
from huggingface_hub import HfApi

from tuner import hub_errors, runs
from tuner.errors import TunerError
from tuner.hub.push import push
from tuner.recipe import EXAMPLES

MINE = b"years of work"


@pytest.fixture
def trained(tmp_path: Path) -> runs.Run:
    """The shipped finished run, whose base model is pushed as well."""
    return runs.Run(Path(shutil.copytree(EXAMPLES / "finished", tmp_path / "run")))


def refused(run: runs.Run, hub: Hub, token: str, repo: str = "x") -> list[str]:
    """What is said of a push that fails."""
    with pytest.raises(TunerError) as caught:
        push(run, repo, token=token, endpoint=hub.url)
    return list(caught.value.problems)


def goes_through(run: runs.Run, hub: Hub, token: str) -> None:
    """Pushing again gives two repositories, each with one commit of all its files."""
    assert push(run, "x", token=token, endpoint=hub.url) == f"{hub.url}/alice/x"
    assert {name for _, name in hub.repos} == {"alice/x", "alice/x-base"}
    assert all(len(repo.commits) == 2 for repo in hub.repos.values())
    assert "adapter_model.safetensors" in hub.repo("alice/x").files
    assert "model.safetensors" in hub.repo("alice/x-base").files


# The requests of a push that change something: method and part of the path.
REQUESTS = [
    ("POST", "/api/repos/create"), ("POST", "/preupload/"), ("POST", "/info/lfs/"), ("PUT", "/lfs/"),
    ("POST", "alice/x-base/commit/"), ("POST", "alice/x/preupload/"), ("POST", "alice/x/commit/"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between attempts."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)


@pytest.mark.parametrize(("method", "part"), REQUESTS)
def test_a_connection_that_dies_leaves_no_repository(method, part, hub, trained):
    token = hub.user("alice")
    hub.cut(method, part, 30)
    (problem,) = refused(trained, hub, token)
    assert "connection to the Hub was lost" in problem
    assert not hub.repos
    hub.cuts.clear()
    goes_through(trained, hub, token)


def test_a_repository_whose_creation_nobody_heard_of_is_used(hub, trained):
    hub.deafen("POST", "/api/repos/create")
    goes_through(trained, hub, hub.user("alice"))


def test_a_push_whose_last_answer_is_lost_has_succeeded(hub, trained):
    hub.deafen("POST", "alice/x/commit/")
    goes_through(trained, hub, hub.user("alice"))


def test_what_was_there_before_stays_whatever_fails(hub, trained):
    token = hub.user("alice")
    hub.add_model("alice/x-base", {"README.md": MINE}, private=True)
    hub.add_model("alice/x", {"notes.txt": MINE}, private=True)
    hub.cut("POST", "alice/x/commit/", 3)
    (problem,) = refused(trained, hub, token)
    assert "connection to the Hub was lost" in problem
    assert hub.repo("alice/x").files == {"notes.txt": MINE}
    assert "model.safetensors" in hub.repo("alice/x-base").files
    push(trained, "x", token=token, endpoint=hub.url)
    assert {"adapter_model.safetensors", "notes.txt"} < hub.repo("alice/x").files.keys()
    assert [len(repo.commits) for repo in hub.repos.values()] == [2, 2]


def test_a_repository_that_somebody_else_has_just_made_is_not_deleted(hub, trained, monkeypatch):
    token, create = hub.user("alice"), HfApi.create_repo

    def meanwhile(api, name, **options):
        hub.add_model(name, {"README.md": MINE}, private=True)
        return create(api, name, **options)

    monkeypatch.setattr(HfApi, "create_repo", meanwhile)
    assert "was refused by the Hub" in refused(trained, hub, token)[0]
    assert hub.repo("alice/x-base").files == {"README.md": MINE}


@pytest.mark.parametrize("file", ["README.md", "model.safetensors"])
def test_what_somebody_else_has_just_made_stays_even_if_our_own_answer_is_lost(file, hub, trained, monkeypatch):
    token, create = hub.user("alice"), HfApi.create_repo

    def meanwhile(api, name, **options):
        hub.add_model(name, {".gitattributes": b"", file: MINE}, private=True)
        hub.deafen("POST", "/api/repos/create")
        return create(api, name, **options)

    monkeypatch.setattr(HfApi, "create_repo", meanwhile)
    assert "connection to the Hub was lost" in refused(trained, hub, token)[0]
    assert hub.repo("alice/x-base").files[file] == MINE


def test_what_can_not_be_deleted_again_is_said_and_pushed_to_next_time(hub, trained):
    token = hub.user("alice")
    hub.full = True
    hub.cut("DELETE", "/api/repos/delete", 3)
    refusal, left = refused(trained, hub, token)
    assert "storage limit reached" in refusal
    assert left == (
        "alice/x-base may have been created, and could not be deleted again. Push to it once more, or delete it at "
        f"{hub.url}/alice/x-base/settings."
    )
    hub.full = False
    goes_through(trained, hub, token)


def test_a_hub_that_is_gone_at_once_is_told_with_what_may_be_left(hub, trained, monkeypatch):
    monkeypatch.setattr(hub_errors, "PATIENCE", 0.3)
    token, create = hub.user("alice"), HfApi.create_repo

    def last_deed(api, name, **options):
        create(api, name, **options)
        for method in ("DELETE", "GET", "POST"):
            hub.stall(method, "/")
        raise ConnectionError

    monkeypatch.setattr(HfApi, "create_repo", last_deed)
    lost, left = refused(trained, hub, token)
    assert "did not answer in time" in lost
    assert left.startswith("alice/x-base may have been created")


def test_an_interrupted_push_leaves_nothing_either(hub, trained, monkeypatch):
    def interrupt(api, *arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(HfApi, "create_commit", interrupt)
    with pytest.raises(KeyboardInterrupt):
        push(trained, "x", token=hub.user("alice"), endpoint=hub.url)
    assert not hub.repos


def test_no_token_is_in_what_a_failed_push_says(hub, trained, caplog):
    token = hub.user("alice")
    hub.cut("POST", "/commit/", 3)
    said = refused(trained, hub, token)
    assert token not in json.dumps(said) + caplog.text
