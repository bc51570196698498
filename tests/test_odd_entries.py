"""Entries of a run's files that are of the wrong kind, or missing: each is told or left out, and breaks nothing."""

import json
import os
import threading

import pytest
from visitors_runs import with_events

from tuner import gpu, run_lock, runs_cleanup
from tuner.errors import TunerError
from tuner.runs import Run
from tuner.ui import actions, progress, render

pytest_plugins = ["page_fixtures"]

STEP = {"event": "step", "step": 3, "steps": 9, "loss": 1.5, "seconds": 2.0}
STEP |= {"tokens_per_second": 40.0, "seconds_to_go": 5.0}


def change(run: Run, name: str, **entries) -> None:
    """Change entries of one of the run's files."""
    run.write_text(name, json.dumps(run.read_json(name) | entries))


@pytest.mark.parametrize(
    "entries",
    [{"format": "2"}, {"tokens": "12"}, {"trainable_parameters": 10**400}, {"steps": "7"}, {"steps": -1}],
    ids=str,
)
def test_a_plan_with_a_number_as_text_or_beyond_all_bounds_is_told_and_stops_no_new_run(mine, entries):
    change(mine, "plan.json", **entries)
    (mine.path / "evaluation.json").unlink()
    mine = Run(mine.path)
    assert mine.damage == [
        "Run mine: its plan.json is damaged. Prepare the run again with: tuner train RECIPE --out RUN"
    ]
    assert actions.summary(mine)["status"] == "damaged"
    runs_cleanup.make_room(needed=0)


@pytest.mark.parametrize("gain", [{"rougeL": "0.5"}, {"rougeL": 10**400}], ids=["text", "digits"])
def test_scores_that_are_no_numbers_are_told(mine, gain):
    change(mine, "evaluation.json", gain=mine.read_json("evaluation.json")["gain"] | gain)
    assert mine.damage == [
        "Run mine: its evaluation.json is damaged. Delete that file, then score the run again with: tuner evaluate RUN"
    ]


@pytest.mark.parametrize("missing", ["loss", "tokens_per_second", "seconds_to_go", "seconds"])
@pytest.mark.parametrize("value", [None, float("nan"), float("inf"), ...], ids=["null", "nan", "inf", "none"])
def test_a_figure_that_a_step_lacks_is_left_out_of_the_card(mine, missing, value):
    with_events(mine, {"event": "start", "step": 0})
    step = {key: entry for key, entry in (STEP | {missing: value}).items() if entry is not ...}
    with open(mine.log.path, "a") as log:
        log.write(json.dumps({"time": 1.0} | step) + "\n")
    now = progress.read(mine)
    assert now.step == 3
    for phase in ("training", "interrupted"):
        card = render.run_card(mine, progress.Progress(phase, now.step, now.steps, now.losses, last=now.last))
        assert ">nan<" not in card
        assert ">inf<" not in card
        assert (">40<" in card) is (missing != "tokens_per_second")


@pytest.mark.parametrize(
    "odd",
    [
        {"event": "error", "problems": [1, {}]},
        {"event": "micro_batch"},
        {"event": "micro_batch", "rows": 2, "of": "x"},
        {"event": "step", "step": 4, "loss": "1.0"},
        {"event": "step", "step": 4, "loss": 10**400},
        {"event": "step", "step": 10**400, "loss": 1.0},
        {"event": "step", "step": True, "loss": 1.0},
        {"event": "heldout", "step": 4, "loss": "x"},
        {"event": "end", "reason": "steps", "seconds": "x", "seconds_per_step": "y"},
        {"event": "end", "reason": "steps", "seconds": 1e400, "seconds_per_step": 1e400, "peak_memory": "x"},
    ],
    ids=lambda odd: str(odd)[:60],
)
@pytest.mark.parametrize("is_scored", [True, False])
def test_an_event_with_entries_of_the_wrong_kind_breaks_no_look(mine, odd, is_scored):
    if not is_scored:
        with_events(mine, {"event": "start", "step": 0}, STEP)
    with open(mine.log.path, "a") as log:
        log.write(json.dumps({"time": 1.0} | odd) + "\n")
    assert render.run_card(Run(mine.path))
    assert actions.summary(Run(mine.path))["problems"] == []


ODD = {
    "a pipe": os.mkfifo,
    "a folder": os.mkdir,
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link out of the folder": lambda path: path.symlink_to(path.parent.parent / "elsewhere"),
}


@pytest.mark.parametrize("odd", ODD)
def test_what_a_training_prints_goes_into_a_file_and_anything_else_in_its_place_is_told_at_once(mine, odd):
    ODD[odd](mine.path / "train.log")
    told: list[Exception] = []

    def train() -> None:
        try:
            next(gpu.train(mine))
        except Exception as error:
            told.append(error)

    thread = threading.Thread(target=train, daemon=True)
    thread.start()
    thread.join(5)
    assert [error.problems for error in told] == [
        ("Run mine: its train.log is no file. Train its recipe again in a new run.",)
    ]
    assert not (mine.path.parent / "elsewhere").exists()


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("name", ["lock", "lock.look", "lock.merge"])
def test_a_lock_is_not_taken_through_a_link(mine, name, exists):
    elsewhere = mine.path.parent / "elsewhere"
    if exists:
        elsewhere.write_text("kept")
    (mine.path / name).symlink_to(elsewhere)
    assert not mine.is_training
    hold, what = (run_lock.merging(mine.path), "merged") if name == "lock.merge" else (mine.training(), "trained")
    with pytest.raises(TunerError, match=rf"^Run mine can't be {what}: its folder can't be written to \("), hold:
        pass
    assert elsewhere.exists() == exists


def test_a_lock_is_seen_where_nothing_can_be_written(mine, monkeypatch):
    def refuse(*given, **more):
        raise OSError(30, "Read-only file system")

    with Run(mine.path).training():
        monkeypatch.setattr(run_lock, "take", refuse)
        assert mine.is_training
    assert not mine.is_training
