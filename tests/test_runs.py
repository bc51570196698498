"""The run folder: only complete files, and a status that is right whatever happened to the process."""

import errno
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


STARTING, START = {"event": "starting"}, {"event": "start", "step": 0}


@pytest.mark.parametrize(
    ("before", "after", "counts"),
    [
        ([], [], False),
        ([STARTING], [], True),
        ([STARTING, START, STARTING], [], True),
        ([STARTING, START], [], False),  # a killed process leaves its stop behind
        ([STARTING], [START], False),
        ([STARTING], [START, STARTING], False),
        ([STARTING, START], [STARTING], False),
    ],
)
@pytest.mark.parametrize("jump", [0, 86400, -86400])
def test_only_a_stop_requested_for_the_window_that_begins_counts(run, monkeypatch, before, after, counts, jump):
    """Whatever the clock says: it is set by a day after the stop."""
    now, ticks = time.time(), iter(range(9))
    monkeypatch.setattr(time, "time", lambda: now + next(ticks))
    for event in before:
        run.append(event)
    run.stop()
    monkeypatch.setattr(time, "time", lambda: now + jump + next(ticks))
    for event in after:
        run.append(event)
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
while len(looks) < 11 or not run.is_asked_to_stop:
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
    """A run of 100 KB whose last event is so old."""
    run = runs.create(Recipe(), path=root / name)
    for event in events:
        run.append(event)
        if event == ENDED:
            run.write_json("evaluation.json", {})
    (run.data / "ballast").write_bytes(bytes(102_400))
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
    assert runs_cleanup.make_room(tmp_path, limit=500_000) == []
    assert runs_cleanup.make_room(tmp_path, limit=380_000) == ["old"]
    assert runs_cleanup.make_room(tmp_path, limit=140_000) == ["new", "stopped"]
    assert [run.id for run in runs.list_runs(tmp_path)] == ["signed_in"]


def test_a_run_in_training_or_in_line_never_makes_room_nor_what_is_to_be_kept(tmp_path):
    training = aged(tmp_path, "training", 50, QUEUED, {"event": "start"})
    aged(tmp_path, "waiting", 0.1, QUEUED)
    aged(tmp_path, "example", 99, ENDED)
    with training.training():
        assert runs_cleanup.make_room(tmp_path, frozenset({"example"}), limit=0) == []
    assert runs_cleanup.make_room(tmp_path, frozenset({"example"}), limit=0) == ["training"]


# Status


END = {"event": "end", "step": 9}
STATUSES = [
    ([], "prepared", False),
    ([{"event": "queued"}, {"event": "starting"}], "prepared", False),
    ([{"event": "start", "step": 0}, {"event": "checkpoint", "step": 4}], "interrupted", False),
    ([{"event": "start", "step": 0}, {"event": "died"}], "paused", False),
    ([{"event": "start", "step": 0}, {"event": "error", "problems": []}], "failed", False),
    ([{"event": "error", "problems": []}, {"event": "start", "step": 0}], "interrupted", False),
    ([END | {"reason": "window"}], "paused", False),
    ([END | {"reason": "stopped"}], "stopped", False),
    ([END | {"reason": "clock"}], "interrupted", True),
    ([END | {"reason": "steps"}, {"event": "unscored", "reason": "window"}], "paused", True),
    ([END | {"reason": "steps"}, {"event": "unscored", "reason": "stopped"}], "stopped", True),
    ([END | {"reason": "steps"}, {"event": "died"}], "paused", True),
    ([END | {"reason": "steps"}, {"event": "error", "problems": []}], "failed", True),
    ([END | {"reason": "steps"}, {"event": "start", "step": 9}], "interrupted", False),
]


@pytest.mark.parametrize(("events", "ending", "is_trained"), STATUSES)
def test_the_latest_of_the_events_that_end_a_window_is_the_runs_status(run, events, ending, is_trained):
    for event in events:
        run.append(event)
    assert (run.ending, run.status, run.is_trained) == (ending, ending, is_trained)
    run.write_json("evaluation.json", {})
    assert run.ending == ("finished" if is_trained else ending)
    with run.training():
        assert run.status == "training"


def test_a_run_of_a_newer_version_is_not_trained(run):
    newer = f"Run {run.id} was made by a newer version of Tuner, which this version can't read. Update Tuner, or "
    newer += "train the recipe again here."
    for number, problem in ((None, None), (1, None), (2, None), (3, newer)):
        run.write_json("plan.json", {"settings": {}} | ({"format": number} if number else {}))
        if problem:
            with pytest.raises(TunerError) as caught, run.training():
                pass
            assert str(caught.value) == problem
        else:
            with run.training():
                assert run.is_training
        assert not run.is_training
    assert runs.FORMAT == 2


def test_a_window_that_breaks_gives_the_run_back_and_forgets_its_stop(run):
    def broken() -> None:
        with run.training():
            run.stop()
            with pytest.raises(TunerError) as caught, run.training():
                pass
            assert str(caught.value) == f"Run {run.id} is already in training. Watch it, or stop it first."
            assert run.is_asked_to_stop  # a second trainer's end is not the first one's
            raise KeyError

    with pytest.raises(KeyError):
        broken()
    assert not run.is_asked_to_stop
    assert not run.is_training


# Files


AGAIN = "Train its recipe again in a new run."
PREPARE = "Prepare the run again with: tuner train RECIPE --out RUN"
SCORE = "Delete that file, then score the run again with: tuner evaluate RUN"
MERGE = "Delete that file, then merge the run again with: tuner merge RUN"


@pytest.mark.parametrize(
    ("name", "repair"),
    [
        ("plan.json", PREPARE),
        ("evaluation.json", SCORE),
        ("answers.json", SCORE),
        ("merge_check.json", MERGE),
        ("other.json", AGAIN),
    ],
)
@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff\xfe", b"null"])
def test_a_damaged_file_is_named_with_what_to_do(run, name, repair, content):
    assert run.read_json(name) is None
    (run.path / name).write_bytes(content)
    with pytest.raises(TunerError) as caught:
        run.read_json(name)
    assert str(caught.value) == f"Run {run.id}: its {name} is damaged. {repair}"


def test_all_damage_of_a_run_is_told(run):
    assert run.damage == [f"Run {run.id}: its plan.json is missing. {PREPARE}"]
    run.write_json("plan.json", {"rows": 3})
    assert run.damage == [f"Run {run.id}: its plan.json is incomplete (it has no 'settings'). {PREPARE}"]
    run.write_json("plan.json", {"settings": {}})
    assert run.damage == []
    run.write_text("evaluation.json", "{")
    run.write_text("recipe.yaml", "nonsense: 1\n")
    first, second = run.damage
    assert first.startswith(f"Run {run.id}: its recipe.yaml is damaged, or of another version. ")
    assert ".." not in first
    assert "nonsense" in first
    assert first.endswith(AGAIN)
    assert second == f"Run {run.id}: its evaluation.json is damaged. {SCORE}"


def test_recipe_and_plan_are_those_that_were_written_last(run):
    assert run.plan == {}
    other = runs.Run(run.path)
    other.write_json("plan.json", {"rows": 3})  # prepared by somebody else
    assert run.plan == {"rows": 3}
    assert run.plan is run.plan
    run.write_json("plan.json", {"rows": 4})
    assert run.plan == {"rows": 4}
    assert run.recipe is run.recipe
    run.write_text("recipe.yaml", small_recipe(seed=9).to_yaml())
    assert run.recipe.seed == 9


def test_a_file_is_written_whole_or_not_at_all(run, monkeypatch):
    run.write_json("a.json", {"name": "Zoë", "rows": [1]})
    text = '{\n "name": "Zoë",\n "rows": [\n  1\n ]\n}\n'
    assert (run.path / "a.json").read_text(encoding="utf-8") == text
    run.write_text("data/b.txt", "ä")
    assert (run.data / "b.txt").read_bytes() == "ä".encode()
    before = sorted(run.path.rglob("*"))
    write = Path.write_text

    def half(path, text, encoding=None):
        write(path, text[:3], encoding)
        raise OSError("half of it")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", half)
        with pytest.raises(OSError, match="half"):
            run.write_json("a.json", {})
    assert (run.path / "a.json").read_text(encoding="utf-8") == text
    run.write_json("a.json", {})
    assert sorted(run.path.rglob("*")) == before


@pytest.mark.parametrize("name", ["adapter", "merged/adapter"])
def test_a_folder_replaces_all_of_the_older_one(run, name):
    def break_off() -> None:
        with run.folder(name) as folder:
            (folder / "half").write_text("")
            raise KeyError

    for content in ("old", "new"):
        with pytest.raises(KeyError):
            break_off()
        with run.folder(name) as folder:
            assert list(folder.iterdir()) == []
            assert folder.parent == run.path
            (folder / content).write_text("")
        assert [file.name for file in (run.path / name).iterdir()] == [content]
        assert {path.name for path in run.path.iterdir()} == {name.split("/")[0], "data", "recipe.yaml"}


def test_each_part_of_a_run_has_its_place_in_the_folder(run):
    places = {"adapter": run.adapter, "merged": run.merged, "data": run.data, "checkpoints": run.checkpoints}
    assert places == {name: run.path / name for name in places}
    assert run.log.path == run.path / "events.jsonl"


def test_a_new_run_is_where_it_is_wanted(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "RUNS", tmp_path / "all")
    monkeypatch.setattr(runs.secrets, "token_urlsafe", lambda size: "a-b_c" * size)
    assert runs.create(small_recipe()).path == tmp_path / "all" / ("axbyc" * 12)
    assert runs.create(small_recipe(), root=tmp_path / "root").path == tmp_path / "root" / ("axbyc" * 12)
    made = runs.create(small_recipe(seed=3), root=tmp_path / "root", path=tmp_path / "deep" / "here")
    assert (made.path, made.id, made.recipe.seed) == (tmp_path / "deep" / "here", "here", 3)
    assert made.data.is_dir()
    (file := tmp_path / "file").write_text("")
    with pytest.raises(TunerError) as caught:
        runs.create(small_recipe(), path=file)
    assert str(caught.value) == f"{file} can't be the run's folder: not a directory. Choose another folder."


def test_a_full_disk_is_not_taken_for_a_wrong_folder(tmp_path, monkeypatch):
    def refuse(number):
        def write(path, *rest, **more):
            raise OSError(number, os.strerror(number)) if number else OSError()

        return write

    monkeypatch.setattr(Path, "write_text", refuse(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        runs.create(small_recipe(), path=tmp_path / "run")
    monkeypatch.setattr(Path, "write_text", refuse(None))
    with pytest.raises(TunerError, match=r"can't be the run's folder: oserror\. Choose"):
        runs.create(small_recipe(), path=tmp_path / "run")


def test_a_run_is_opened_by_its_id_first_and_by_its_path_on_ones_own_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs, "RUNS", tmp_path / "all")
    for path in ("all/one", "one", "two", "other/one"):
        runs.create(small_recipe(), path=tmp_path / path)
    (tmp_path / "all" / "empty").mkdir()
    assert runs.open_run("one").path == tmp_path / "all" / "one"
    assert runs.open_run("one", tmp_path / "other").path == tmp_path / "other" / "one"
    assert runs.open_run("two").path == Path("two")
    assert runs.open_run(tmp_path / "two").path == tmp_path / "two"
    assert runs.open_run("./one").path == Path("one")
    for name, local in (("two", False), ("empty", True), ("three", True)):
        with pytest.raises(TunerError) as caught:
            runs.open_run(name, local=local)
        assert str(caught.value) == f"There is no run '{name}'. Check the id in your list of runs, or train a new one."


def test_runs_are_listed_newest_first(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "RUNS", tmp_path)
    for name, age in (("b", 20), ("a", 10), ("c", 30)):
        made = runs.create(small_recipe(), path=tmp_path / name)
        os.utime(made.path / "recipe.yaml", (time.time() - age,) * 2)
    (tmp_path / "no run").mkdir()
    assert [run.id for run in runs.list_runs()] == ["a", "b", "c"]
    assert runs.list_runs(tmp_path / "elsewhere") == []


# Room


def test_no_more_runs_make_room_than_are_needed(tmp_path, monkeypatch):
    for hours, name in enumerate("abcd", 2):
        aged(tmp_path, name, hours, QUEUED, ENDED)
    sizes = {
        run.id: sum(f.stat().st_blocks * 512 for f in run.path.rglob("*") if f.is_file())
        for run in runs.list_runs(tmp_path)
    }
    total = sum(sizes.values())
    assert runs_cleanup.make_room(tmp_path, limit=total) == []
    assert runs_cleanup.make_room(tmp_path, limit=total - 1) == ["d"]
    monkeypatch.setattr(runs_cleanup, "LIMIT", sizes["a"])
    monkeypatch.setattr(runs, "RUNS", tmp_path)
    assert runs_cleanup.make_room(keep=frozenset({"c"})) == ["b", "a"]
    assert [run.id for run in runs.list_runs()] == ["c"]


@pytest.mark.parametrize(
    ("minutes", "events", "goes"),
    [
        (59, [QUEUED], False),
        (61, [QUEUED], True),
        (1, [QUEUED, ENDED], True),
        (59, [{"event": "end", "reason": "window"}], False),
        (61, [{"event": "end", "reason": "window"}], True),
        (59, [{"event": "error", "problems": []}], False),
    ],
)
def test_a_run_in_progress_is_kept_for_an_hour_after_its_last_event(tmp_path, minutes, events, goes):
    aged(tmp_path, "run", minutes / 60, *events)
    assert runs_cleanup.make_room(tmp_path, limit=0) == ["run"] * goes


def test_whose_a_run_is_shows_from_who_queued_it_first(tmp_path):
    begun, signed_in = {"event": "start", "step": 0}, QUEUED | {"signed_in": True}
    aged(tmp_path, "somebody's", 9, begun, signed_in, QUEUED, ENDED)
    aged(tmp_path, "nobody's", 8, begun, QUEUED, signed_in, ENDED)
    assert runs_cleanup.make_room(tmp_path, limit=150_000) == ["nobody's"]


def test_a_run_without_events_is_as_old_as_its_folder(tmp_path):
    for name, minutes in (("old", 61), ("new", 59)):
        made = runs.create(small_recipe(), path=tmp_path / name)
        os.utime(made.path, (time.time() - 60 * minutes,) * 2)
    assert runs_cleanup.make_room(tmp_path, limit=0) == ["old"]


def test_a_file_that_cannot_be_deleted_does_not_keep_the_others(tmp_path, monkeypatch):
    (aged(tmp_path, "locked", 9, QUEUED, ENDED).path / "lock.pid").write_text("")
    goes, unlink = aged(tmp_path, "goes", 8, QUEUED, ENDED), os.unlink

    def refuse(path, *rest, **more):
        if os.path.basename(path) == "lock.pid":
            raise PermissionError
        unlink(path, *rest, **more)

    monkeypatch.setattr(os, "unlink", refuse)
    runs_cleanup.make_room(tmp_path, limit=0)
    assert not goes.path.exists()
