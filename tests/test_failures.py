"""What a person reads when a window fails, and what the run keeps of it."""

import errno
import os

import pytest
import torch
from conftest import small_recipe

from tuner import runs
from tuner.errors import TunerError
from tuner.runs import Run
from tuner.training import failures

ODD, OTHER, NO_MEMORY = IndexError("poisoned"), KeyError("poisoned"), torch.OutOfMemoryError("no more")


@pytest.fixture
def run(tmp_path) -> Run:
    return runs.create(small_recipe(), path=tmp_path / "run")


@pytest.fixture(autouse=True)
def forgotten(monkeypatch) -> list:
    """How often the loaded bases were forgotten."""
    forgotten = []
    monkeypatch.setattr(failures, "forget_bases", lambda: forgotten.append(True))
    return forgotten


def start(step: int) -> dict:
    return {"event": "start", "step": step}


def steps(*numbers: int) -> list[dict]:
    return [{"event": "step", "step": number} for number in numbers]


def saved(step: int) -> dict:
    return {"event": "checkpoint", "step": step}


def failed(kind: str, step: int) -> dict:
    return {"event": "error", "problems": ["It broke."], "type": kind, "step": step}


TRAINED = {"event": "end", "reason": "steps", "step": 9}
ANSWERED = {"event": "answered", "row": 4}
BROKEN_AT_3 = [start(0), *steps(1, 2), saved(2), *steps(3), failed("IndexError", 3)]
UNEXPECTED = "with an unexpected error (IndexError)."
SCORED = "while its answers were scored"
TRY, NEVER = "Resume it to try once more.", "Resuming would fail again."
ADVICE = "Train a new run with another method, precision or batch size, or with other rows."
LOG = "The details are in error.log in the run's folder."
MEMORY = (
    "To save memory, train a new run with a smaller base model, 4-bit precision, shorter rows (data.max_length) or "
    "fewer rows per step (training.batch_size)."
)
NOTHING, UP_TO_2, ALL = (
    "It had learned nothing yet.",
    "What it learned up to step 2 is kept.",
    "What it learned is kept.",
)
# What the run logged, the error, and what is said.
CASES = [
    ([], ODD, f"Run run failed before step 1, {UNEXPECTED} {NOTHING} {TRY} {LOG}"),
    ([start(0), *steps(1)], ODD, f"Run run failed after step 1, {UNEXPECTED} {NOTHING} {TRY} {LOG}"),
    (BROKEN_AT_3[:-1], ODD, f"Run run failed after step 3, {UNEXPECTED} {UP_TO_2} {TRY} {LOG}"),
    (
        [*BROKEN_AT_3, start(2), *steps(3)],
        ODD,
        f"Run run failed twice in the same way, after step 3, {UNEXPECTED} {UP_TO_2} {NEVER} {ADVICE} {LOG}",
    ),
    (
        [*BROKEN_AT_3, start(2)],
        ODD,
        f"Run run failed twice in the same way, after step 2, {UNEXPECTED} {UP_TO_2} {NEVER} {ADVICE} {LOG}",
    ),
    ([*BROKEN_AT_3, start(2), *steps(3, 4)], ODD, f"Run run failed after step 4, {UNEXPECTED} {UP_TO_2} {TRY} {LOG}"),
    (
        [*BROKEN_AT_3[:-1], failed("KeyError", 3), start(2), *steps(3)],
        ODD,
        f"Run run failed after step 3, {UNEXPECTED} {UP_TO_2} {TRY} {LOG}",
    ),
    # It came further, was killed, and fell back.
    (
        [*BROKEN_AT_3, start(2), *steps(3, 4), start(2)],
        ODD,
        f"Run run failed after step 2, {UNEXPECTED} {UP_TO_2} {TRY} {LOG}",
    ),
    # Only the latest error counts.
    (
        [*BROKEN_AT_3, failed("KeyError", 3), start(2), *steps(3)],
        ODD,
        f"Run run failed after step 3, {UNEXPECTED} {UP_TO_2} {TRY} {LOG}",
    ),
    # Of an error that the page logged, nobody knows the type.
    (
        [{"event": "error", "problems": ["It broke."]}],
        ODD,
        f"Run run failed before step 1, {UNEXPECTED} {NOTHING} {TRY} {LOG}",
    ),
    # The newest checkpoint is the one that counts.
    (
        [start(0), *steps(1), saved(1), *steps(2), saved(2), *steps(3)],
        ODD,
        f"Run run failed after step 3, {UNEXPECTED} {UP_TO_2} {TRY} {LOG}",
    ),
    ([failed("OutOfMemoryError", 0)], ODD, f"Run run failed before step 1, {UNEXPECTED} {NOTHING} {TRY} {LOG}"),
    ([start(0)], NO_MEMORY, f"Run run ran out of memory before step 1. {NOTHING} {TRY} {MEMORY}"),
    (
        [*BROKEN_AT_3[:-1], failed("OutOfMemoryError", 3), start(2), *steps(3)],
        NO_MEMORY,
        f"Run run ran out of memory for the second time after step 3. {UP_TO_2} {NEVER} {MEMORY}",
    ),
    (
        [*BROKEN_AT_3[:-1], TRAINED],
        NO_MEMORY,
        f"Run run ran out of memory {SCORED}. {ALL} {TRY} {MEMORY}",
    ),
    ([TRAINED], ODD, f"Run run failed {SCORED}, {UNEXPECTED} {ALL} {TRY} {LOG}"),
    (
        [TRAINED, ANSWERED, failed("IndexError", 0)],
        ODD,
        f"Run run failed twice in the same way, {SCORED}, {UNEXPECTED} {ALL} {NEVER} {ADVICE} {LOG}",
    ),
    (
        [TRAINED, failed("IndexError", 0), ANSWERED],
        ODD,
        f"Run run failed {SCORED}, {UNEXPECTED} {ALL} {TRY} {LOG}",
    ),
]


@pytest.mark.parametrize(("events", "error", "sentence"), CASES)
def test_a_failure_is_told_with_what_is_kept_and_whether_to_resume(events, error, sentence, run, forgotten):
    for event in events:
        run.append(event)
    told = failures.explain(error, run)
    assert told.problems == (sentence,)
    furthest = max((event["step"] for event in events if event["event"] == "step"), default=0)
    kind = type(error).__name__
    logged = run.last_event("error")
    assert {key: logged[key] for key in ("problems", "type", "step")} == {
        "problems": [sentence],
        "type": kind,
        "step": furthest,
    }
    assert (run.path / "error.log").read_text().endswith(f"{kind}: {error}\n")
    assert forgotten == [True]


def test_a_problem_that_has_its_sentences_keeps_them(run, forgotten):
    problem = TunerError("One.", "Two.")
    assert failures.explain(problem, run) is problem
    assert run.last_event("error")["problems"] == ["One.", "Two."]
    assert run.last_event("error")["type"] == "TunerError"
    assert not (run.path / "error.log").exists()  # it is no surprise
    assert not forgotten


def test_a_full_disk_is_told_as_such_and_an_error_that_cannot_be_written_down_is_told_all_the_same(
    run, monkeypatch, caplog
):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    (problem,) = failures.explain(full, run).problems
    assert (
        problem == "Run run: this machine's disk is full. Free some space and try again; nothing saved before is lost."
    )
    assert not caplog.records
    (run.path / "error.log").unlink()

    def refuse(run, event):
        raise full

    monkeypatch.setattr(Run, "append", refuse)
    assert "unexpected error (IndexError)" in str(failures.explain(ODD, run))
    assert "run run: its error can't be written down" in caplog.text


def test_the_log_holds_the_traceback_of_the_latest_error(run):
    for error in (ODD, OTHER):
        try:
            raise error
        except LookupError as caught:
            failures.explain(caught, run)
    text = (run.path / "error.log").read_text()
    assert "raise error" in text
    assert "KeyError" in text
    assert "IndexError" not in text
