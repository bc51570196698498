"""The run folder: only complete files, and a status that is right whatever happened to the process."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import ROOT, small_recipe

from tuner import runs, runs_cleanup
from tuner.errors import TunerError
from tuner.recipe import Recipe

HOLD = """
import sys
from tuner.runs import Run
with Run(sys.argv[1]).training():
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def run(tmp_path: Path) -> runs.Run:
    """A run that has not begun."""
    return runs.create(small_recipe(), root=tmp_path)


def test_ids_cannot_be_guessed_and_runs_are_found_by_them(tmp_path):
    made = [runs.create(small_recipe(), root=tmp_path) for _ in range(3)]
    assert len({r.id for r in made}) == 3
    assert {r.id for r in runs.list_runs(tmp_path)} == {r.id for r in made}
    assert runs.open_run(made[0].id, tmp_path).recipe == small_recipe()


def test_no_part_of_an_id_is_given_away_by_the_time_the_seed_or_another_id(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 1e9)
    monkeypatch.setattr(time, "monotonic", lambda: 1e3)
    ids = []
    for _ in range(64):
        random.seed(0)
        ids.append(runs.create(small_recipe(), root=tmp_path).id)
    assert all(len(id) >= 16 and id.isalnum() for id in ids)
    # At each place at least a third of the letters and digits turn up in 64 draws: most of 62 would, few of a counter.
    assert all(len(set(letters)) > 20 for letters in zip(*ids))


@pytest.mark.parametrize(
    "name", ["../beside", "..", ".", "inner/deeper", "{}/runs/mine", "../runs/mine", "mine/../mine"]
)
def test_a_visitors_path_is_never_followed(tmp_path, name):
    """Each of these leads to a run, as one's own machine shows, and to none for a visitor."""
    root = tmp_path / "runs"
    for path in (tmp_path, root, tmp_path / "beside", root / "inner" / "deeper", root / "mine"):
        runs.create(small_recipe(), path=path)
    name = name.format(tmp_path)
    assert (root / name / "recipe.yaml").is_file()
    with pytest.raises(TunerError, match="There is no run"):
        runs.open_run(name, root, local=False)
    assert runs.open_run("mine", root, local=False).path == root / "mine"


def test_an_empty_name_is_no_run(tmp_path):
    runs.create(small_recipe(), root=tmp_path)
    runs.create(small_recipe(), path=tmp_path)  # the folder of runs may be a run itself
    with pytest.raises(TunerError, match="There is no run"):
        runs.open_run("", tmp_path, local=False)


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
    with pytest.raises(TunerError, match="already in training"), run.training():
        pass
    holder.kill()
    holder.wait()
    assert run.status == "interrupted"


@pytest.mark.parametrize(("begun", "counts"), [(None, False), (60, False), (-60, True)])
def test_only_a_stop_requested_since_the_window_was_begun_counts(run, begun, counts):
    """A killed process leaves its stop behind; `begun` is in seconds after the stop, None if no window was begun."""
    run.stop()
    if begun is not None:
        run.append({"event": "starting", "time": time.time() + begun})
    with run.training():
        assert run.is_asked_to_stop == counts
    assert not run.is_asked_to_stop


FORKING = """
import multiprocessing, os, signal, sys
from tuner.runs import Run
multiprocessing.set_start_method("fork")
run = Run(sys.argv[1])

def work():
    print(os.getpid(), flush=True)  # the worker says it, so it is past what it does as it is forked
    signal.pause()

with run.training():
    child = multiprocessing.Process(target=work)
    child.start()
    sys.stdin.readline()
print("released", flush=True)
child.join()
"""


def python(code: str, run: runs.Run) -> subprocess.Popen:
    """A process that does this with the run; it ends with its standard input."""
    command = [sys.executable, "-c", code, str(run.path)]
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)


@pytest.mark.parametrize("how", ["killed", "released"])
def test_a_forked_worker_that_lives_on_does_not_keep_the_run(run, how):
    with python(FORKING, run) as trainer:
        worker = psutil.Process(int(trainer.stdout.readline()))
        assert run.is_training
        if how == "killed":
            trainer.kill()
            trainer.wait()
        else:
            trainer.stdin.write("\n")
            assert trainer.stdout.readline() == "released\n"
        assert worker.is_running()
        assert not run.is_training
        with run.training():
            assert run.is_training
        trainer.kill()
        worker.kill()


LOOKING = """
import sys
from tuner.runs import Run
run, looks = Run(sys.argv[1]), []
print("looking", flush=True)
while not run.is_asked_to_stop:
    looks.append(run.is_training)
print(len(looks), sum(looks), flush=True)
"""


def test_looks_disturb_neither_each_other_nor_a_trainer(run):
    lookers = [python(LOOKING, run) for _ in range(2)]
    for looker in lookers:
        assert looker.stdout.readline() == "looking\n"
    assert not any(run.is_training for _ in range(100))
    run.stop()
    for looker in lookers:
        looks, mistaken = map(int, looker.communicate(timeout=60)[0].split())
        assert looks > 10
        assert mistaken == 0
    (run.path / "stop").unlink()
    lookers = [python(LOOKING, run) for _ in range(2)]
    for looker in lookers:
        assert looker.stdout.readline() == "looking\n"
    for _ in range(50):
        with run.training():  # raises where a look is in the way
            pass
    run.stop()
    for looker in lookers:
        looker.communicate(timeout=60)


@pytest.mark.parametrize(
    ("reason", "unscored", "scored"),
    [
        ("steps", "interrupted", "finished"),
        ("clock", "interrupted", "finished"),
        ("stopped", "stopped", "stopped"),
        ("window", "paused", "paused"),
    ],
)
def test_status_after_the_end_and_after_the_scoring(run, reason, unscored, scored):
    run.append({"event": "start", "step": 0})
    run.append({"event": "end", "reason": reason})
    assert run.status == unscored
    run.write_json("evaluation.json", {})
    assert run.status == scored


def aged(root: Path, name: str, hours: float, *events: dict) -> runs.Run:
    """A run of 10,000 bytes whose last event is so old."""
    run = runs.create(Recipe(), path=root / name)
    for event in events:
        run.append(event)
        if event == ENDED:
            run.write_json("evaluation.json", {})
    (run.path / "ballast").write_bytes(bytes(10_000))
    then = time.time() - 3600 * hours
    os.utime(run.path / "events.jsonl", (then, then))
    return run


QUEUED, ENDED = {"event": "queued"}, {"event": "end", "reason": "steps"}


def test_the_oldest_finished_runs_of_anonymous_visitors_make_room_first(tmp_path):
    # Resumed once, which is queued without a word on who did it.
    aged(tmp_path, "signed_in", 90, QUEUED | {"signed_in": True}, QUEUED, ENDED)
    aged(tmp_path, "stopped", 80, QUEUED, {"event": "end", "reason": "stopped"})
    aged(tmp_path, "old", 70, QUEUED, ENDED)
    aged(tmp_path, "new", 2, QUEUED, ENDED)
    assert runs_cleanup.make_room(tmp_path, limit=50_000) == []
    assert runs_cleanup.make_room(tmp_path, limit=35_000) == ["old"]
    assert runs_cleanup.make_room(tmp_path, limit=14_000) == ["new", "stopped"]
    assert [run.id for run in runs.list_runs(tmp_path)] == ["signed_in"]


def test_a_run_in_training_or_in_line_never_makes_room_nor_what_is_to_be_kept(tmp_path):
    training = aged(tmp_path, "training", 50, QUEUED, {"event": "start"})
    aged(tmp_path, "waiting", 0.1, QUEUED)
    aged(tmp_path, "example", 99, ENDED)
    with training.training():
        assert runs_cleanup.make_room(tmp_path, frozenset({"example"}), limit=0) == []
    assert runs_cleanup.make_room(tmp_path, frozenset({"example"}), limit=0) == ["training"]
