"""What a worker does behind the door to the GPU: its job, its errors as plain values, and what it holds afterwards."""

import time

import pytest
from conftest import small_recipe

from tuner import gpu, gpu_refusals, runs
from tuner.errors import TunerError


@pytest.fixture
def run(tmp_path) -> runs.Run:
    return runs.create(small_recipe(), path=tmp_path / "run")


def test_a_worker_does_its_job_and_returns_errors_as_plain_values(run, monkeypatch, caplog):
    done = []

    def job(*arguments):
        done.append(arguments)
        yield {"event": "step"}
        if len(done) == 2:
            raise TunerError("One.", "Two.")
        if len(done) > 2:
            raise KeyError("odd")

    monkeypatch.setattr(gpu, "JOBS", {"train": job, "chat": job, "merge": job})
    before = time.monotonic()
    assert list(gpu._perform("train", str(run.path), 42, "more", "and more")) == [{"event": "step"}]
    ((ran, seconds, opened, *more),) = done
    assert (ran.path, seconds, more) == (run.path, 42, ["more", "and more"])
    assert before <= opened <= time.monotonic()
    assert list(gpu._perform("train", str(run.path), 42))[1:] == [gpu_refusals.Refused(("One.", "Two."))]
    assert not caplog.records
    for name, kept in gpu_refusals.NEXT.items():
        _, refused = gpu._perform(name, str(run.path), 42)
        kept = "What the run learned is kept." if name == "train" else kept
        assert refused == gpu_refusals.Refused((f"Tuner failed unexpectedly (run {run.id}). {kept}",))
        assert f"{name} broke" in caplog.text


def test_a_window_for_answers_has_room_for_an_estimate_that_is_too_low_and_is_never_too_short(run, monkeypatch):
    estimates = {(1, 96, 2): 50.0, (0, 8, 1): 1.0}
    monkeypatch.setattr("tuner.planning.forecast.chat_seconds", lambda run, *given: estimates[given])
    assert gpu._window_for(run, 1, 96, 2) == 0  # elsewhere nothing is requested
    monkeypatch.setattr(gpu, "ZERO", True)
    assert gpu._window_for(run, 1, 96, 2) == gpu.BESIDE + 1.2 * 50
    assert gpu._window_for(run, 0, 8) == gpu_refusals.LEAST
