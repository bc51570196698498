"""The run folder: whole files only, and a status that is true whatever happened to the process."""

import subprocess
import sys

import pytest
from conftest import ROOT, small_recipe

from tuner import runs
from tuner.errors import TunerError

HOLD = """
import sys
from tuner.runs import Run
with Run(sys.argv[1]).training():
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def run(tmp_path):
    return runs.create(small_recipe(), root=tmp_path)


def test_ids_cannot_be_guessed_and_runs_are_found_by_them(tmp_path):
    made = [runs.create(small_recipe(), root=tmp_path) for _ in range(3)]
    assert len({r.id for r in made}) == 3
    assert all(len(r.id) >= 16 for r in made)
    assert {r.id for r in runs.list_runs(tmp_path)} == {r.id for r in made}
    assert runs.open_run(made[0].id, tmp_path).recipe == small_recipe()


@pytest.mark.parametrize("name", ["../x", "..", ".", "/etc", "a/b", ""])
def test_a_visitors_path_is_never_followed(tmp_path, name):
    runs.create(small_recipe(), path=tmp_path / "a" / "b")
    runs.create(small_recipe(), path=tmp_path / "x")
    with pytest.raises(TunerError, match="There is no run"):
        runs.open_run(name, tmp_path / "a", local=False)


def test_half_a_line_left_by_a_kill_is_skipped_and_the_next_event_is_whole(run):
    run.append({"event": "start", "step": 0})
    with open(run.path / "events.jsonl", "a") as file:
        file.write('{"event": "st')
    run.append({"event": "step", "step": 1})
    assert [e["event"] for e in run.events()] == ["start", "step"]


def test_a_folder_takes_its_place_only_when_it_is_whole(run):
    with run.folder("adapter") as folder:
        (folder / "a").write_text("old")
    with pytest.raises(FileNotFoundError), run.folder("adapter") as folder:
        (folder / "missing" / "a").write_text("new")
    assert (run.adapter / "a").read_text() == "old"


def test_status_tells_a_living_process_from_a_killed_one(run):
    assert run.status == "prepared"
    run.append({"event": "start", "step": 0})
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run.path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout.readline() == b"held\n"
    assert run.status == "training"
    with pytest.raises(TunerError, match="in training already"), run.training():
        pass
    holder.kill()
    holder.wait()
    assert run.status == "interrupted"


@pytest.mark.parametrize(("reason", "status"), [("steps", "finished"), ("clock", "finished"), ("stopped", "stopped")])
def test_status_after_the_end(run, reason, status):
    run.append({"event": "start", "step": 0})
    run.append({"event": "end", "reason": reason})
    assert run.status == status
