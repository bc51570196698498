"""A run that learns its rows by heart is said to while it runs, and one whose held-out losses are noisy is not."""

import pytest
from conftest import plain, small_recipe
from visitors_runs import with_events

from tuner import runs, terminal
from tuner.training import ending
from tuner.training.upkeep import Best, Measured
from tuner.ui import progress, render

pytest_plugins = ["page_fixtures"]

EVEN = (0.1, 0.1, 0.1, 0.1)  # what each of four rows adds to the loss, at its lowest


def rows(*each: float) -> Measured:
    return Measured(round(sum(each), 5), list(each))


@pytest.fixture
def best(tmp_path) -> Best:
    """Of a run that keeps its last weights, so that none have to be copied."""
    run = runs.create(small_recipe(), path=tmp_path / "run")
    measuring = {"every": 10, "first": 0, "last": 4, "keep": "last", "patience": 0}
    run.write_json("plan.json", {"measuring": measuring})
    return Best(run, None)


def follow(best: Best, *measured: tuple[float | None, Measured]) -> list[dict | None]:
    """What is said after each measurement, ten steps apart, of training losses and held-out losses."""
    said = []
    for number, (loss, heldout) in enumerate(measured):
        for _ in range(10 * bool(number)):
            best.learned(loss)
        best.measured(10 * number, heldout, None, None)
        said.append(best.overfitting())
    return said


RISEN = rows(0.15, 0.14, 0.15, 0.16)


@pytest.mark.parametrize(
    ("measured", "is_said"),
    [
        ([(None, rows(1, 1, 1, 1)), (0.5, rows(*EVEN)), (0.3, RISEN)], True),
        ([(None, rows(*EVEN)), (0.5, RISEN)], False),  # of training losses there is only one
        ([(None, rows(*EVEN)), (0.5, RISEN), (0.3, RISEN)], True),
        ([(None, rows(1, 1, 1, 1)), (0.5, rows(*EVEN)), (0.5, RISEN)], False),  # training stands still
        ([(None, rows(1, 1, 1, 1)), (0.5, rows(*EVEN)), (0.9, RISEN)], False),  # or gets worse as well
        ([(None, rows(1, 1, 1, 1)), (0.5, rows(*EVEN)), (0.3, rows(0.11, 0.1, 0.11, 0.11))], False),  # by 7%
        ([(None, rows(1, 1, 1, 1)), (0.5, rows(*EVEN)), (0.3, rows(0.35, 0.1, 0.08, 0.09))], False),  # by one row
        ([(None, rows(1, 1, 1, 1)), (0.5, rows(*EVEN)), (0.3, RISEN), (0.2, rows(*EVEN))], False),  # no longer
        ([(None, rows(1, 1, 1, 1)), (0.5, rows(*EVEN)), (0.3, rows(float("nan"), 0.1, 0.1, 0.1))], False),
        ([(None, rows(1)), (0.5, rows(0.4)), (0.3, rows(0.8))], False),  # one row alone
    ],
)
def test_it_is_said_where_the_heldout_loss_clearly_rose_while_the_training_loss_fell(best, measured, is_said):
    said = follow(best, *measured)[-1]
    assert bool(said) == is_said
    if said:
        since = 10 * [m.loss for _, m in measured].index(0.4)
        step = 10 * (len(measured) - 1)
        facts = {"step": step, "loss": 0.6, "lowest": 0.4, "since": since, "kept": None}
        assert said == {"event": "overfitting", **facts}


def test_the_weights_that_will_be_kept_are_named_where_their_loss_was_clearly_lower(best):
    follow(best, (None, rows(1, 1, 1, 1)), (0.5, rows(*EVEN)), (0.3, RISEN))
    assert best.overfitting()["kept"] is None  # the last ones will be
    best.keeps = True
    assert best.overfitting()["kept"] == 10


EVENT = {"event": "overfitting", "step": 60, "loss": 1.45, "lowest": 1.2, "since": 40, "kept": 40}
ROSE = "It is learning its rows by heart: the held-out loss has risen from 1.200 to 1.450 since step 40, while the "
ROSE += "training loss has fallen."


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, f"{ROSE} Unless it falls again, the weights of step 40 will be kept."),
        ({"kept": None}, f"{ROSE} Train for fewer steps, or give more rows."),
        ({"since": 0}, ROSE.replace("step 40", "the start") + " Unless it falls again, the weights of step 40 will"),
        ({"lowest": None}, ""),
    ],
)
def test_the_words(changes, said):
    text = ending.by_heart(EVENT | changes)
    assert text.startswith(said)
    assert bool(text) == bool(said)
    assert ending.by_heart({}) == ending.by_heart(None) == ""


START, STEP = {"event": "start", "step": 0, "steps": 90}, {"event": "step", "step": 61, "steps": 90, "loss": 0.5}
HELDOUT = {"event": "heldout", "step": 60, "loss": 1.45}
LATER = [HELDOUT | {"step": 70, "loss": 1.1}]


@pytest.mark.parametrize(
    ("events", "is_shown"),
    [
        ([HELDOUT], False),
        ([HELDOUT, EVENT], True),
        ([HELDOUT, EVENT, {"event": "checkpoint", "step": 60}, {"event": "best", "step": 60, "loss": 1.0}], True),
        ([HELDOUT, EVENT, *LATER], False),
        ([HELDOUT, EVENT, *LATER, {"event": "start", "step": 65, "steps": 90}], True),  # the later loss is taken back
        ([HELDOUT, EVENT, {"event": "start", "step": 50, "steps": 90}], False),
        ([HELDOUT, EVENT, {"event": "start", "step": 60, "steps": 90}], True),
        ([HELDOUT, EVENT, {"event": "end", "reason": "window", "step": 61}], True),
        ([HELDOUT, EVENT, {"event": "end", "reason": "stopped", "step": 61}], False),
        ([HELDOUT, EVENT, {"event": "end", "reason": "steps", "step": 61}], False),
        ([HELDOUT, EVENT, {"event": "end", "reason": "stopped", "step": 61}, START | {"step": 61}], True),
        ([HELDOUT, {"event": "overfitting", "step": 60}], False),  # of another version
        ([HELDOUT | {"step": "x"}, EVENT | {"loss": "<b>"}], False),
    ],
)
def test_the_card_says_it_as_long_as_it_holds_and_training_may_go_on(mine, events, is_shown):
    run = with_events(mine, START, STEP, *events)
    now = progress.read(run)
    assert (ROSE in plain(render.run_card(run, now))) == is_shown
    assert now.phase == progress.read(with_events(mine, START, STEP, *(e for e in events if e != EVENT))).phase


def test_the_terminal_says_it_once_and_again_if_it_rises_from_another_step(capsys):
    show = terminal.Progress()
    for event in (START, HELDOUT, EVENT, EVENT | {"step": 70}, EVENT | {"step": 80, "since": 75}):
        show(event)
    show({"event": "untracked", "problems": ["No tracker."]})
    show({"event": "end", "step": 80, "reason": "stopped"})
    err = capsys.readouterr().err
    assert err.count("learning its rows by heart") == 2
    assert "since step 40" in err
    assert "since step 75" in err
    assert err.count("No tracker.") == 1
