"""Trackio, TensorBoard and W&B hold the curve of events.jsonl, however a run was interrupted; none can stop it."""

import io
import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import fresh
import pytest
from conftest import ROOT, mostly_long, small_recipe
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tuner import runs
from tuner.cli import main
from tuner.errors import TunerError
from tuner.planning import jobs, plan, trackers
from tuner.runs import Run
from tuner.training import tracking
from tuner.training.window import train
from tuner.ui import progress

NAMES = list(tracking.TRACKERS)
Curves = dict[str, list[tuple[int, float]]]


@pytest.fixture(autouse=True)
def no_settings(monkeypatch) -> None:
    """What a person may have told W&B."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)


# -- each tracker's own reader


def in_tensorboard(run: Run) -> Curves:
    reader = EventAccumulator(str(run.path / "tracking"), size_guidance={"scalars": 0})
    reader.Reload()
    times = [(e.step, e.wall_time) for e in reader.Scalars("train/loss")]
    return {tag: [(e.step, e.value) for e in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]} | {
        "time": times
    }


def in_trackio(run: Run) -> Curves:
    from trackio import SQLiteStorage

    curves: Curves = {}
    for row in SQLiteStorage.get_logs(tracking.PROJECT, run_id=run.read_json("tracking.json")["id"]):
        values = {**row, "time": datetime.fromisoformat(row["timestamp"]).timestamp()}
        for name in values.keys() - {"step", "timestamp"}:
            curves.setdefault(name, []).append((row["step"], values[name]))
    return curves


def in_wandb(run: Run) -> Curves:
    (file,) = run.path.glob("tracking/wandb/offline-run-*/run-*.wandb")
    curves: Curves = {}
    # W&B's own process writes the end of the file some milliseconds after `finish`.
    deadline = time.monotonic() + 20
    while not any(record.WhichOneof("record_type") == "exit" for record in records(file.read_bytes())):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for record in records(file.read_bytes()):
        values = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
        for name, value in values.items():
            name = {"_timestamp": "time"}.get(name, name)
            if not name.startswith("_"):
                curves.setdefault(name, []).append((record.history.step.num, json.loads(value)))
    return curves


def records(data: bytes) -> Iterator:
    """The records of a .wandb file: W&B's messages in the frames of a LevelDB log, after a header of 7 bytes.

    wandb 0.31 has no reader of its own in Python.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    place, whole = 7, b""
    assert data[:4] == b":W&B"
    while place + 7 <= len(data):
        if (left := 2**15 - place % 2**15) < 7:
            place += left
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # the whole of a record, or its last part
            yield Record.FromString(whole)
            whole = b""


READERS = {"tensorboard": in_tensorboard, "trackio": in_trackio, "wandb": in_wandb}


def rounded(name: str, curve: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """The curve as the tracker stores it: TensorBoard has 32 bits for a number."""
    if name == "tensorboard":
        return [(step, struct.unpack("f", struct.pack("f", value))[0]) for step, value in curve]
    return curve


def assert_same_times(run: Run, curves: Curves) -> None:
    """Each step is tracked with the time at which it was done, not with that at which it was written once more."""
    times: dict[int, list[float]] = {}
    for event in run.events():
        times.setdefault(event.get("step", max(times, default=0)), []).append(event["time"])
    assert len(curves["time"]) > 1
    for step, at in curves.pop("time"):
        assert min(abs(at - done) for done in times[step]) < 0.001


def assert_same_curve(run: Run) -> None:
    """Each step that counts is tracked once, with its value."""
    name = run.recipe.tracking
    curves = READERS[name](run)
    assert_same_times(run, curves)
    now = progress.read(run)
    steps = {event["step"]: event for event in run.events() if event["event"] == "step"}
    assert len(now.losses) == len(steps) > 1
    assert curves["train/loss"] == rounded(name, now.losses)
    for key in ("learning_rate", "grad_norm", "tokens_per_second"):
        assert curves[f"train/{key}"] == rounded(name, [(step, steps[step][key]) for step in sorted(steps)])
    assert curves.get("eval/loss", []) == rounded(name, sorted(dict(now.heldout).items()))
    scores = run.read_json("evaluation.json")
    if scores:
        for variant in ("base", "adapter"):
            for key in (scores["metric"], "loss"):
                assert curves[f"scores/{variant}/{key}"] == rounded(name, [(now.step, scores[variant][key])])


# -- runs that are interrupted


def handmade(folder: Path, name: str, title: str | None = None) -> Run:
    run = runs.create(small_recipe(tracking=name, name=title), path=folder)
    run.write_json("plan.json", {"settings": {"batch_size": 4}})
    return run


def step(number: int, loss: float) -> dict:
    figures = {"loss": loss, "learning_rate": 0.1 / number, "grad_norm": 1.0, "tokens_per_second": 30.5}
    return {"event": "step", "step": number, "steps": 9, **figures}


def window(run: Run, *events: dict) -> list[dict]:
    """A window that says these; what its follower sees."""
    seen: list[dict] = []
    with tracking.tracked(run, seen.append) as put:
        for event in events:
            put(run.append(event))
    return seen


@pytest.mark.parametrize("name", mostly_long(NAMES, "tensorboard", "trackio"))
def test_steps_that_are_trained_again_replace_the_first_ones(name, tmp_path):
    run = handmade(tmp_path / "run", name)
    other = handmade(tmp_path / "other" / "run", name)  # of the same name
    window(other, {"event": "start", "step": 0}, step(1, 7.0), step(2, 7.5))
    heldout = [{"event": "heldout", "step": at, "loss": loss} for at, loss in ((0, 3.0), (2, 2.5), (4, 2.25), (4, 2))]
    first = [{"event": "start", "step": 0}, heldout[0], step(1, 3.0), step(2, 2.125), heldout[1], step(3, 9.0)]
    assert [event["event"] for event in window(run, *first, step(4, 9.5), heldout[2])][-2:] == ["step", "heldout"]
    # Its process is killed here: the last checkpoint was after step 2.
    window(run, {"event": "start", "step": 2}, step(3, 1.75), step(4, 1.5), heldout[3], {"event": "end", "step": 4})
    losses = [(1, 3.0), (2, 2.125), (3, 1.75), (4, 1.5)]
    assert READERS[name](run)["train/loss"] == losses
    gains = {"base": {"rougeL": 0.25, "loss": 3.0}, "adapter": {"rougeL": 0.75, "loss": 2.0}, "gain": {"rougeL": 0.5}}
    more = {"rows": 12, "losses": {"last": 2.0}, "few_shot": {"rougeL": 0.5}, "other_rows": {"rougeL": 0.125}}
    window(run, {"event": "answered", "row": 2}, {"event": "evaluation", "metric": "rougeL", **gains, **more})
    curves = READERS[name](run)
    assert_same_times(run, curves)
    rates = [(n, 0.1 / n) for n in range(1, 5)]
    scores = {"base/rougeL": 0.25, "base/loss": 3.0, "adapter/rougeL": 0.75, "adapter/loss": 2.0}
    scores |= {"gain/rougeL": 0.5, "few_shot/rougeL": 0.5}
    assert {key: sorted(curve) for key, curve in curves.items()} == {
        "train/loss": losses,
        "train/learning_rate": rounded(name, rates),
        "train/grad_norm": [(n, 1.0) for n in range(1, 5)],
        "train/tokens_per_second": [(n, 30.5) for n in range(1, 5)],
        "eval/loss": [(0, 3.0), (2, 2.5), (4, 2)],
        **{f"scores/{key}": [(4, value)] for key, value in scores.items()},
    }
    assert READERS[name](other)["train/loss"] == [(1, 7.0), (2, 7.5)]


def test_a_tensorboard_that_looks_on_shows_the_curve_of_the_resumed_run(tmp_path):
    run = handmade(tmp_path / "run", "tensorboard")
    window(run, {"event": "start", "step": 0}, step(1, 3.0), step(2, 2.0), step(3, 9.0))
    reader = EventAccumulator(str(run.path / "tracking"))
    for loss in (1.75, 1.5):
        reader.Reload()
        window(run, {"event": "start", "step": 2}, step(3, loss))
        reader.Reload()
        assert [(e.step, e.value) for e in reader.Scalars("train/loss")] == [(1, 3.0), (2, 2.0), (3, loss)]


@pytest.mark.parametrize("name", mostly_long(NAMES, "tensorboard"))
def test_a_run_that_was_stopped_goes_on_in_the_same_curve(name, small_base, tmp_path):
    run = plan.prepare(
        small_recipe(model__name=small_base, evaluation__loss_every=2, tracking=name), path=tmp_path / "run"
    )
    events = train(run)
    for event in events:
        if event["event"] == "step" and event["step"] == 3:
            break
    events.close()
    assert run.status == "stopped"
    assert_same_curve(run)
    list(train(run))
    assert run.status == "finished"
    assert_same_curve(run)
    assert not [event for event in run.events() if event["event"] == "untracked"]
    assert len(READERS[name](run)["eval/loss"]) >= 4


def test_scores_made_in_the_terminal_after_a_stop_are_in_the_same_curve(small_base, tmp_path):
    recipe = small_recipe(model__name=small_base, evaluation__loss_every=2, tracking="tensorboard")
    run = plan.prepare(recipe, path=tmp_path / "run")
    events = train(run)
    next(event for event in events if event["event"] == "step" and event["step"] == 3)
    events.close()
    assert (run.status, run.read_json("evaluation.json")) == ("stopped", None)
    assert main(["evaluate", str(run.path), "--json"]) == 0
    assert run.read_json("evaluation.json")
    assert_same_curve(run)


@pytest.mark.long
@pytest.mark.parametrize("name", NAMES)
def test_a_run_that_was_killed_goes_on_in_the_same_curve(name, small_base, tmp_path, monkeypatch):
    # Its only checkpoint is that of the stop, so the steps after it are trained and tracked twice.
    settings = {"budget__steps": 60, "evaluation__loss_every": 5, "training__checkpoint_seconds": 3600}
    run = plan.prepare(small_recipe(model__name=small_base, tracking=name, **settings), path=tmp_path / "run")
    events = train(run)
    next(event for event in events if event["event"] == "step" and event["step"] == 3)
    events.close()
    saved = run.last_event("checkpoint")["step"]
    monkeypatch.delenv("WANDB_SERVICE", raising=False)  # or W&B would write from this process for the next ones, too
    command = ["-m", "tuner", "train", str(run.path), "--json"]
    with fresh.start(command, ROOT, stderr=subprocess.DEVNULL) as process:
        for line in process.stdout:
            event = json.loads(line)  # nothing else is printed there
            if event["event"] == "step" and event["step"] >= saved + 3:
                process.send_signal(signal.SIGKILL)
                break
        process.stdout.read()  # it is dead when the other end is closed
    assert run.status == "interrupted"
    assert run.last_event("step")["step"] >= saved + 3
    result = fresh.run(command, ROOT)
    assert result.returncode == 0, result.stderr
    assert run.last_event("start")["step"] == saved
    assert run.status == "finished"
    assert_same_curve(run)


# -- trackers that can't be used


@pytest.mark.parametrize("name", NAMES)
def test_a_package_that_is_missing_is_a_problem_before_the_start(name, monkeypatch):
    recipe = small_recipe(tracking=name)
    assert trackers.tracking_problems(recipe, local=True) == []
    told = {choice["setting"]: choice for choice in plan.check(recipe).plan["chosen"]}["tracking"]
    assert told["value"] == name
    assert name in told["reason"]
    monkeypatch.setattr(trackers, "find_spec", lambda package: None)
    with pytest.raises(TunerError, match=rf"{name} is not installed. Install it \(pip install {name}\)"):
        plan.check(recipe)
    assert trackers.tracking_problems(small_recipe(), local=True) == []


def test_a_folder_with_the_name_of_a_tracker_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    (problem,) = trackers.tracking_problems(small_recipe(tracking="wandb"), local=True)
    assert problem.startswith("tracking: wandb is not installed.")


def test_a_visitors_recipe_with_a_tracker_is_refused():
    recipe = small_recipe(tracking="wandb")
    for check in (lambda: plan.check(recipe, local=False), lambda: jobs.settings(recipe.to_yaml())):
        with pytest.raises(TunerError, match=r"tracking: wandb is for runs in a terminal\. The page draws") as told:
            check()
        assert len(told.value.problems) == 1
    assert jobs.settings(small_recipe().to_yaml())["tracking"] == "none"


def broken_database() -> Path:
    """Trackio's database, which can't be written to any more."""
    from trackio import SQLiteStorage

    file = SQLiteStorage.get_project_db_path(tracking.PROJECT)
    file.replace(file.with_suffix(".kept"))
    file.mkdir()
    return file


def test_a_tracker_that_fails_midway_is_told_of_once_and_training_goes_on(tmp_path):
    run, seen = handmade(tmp_path / "run", "trackio"), []
    window(run, {"event": "start", "step": 0}, step(1, 3.0))
    with tracking.tracked(run, seen.append) as put:
        put(run.append({"event": "start", "step": 1}))
        file = broken_database()
        put(run.append(step(2, 2.0)))
    try:
        assert [event["event"] for event in seen] == ["start", "step", "untracked"]
        (problem,) = seen[-1]["problems"]
        assert problem.startswith("trackio tracks this run no longer: ")
        assert problem.endswith("Its training goes on.")
        assert run.last_event("untracked") == seen[-1]
    finally:
        file.rmdir()
        file.with_suffix(".kept").replace(file)
    # The next window tracks all of it.
    window(run, {"event": "start", "step": 2}, step(3, 1.0))
    assert in_trackio(run)["train/loss"] == [(1, 3.0), (2, 2.0), (3, 1.0)]


@pytest.mark.parametrize(
    ("name", "prevent", "why"),
    [
        ("trackio", lambda run, patch: patch.setitem(sys.modules, "trackio", None), "trackio is not installed"),
        ("tensorboard", lambda run, patch: (run.path / "tracking").write_text("a file"), "file exists"),
        ("wandb", lambda run, patch: patch.setenv("WANDB_MODE", "online"), "No API key configured"),
    ],
)
def test_a_tracker_that_cant_be_opened_is_told_of_once_and_training_goes_on(name, prevent, why, tmp_path, monkeypatch):
    run = handmade(tmp_path / "run", name)
    monkeypatch.setenv("HOME", str(tmp_path))  # where W&B looks for a key
    monkeypatch.setattr(sys, "stdin", io.StringIO())  # and for a person
    prevent(run, monkeypatch)
    seen = window(run, {"event": "start", "step": 0}, step(1, 3.0), step(2, 2.0))
    assert [event["event"] for event in seen] == ["start", "untracked", "step", "step"]
    (problem,) = seen[1]["problems"]
    assert problem.startswith(f"{name} tracks this run no longer: ")
    assert why in problem
    assert progress.read(run).losses == [(1, 3.0), (2, 2.0)]


def test_a_run_that_was_deleted_meanwhile_ends_without_a_traceback(tmp_path):
    run, seen = handmade(tmp_path / "run", "tensorboard"), []
    with tracking.tracked(run, seen.append) as put:
        put(run.append({"event": "start", "step": 0}))
        event = run.append(step(1, 3.0))
        run.delete()
        put(event)
    assert not run.path.exists()
    assert [event["event"] for event in seen][:2] == ["start", "step"]


def test_without_a_tracker_none_is_imported_or_written(tmp_path):
    run = handmade(tmp_path / "run", "none")
    seen = window(run, {"event": "start", "step": 0}, step(1, 3.0))
    assert len(seen) == 2
    assert {path.name for path in run.path.iterdir()} == {"recipe.yaml", "plan.json", "events.jsonl", "data"}
    code = (
        "import sys; import trl.trainer.sft_trainer; before = set(sys.modules)\n"  # which imports W&B where it can
        "import tuner.training.window, tuner.cli, tuner.planning.plan\n"
        "print(sorted({'trackio', 'wandb', 'tensorboard'} & (sys.modules.keys() - before)))"
    )
    assert fresh.run(["-c", code], tmp_path).stdout == "[]\n"
