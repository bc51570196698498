"""Resuming a run whose base model has to be downloaded again, and what that costs those who resume another."""

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import small_recipe
from hub_double import Hub
from huggingface_hub import constants

from tuner import limited, runs
from tuner.errors import TunerError
from tuner.models import fetch
from tuner.planning import plan
from tuner.runs import Run
from tuner.ui import actions, api, ownership, run_queue
from tuner.ui.bounds import Bounds
from tuner.ui.run_queue import RunQueue
from tuner.ui.visitor import ANYBODY, Visitor

SHA = "0123456789" * 4


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> RunQueue:
    """A queue that serves nobody."""
    queue = RunQueue(0)
    monkeypatch.setattr(run_queue, "queue", queue)
    monkeypatch.setattr(run_queue, "bounds", Bounds(queue.holds))
    return queue


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that is ready to start."""
    return plan.prepare(small_recipe(), path=tmp_path_factory.mktemp("prepared") / "run")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: Hub) -> Path:
    """The folder of runs; the Hub that is asked is `hub`, and the cache is empty."""
    monkeypatch.setattr(runs, "RUNS", tmp_path)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.url)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", f"{tmp_path}/cache")
    return tmp_path


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """What the jobs are that were asked for, with their line and asker; they are done as in other tests."""
    asked, stream = [], limited.stream

    def noted(job: str, *arguments: Any, limits: limited.Limits, asker: limited.Asker) -> Iterator[Any]:
        asked.append((job.partition(":")[2], limits.line, asker))
        yield from stream(job, *arguments, limits=limits, asker=asker)

    monkeypatch.setattr(limited, "stream", noted)
    return asked


def copied(prepared: Run, path: Path, model: str = "") -> str:
    """The secret of a copy of the run, perhaps on a model of the Hub's."""
    run = Run(shutil.copytree(prepared.path, path))
    if model:
        run.write_text("recipe.yaml", run.recipe.with_settings({"model.name": model}).to_yaml())
        run.write_text("plan.json", json.dumps(run.plan | {"revision": SHA}))
    return ownership.claim(Run(path), ANYBODY)


def test_a_silent_hub_holds_up_nobody_who_resumes_a_run_that_needs_no_download(prepared, root, hub, queue, jobs):
    hub.stall("GET", "/api/models/")
    secrets = {f"far{number}": copied(prepared, root / f"far{number}", "a/model") for number in range(6)}
    near = copied(prepared, root / "near")

    def resume(run: str, secret: str, visitor: Visitor) -> asyncio.Task:
        return asyncio.create_task(anext(api.resume(run, secret, visitor)))

    async def visit() -> None:
        addresses = ["8.8.8.8", "7.7.7.7"] * 3
        far = [resume(run, secrets[run], Visitor(run, address)) for run, address in zip(secrets, addresses)]
        try:
            while not any("/api/models/a/model" in seen.path for seen in hub.seen):
                assert not any(task.done() for task in far)
                await asyncio.sleep(0.001)
            first = await asyncio.wait_for(resume("near", near, Visitor("ann", "9.9.9.9")), 5)
            assert first["run"] == "near"
            assert not any(task.done() for task in far)
        finally:
            hub.close()
            errors = await asyncio.gather(*far, return_exceptions=True)
        assert [type(error) for error in errors] == [TunerError] * 6

    asyncio.run(visit())
    assert queue.held() == ["near"]
    assert {(job, line) for job, line, _ in jobs} == {("fetch", "downloads")}
    assert {asker.address for *_, asker in jobs} == {"8.8.8.8", "7.7.7.7"}


def test_a_base_that_is_gone_is_downloaded_in_a_job_before_its_run_is_resumed(prepared, root, hub, queue, jobs):
    model = hub.add_model("a/model", fetch.fetch_model(small_recipe().model))
    sha = model.sha
    model.commit({"config.json": b"{}"})  # which the run was not prepared on
    secret = copied(prepared, root / "far", "a/model")
    (root / "far/plan.json").write_text((root / "far/plan.json").read_text().replace(SHA, sha))
    ann = Visitor("ann", "9.9.9.9", secrets={"far": secret})

    async def resume() -> dict:
        return await anext(api.resume("far", secret, ann))

    assert actions.needs_download("far", ann)
    for number in range(4):
        run_queue.bounds.hold(f"other{number}", ann)
        queue.join(f"other{number}", "ann")
    with pytest.raises(TunerError, match="You have 4 runs"):
        asyncio.run(resume())
    assert not jobs
    for number in range(4):
        queue.leave(f"other{number}")
    assert asyncio.run(resume())["run"] == "far"
    assert [job for job, *_ in jobs] == ["fetch"]
    assert queue.held() == ["far"]
    queue.leave("far")
    assert not actions.needs_download("far", ann)
    assert actions.resume("far", ann).id == "far"  # nothing is asked of the Hub
    assert len(jobs) == 1
    with pytest.raises(TunerError, match="already in training or waiting"):
        actions.resume("far", ann)
    with pytest.raises(TunerError, match="A link to a run is for looking"):
        actions.needs_download("far", Visitor("bob"))
