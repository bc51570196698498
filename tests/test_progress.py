"""How far a run has come, from what has happened to it: its phase, its figures, and what the card then says."""

import json
import time
from contextlib import ExitStack

import pytest
from conftest import in_order, plain
from visitors_runs import copied, with_events

from tuner.planning.forecast import duration
from tuner.ui import progress, render, result, run_queue
from tuner.ui.progress import Curve, Latest, Progress

pytest_plugins = ["page_fixtures"]
STEP = {"seconds_to_go": 75, "loss": 1.23456, "tokens_per_second": 1234.4, "step": 1030}


def aged(run, seconds: float, *events: dict):
    """The run, to which the last of these happened so many seconds ago, and all others long before."""
    with_events(run)
    now = time.time() - seconds
    lines = [{"time": now - 9999 * (event is not events[-1]), **event} for event in events]
    run.write_text("events.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    return run


START = {"event": "start", "step": 0, "steps": 9}
CLOSED = {"event": "end", "reason": "window", "step": 4}
PHASES = [
    # (what happened, seconds ago) -> the phase if no process holds the run
    ([], 0, "prepared"),
    ([{"event": "queued"}], 3590, "waiting"),
    ([{"event": "queued"}], 3610, "prepared"),
    ([CLOSED, {"event": "continued"}], 3590, "waiting"),
    ([CLOSED, {"event": "continued"}], 3610, "paused"),
    ([CLOSED, {"event": "starting"}], 110, "starting"),
    ([CLOSED, {"event": "starting"}], 130, "paused"),
    ([START, CLOSED], 80, "continuing"),
    ([START, CLOSED], 100, "paused"),
    ([START, {"event": "died"}], 80, "continuing"),
    ([START, {"event": "died"}], 100, "paused"),
    ([START, {"event": "end", "reason": "steps"}, {"event": "unscored", "reason": "window"}], 80, "continuing"),
    ([START, CLOSED, {"event": "withdrawn"}], 1, "paused"),
    # What leaves the phase as it is does not hide what came before, and counts as a sign of life.
    ([START, CLOSED, {"event": "checkpoint", "step": 4}], 80, "continuing"),
    ([{"event": "queued"}, {"event": "schedule", "steps": 5}], 3590, "waiting"),
    ([START, {"event": "end", "reason": "stopped"}], 1, "stopped"),
    ([START, {"event": "end", "reason": "steps"}], 1, "interrupted"),
    ([START, {"event": "end", "reason": "stopped"}], -50, "stopped"),  # the clock was set back
    ([START], 1, "interrupted"),
    ([{"event": "error", "problems": ["x"]}], 1, "failed"),
]


@pytest.mark.parametrize(("events", "seconds", "phase"), PHASES)
def test_the_phase_follows_from_what_happened_last_and_how_long_ago(mine, events, seconds, phase):
    now = progress.read(aged(mine, seconds, *events))
    assert now.phase == phase
    assert now.is_live == (phase in ("waiting", "starting", "continuing"))


@pytest.mark.parametrize(
    ("event", "phase"),
    [
        ({"event": "starting"}, "starting"),
        ({"event": "queued"}, "starting"),
        (START, "training"),
        ({"event": "step", "step": 1, "loss": 2.0}, "training"),
        ({"event": "end", "reason": "steps"}, "scoring"),
        ({"event": "evaluating", "row": 0, "rows": 7}, "scoring"),
        ({"event": "answered", "row": 7}, "scoring"),
        ({"event": "heldout", "step": 0, "loss": 2.0}, "starting"),  # it says nothing by itself
    ],
)
def test_while_a_process_holds_the_run_its_phase_is_what_it_does(mine, event, phase):
    with_events(mine, event)
    with mine.training():
        now = progress.read(mine)
    assert (now.phase, now.is_live) == (phase, True)


def test_the_figures_are_those_of_the_newest_step_and_of_the_newest_window(mine):
    step = {"event": "step", "steps": 40, "seconds": 0.5, "seconds_to_go": 3, "tokens_per_second": 9}
    events = [
        {"event": "error", "problems": ["An old one."]},
        {"event": "start", "step": 0, "steps": 50},
        {"event": "heldout", "step": 0, "loss": 5.0},
        step | {"step": 1, "loss": 4.0},
        step | {"step": 2, "loss": 3.0, "seconds": 0.75},
        {"event": "heldout", "step": 2, "loss": 3.5},
    ]
    with_events(mine, *events)
    with mine.training():
        now = progress.read(mine)
        assert (now.step, now.steps, now.seconds, now.stopping) == (2, 40, 0.75, False)
        assert (now.losses, now.heldout) == ([(1, 4.0), (2, 3.0)], [(0, 5.0), (2, 3.5)])
        assert (now.last["loss"], now.problems, now.scored) == (3.0, [], (0, 0))
        mine.stop()
        assert progress.read(mine).stopping
    mine.stop()
    assert not progress.read(mine).stopping  # nobody is left to stop
    for event in ({"event": "end", "reason": "steps", "seconds": 1.5}, {"event": "evaluating", "row": 3, "rows": 8}):
        mine.append(event)
    now = progress.read(mine)
    assert (now.scored, now.seconds) == ((3, 8), 1.5)
    mine.append({"event": "error", "problems": ["A new one."]})
    assert progress.read(mine).problems == ["A new one."]
    mine.append({"event": "evaluation", "rows": 8})
    assert progress.read(mine).scored == (0, 8)


def test_how_many_steps_there_are_is_known_from_the_last_step_the_start_or_the_plan(mine):
    with_events(mine)
    assert (progress.read(mine).step, progress.read(mine).steps) == (0, 300)
    mine.append({"event": "start", "step": 0, "steps": 50})
    assert progress.read(mine).steps == 50
    mine.append({"event": "schedule", "steps": 60})
    assert progress.read(mine).steps == 60
    mine.append({"event": "start", "step": 0})  # of a budget in seconds
    assert progress.read(mine).steps == 60
    mine.append({"event": "step", "step": 1, "steps": 70, "loss": 1.0})
    assert progress.read(mine).steps == 70


def test_the_newest_twenty_events_are_kept():
    latest = Latest()
    for number in range(25):
        latest.add({"event": "step", "step": number})
    assert [event["step"] for event in latest.events] == list(range(5, 25))


def test_a_window_may_start_at_any_of_the_last_checkpoints():
    curve = Curve()
    for number in range(1, 12):
        curve.add({"event": "step", "step": number, "loss": float(number)})
        curve.add({"event": "heldout", "step": number, "loss": 10.0 * number})
        curve.add({"event": "checkpoint", "step": number})
    curve.add({"event": "start", "step": 5})
    assert curve.last["step"] == 5
    assert curve.losses[-1] == (5, 5.0)
    assert curve.heldout[-1] == (5, 50.0)
    for number in (6, 7):  # once more, with other losses
        curve.add({"event": "step", "step": number, "loss": 60.0 + number})
        curve.add({"event": "checkpoint", "step": number})
    curve.add({"event": "start", "step": 6})
    assert (curve.last["loss"], curve.losses[-1]) == (66.0, (6, 66.0))


def test_what_was_learned_or_answered_ends_a_row_of_failures():
    error = {"event": "error", "problems": ["x"]}
    for kind in ("checkpoint", "answered", "end"):
        curve = Curve()
        for event in (error, {"event": kind}, error):
            curve.add(event)
        assert curve.failures == [["x"]]
    curve.add({"event": "error"})
    assert curve.failures == [["x"], []]
    curve.add(error)
    assert curve.failures == [[], ["x"]]
    for event in ({"event": "queued"}, START, error):
        curve.add(event)
    assert curve.failures == [["x"], ["x"]]


def test_a_run_has_failed_again_only_where_its_problems_are_those_of_the_last_time(mine):
    with_events(mine)
    for problem, again in (("x", False), ("y", False), ("y", True), ("x", False)):
        mine.append({"event": "queued"})
        assert progress.read(mine).problems == []  # somebody tries again
        mine.append({"event": "error", "problems": [problem]})
        now = progress.read(mine)
        assert (now.failed_again, now.problems) == (again, [problem])


KEPT = "What was learned is kept."
SAID = [
    (Progress("prepared"), None, "Ready to start", "Everything is prepared. Press Resume to train it."),
    (Progress("waiting"), None, "Waiting for its turn", "A place is free. It starts automatically."),
    (Progress("waiting"), 1, "Waiting for its turn", "It is next. It starts automatically."),
    (Progress("waiting"), 2, "Waiting for its turn", "1 run is ahead of it. It starts automatically."),
    (Progress("waiting"), 3, "Waiting for its turn", "2 runs are ahead of it. It starts automatically."),
    (
        Progress("continuing"),
        None,
        "Between windows",
        "This window's GPU time is used up. Requesting the next window.",
    ),
    (
        Progress("paused", 1030, 1200),
        None,
        "Paused",
        "Step 1,030 of 1,200 is done. Its GPU window is over. Press Resume for the next one.",
    ),
    (
        Progress("paused", 1200, 1200),
        None,
        "Paused",
        "Training is done (1,200 steps); the scoring is not. Its GPU window is over. Press Resume for the next one.",
    ),
    (Progress("paused", 3), None, "Paused", "Step 3 is done. Its GPU window is over. Press Resume for the next one."),
    (Progress("starting"), None, "Starting", "Loading the base model."),
    (Progress("training", 0, 1200), None, "Training", "The first step is running."),
    (
        Progress("training", 1030, 1200, last=STEP),
        None,
        "Training",
        "Step 1,030 of 1,200, about 1 min 15 s left.",
    ),
    (Progress("training", 1030, last=STEP), None, "Training", "Step 1,030, about 1 min 15 s left."),
    (Progress("training", 1030, 1200, last=STEP, stopping=True), None, "Training", "Stopping after this step."),
    (Progress("scoring", 9, 9), None, "Scoring", "Base model and adapter answer the held-out rows."),
    (
        Progress("scoring", 9, 9, scored=(3, 40)),
        None,
        "Scoring",
        "Base model and adapter answer the held-out rows (3 of 40 answered).",
    ),
    (
        Progress("stopped", 1030, 1200),
        None,
        "Stopped",
        f"Stopped after step 1,030 of 1,200. {KEPT} Press Resume, or chat with it as it is.",
    ),
    (
        Progress("interrupted", 7, 1200),
        None,
        "Interrupted",
        f"It ended early. Step 7 of 1,200 is done. {KEPT} Press Resume to continue.",
    ),
    (
        Progress("interrupted", 0, 12),
        None,
        "Interrupted",
        "It ended early. Step 0 of 12 is done.  Press Resume to continue.",
    ),
    (Progress("failed", 3, 12), None, "It failed", KEPT),
    (Progress("failed"), None, "It failed", ""),
    (
        Progress("failed", failed_again=True),
        None,
        "It failed",
        "It has now failed twice in the same way: unless something has changed, resuming will not help.",
    ),
    (Progress("finished", 9, 9), None, "Finished", "It has not been scored."),
]


@pytest.mark.parametrize(("now", "place", "title", "sentence"), SAID)
def test_each_phase_has_its_heading_and_its_sentence(now, place, title, sentence):
    assert render.status(now, place) == (title, sentence)


BARS = [
    # the progress bar's width in percent, and whether it only shows that something is going on; none if it rests
    (Progress("waiting", 3, 12), ("25.0", True)),
    (Progress("starting", 0, 12), ("0.0", True)),
    (Progress("training", 3, 12), ("25.0", False)),
    (Progress("training", 3), ("0.0", False)),
    (Progress("training", 14, 12), ("100.0", False)),
    (Progress("continuing", 9, 12, scored=(1, 10)), ("75.0", False)),
    (Progress("scoring", 6, 12), ("50.0", True)),
    (Progress("scoring", 12, 12, scored=(0, 10)), ("0.0", True)),
    (Progress("scoring", 12, 12, scored=(7, 10)), ("70.0", False)),
    (Progress("paused", 3, 12), None),
    (Progress("stopped", 3, 12), None),
]


@pytest.mark.parametrize(("now", "bar"), BARS)
def test_the_bar_shows_the_share_that_is_done_while_something_happens(mine, now, bar):
    html = render.run_card(mine, now)
    assert f'data-phase="{now.phase}"' in html
    width = html.partition('"t-progress')[2].partition("%")[0].partition("width:")[2]
    assert width == (bar[0] if bar else "")
    assert ("endless" in html) == bool(bar and bar[1])


def test_the_card_names_the_run_its_problems_its_figures_and_its_settings(mine):
    losses = [(1, 4.0), (2, 3.0)]
    last = STEP | {"step": 2}
    now = Progress("training", 2, 40, losses=losses, heldout=[(0, 5.0), (2, 3.5)], last=last, problems=["Oh <no>."])
    text = plain(html := render.run_card(mine, now))
    assert in_order(text, "Training", "corporate", "Step 2 of 40", "It stopped early", "Oh <no>.", "1.235")
    assert in_order(text, "1.235", "training loss", "3.500", "held-out loss", "1,234", "tokens per second")
    assert in_order(text, "1 min 15 s", "left", "What was chosen, and why", "learning rate", "0.0025")
    assert "Loss over 2 of 40 steps" in html
    stopped = Progress("stopped", 2, 40, losses=losses, last=last, seconds=65.0)
    html = render.run_card(mine, stopped)
    assert "Loss over 2 of ? steps" in html  # the curve ends where the run ended
    assert in_order(plain(html), "1 min 05 s", "training time")
    assert "held-out loss" not in plain(html.partition("<svg")[0])
    assert "<svg" not in render.run_card(mine, Progress("starting", last=last))
    none = render.run_card(mine, Progress("stopped", 2, 40, losses=losses, last=last))
    assert "training time" not in none


def test_a_finished_run_is_shown_by_its_verdict_and_one_without_scores_by_its_progress(mine):
    html = render.run_card(mine)
    assert 'data-phase="finished"' in html
    took = duration(mine.last_event("end")["seconds"])
    assert in_order(
        plain(html),
        "It helped.",
        "0.10",
        f"{mine.read_json('evaluation.json')['adapter']['rougeL']:.2f}",
        f"corporate, 300 steps in {took}",
        "Before",
        "After",
        "Training details",
    )
    assert html.count("t-example") == 3  # two, and what holds them
    assert "Loss over 300 of 300 steps" in html
    (mine.path / "evaluation.json").unlink()
    assert "t-verdict" not in render.run_card(mine, Progress("finished"))
    assert "It has not been scored." in render.run_card(mine, Progress("finished"))


def test_a_finished_run_sets_the_estimate_beside_what_it_took(mine):
    forecast = {"training": 100.0, "a_step": 0.345, "memory": {"total": 3 * 2**30}}
    plan = mine.plan | {"forecast": forecast}
    mine.write_json("plan.json", plan)
    end = {"event": "end", "reason": "steps", "seconds": 63.0, "seconds_per_step": 0.2504, "peak_memory": 2**31}
    mine.append(end)
    told = plain(result._estimate_and_actual(mine)).strip()
    assert told == (
        "Estimated 1 min 40 s of training (345 ms per step), took 1 min 03 s (250 ms per step). "
        "Memory: estimated 3.0 GB, used 2.0 GB."
    )
    mine.append(end | {"peak_memory": None})
    assert "Memory" not in result._estimate_and_actual(mine)
    mine.append(end | {"seconds_per_step": None})
    assert result._estimate_and_actual(mine) == ""
    mine.append(end)
    mine.write_json("plan.json", plan | {"forecast": forecast | {"memory": None}})
    assert "Memory" not in result._estimate_and_actual(mine)
    mine.write_json("plan.json", plan | {"forecast": None})
    assert result._estimate_and_actual(mine) == ""


def test_a_run_in_line_is_waiting_whatever_its_folder_says(mine, root):
    copied("other")
    with ExitStack() as stack:
        for number in range(run_queue.queue.places):
            run_queue.queue.join(f"before{number}", f"visitor{number}")
            stack.enter_context(run_queue.queue.turn(f"before{number}"))
        run_queue.queue.join("mine", "ann")
        try:
            assert run_queue.look(mine).phase == "waiting"
            assert "It is next." in render.run_card(mine)
        finally:
            run_queue.queue.leave("mine")
    assert run_queue.look(mine).phase == "finished"
