"""A Space loses its disk when it restarts: the page says so to those whose runs are there, and to nobody else."""

import os
from pathlib import Path

import gradio as gr
import pytest
from conftest import ROOT, plain

from tuner import runs
from tuner.runs import Run
from tuner.ui import actions, render, runs_tab

LOST = "This Space's disk is erased when it restarts: push an adapter to the Hub to keep it."


@pytest.fixture
def space(monkeypatch):
    """A function that makes this process a Space, or not, with its runs in a folder and a bucket at /data, or not."""

    def become(folder: Path | str, space_id: str | None = "alice/tuner", mounts: tuple[str, ...] = ("/data",)) -> None:
        monkeypatch.setattr(os.path, "ismount", lambda path: str(path) in ("/", *mounts))
        monkeypatch.delenv("SPACE_ID", raising=False)
        if space_id:
            monkeypatch.setenv("SPACE_ID", space_id)
        monkeypatch.setattr(runs, "RUNS", Path(folder))

    return become


def my_runs() -> str:
    """All text of the tab My runs."""
    with gr.Blocks() as blocks:
        runs_tab.build(gr.BrowserState(), has_oauth=False)
    return " ".join(b.value for b in blocks.blocks.values() if isinstance(b, gr.HTML) and b.value)


@pytest.mark.parametrize("folder", ["runs", ROOT / "runs", ROOT / "other/../runs"])
def test_a_space_says_that_its_runs_are_lost_when_it_restarts(space, folder, monkeypatch):
    monkeypatch.chdir(ROOT)
    space(folder)
    assert my_runs().count(LOST) == 1


@pytest.mark.parametrize(("folder", "mounts"), [("/data/runs", ()), ("/tmp/runs", ("/data",))])
def test_a_folder_outside_the_app_is_lost_too_unless_something_is_mounted_there(space, folder, mounts):
    space(folder, mounts=mounts)
    assert my_runs().count(LOST) == 1


def test_a_bucket_may_be_mounted_inside_the_app_and_the_app_be_on_a_disk_of_its_own(space, monkeypatch):
    monkeypatch.setattr(render, "APP", Path("/home/user/app"))
    space("/home/user/app/runs", mounts=("/home/user/app/runs",))
    assert "erased" not in my_runs()
    space("/home/user/app/runs", mounts=("/home/user/app",))
    assert my_runs().count(LOST) == 1


@pytest.mark.parametrize(("folder", "space_id"), [("/data/runs", "alice/tuner"), ("runs", None), ("/data", None)])
def test_runs_in_a_bucket_or_on_ones_own_machine_are_not_said_to_be_lost(space, folder, space_id, monkeypatch):
    monkeypatch.chdir(ROOT)
    space(folder, space_id)
    assert "erased" not in my_runs()


def test_a_finished_run_says_it_where_it_can_be_pushed_unless_it_is_the_example(
    space, finished, tmp_path, monkeypatch
):
    monkeypatch.setattr(render, "APP", tmp_path)
    space(tmp_path / "runs")
    assert plain(render.run_card(finished)).count(LOST) == 1
    (tmp_path / "begun").mkdir()
    for name in ("recipe.yaml", "plan.json"):
        (tmp_path / "begun" / name).write_bytes((finished.path / name).read_bytes())
    assert "erased" not in render.run_card(Run(tmp_path / "begun"))
    space("/data/runs")
    assert "erased" not in render.run_card(finished)
    space(tmp_path / "runs")
    actions.install_example()
    assert "erased" not in render.run_card(actions.open_run(actions.EXAMPLE))
