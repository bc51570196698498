"""Paces of earlier runs, of which one that was stalled counts for nothing, and how fast a CPU is just now."""

import json

import pytest
from conftest import small_recipe

from tuner import runs
from tuner.inference.variants import load_variants
from tuner.models import device, losses
from tuner.models.device import device_type
from tuner.planning import forecast, pace, plan, probe
from tuner.planning.pace import KEPT_RUNS, PACES, believable, pace_key, recall, remember
from tuner.training.window import train


@pytest.fixture
def path(tmp_path):
    return tmp_path / "paces.json"


def keep(path, *seconds: float) -> None:
    """A pace of one run after the other."""
    for number, value in enumerate(seconds):
        remember(path, "a", {"seconds_per_token": value}, f"run{number}")


@pytest.mark.parametrize(
    ("seconds", "median"),
    [
        ((0.5,), 0.5),
        ((0.5, 9.0), 0.5),
        ((9.0, 0.5), 0.5),
        ((0.5, 9.0, 0.6), 0.6),
        ((0.4, 9.0, 0.5, 9.0, 0.6), 0.6),
        ((9.0, 9.0, 9.0, 0.4, 0.5, 0.6, 0.5, 0.4), 0.5),  # the last five
    ],
)
def test_a_run_that_was_stalled_does_not_move_what_the_others_measured(path, seconds, median):
    keep(path, *seconds)
    assert recall(path, "a") == {"seconds_per_token": median, "runs": min(len(seconds), KEPT_RUNS)}


def test_a_run_counts_once_however_often_it_measures(path):
    keep(path, 0.5, 0.6, 0.7)
    for value in (9.0, 8.0, 7.0):  # an answer for each batch
        remember(path, "a", {"seconds_per_answer": value}, "slow")
        remember(path, "a", {"seconds_per_token": value}, "slow")
    assert recall(path, "a") == {"seconds_per_token": 0.6, "seconds_per_answer": 7.0, "runs": 4}
    remember(path, "a", {"seconds_per_answer": 0.2}, "run1")
    assert recall(path, "a")["seconds_per_answer"] == 0.2
    assert [run["run"] for run in json.loads(path.read_text())["a"]] == ["run0", "run2", "slow", "run1"]


def test_the_paces_of_earlier_versions_are_read(path):
    path.write_text('{"a": {"seconds_per_token": 0.5, "start_up": 2.0}, "b": [1, {"start_up": true}], "c": 7}')
    assert recall(path, "a") == {"seconds_per_token": 0.5, "start_up": 2.0, "runs": 1}
    assert (recall(path, "b"), recall(path, "c")) == (None, None)
    remember(path, "a", {"seconds_per_token": 0.25, "start_up": None}, "new")
    assert recall(path, "a") == {"seconds_per_token": 0.25, "start_up": 2.0, "runs": 2}
    assert list(json.loads(path.read_text())) == ["b", "c", "a"]


def test_a_lone_run_that_took_far_too_long_on_a_cpu_is_not_believed_until_another_agrees(monkeypatch):
    for kind, runs_before, measured, said in (
        ("cpu", 1, 2.9, 2.9),
        ("cpu", 1, 3.1, 1.0),
        ("cpu", 2, 3.1, 3.1),
        ("cuda", 1, 3.1, 3.1),  # where the estimate is the less certain of the two
    ):
        monkeypatch.setattr(pace, "device_type", lambda kind=kind: kind)
        assert believable(measured, {"runs": runs_before}, 1.0) == said


def test_a_strangers_stalled_run_does_not_promise_everybody_eleven_minutes(monkeypatch):
    recipe = small_recipe(budget__steps=300)
    key = pace_key(device_type(), recipe)
    monkeypatch.setattr(forecast, "available_memory", lambda: 2**33)
    before = plan.check(recipe).plan["forecast"]
    stalled = {"seconds_per_token": 1.0, "seconds_per_step": 90.0, "start_up": 600.0, "seconds_per_answer": 50.0}
    remember(runs.RUNS / PACES, key, stalled, "stranger")
    assert plan.check(recipe).plan["forecast"] == before
    usual = {"seconds_per_token": 2e-4, "seconds_per_step": 0.02, "start_up": 1.1, "seconds_per_answer": 0.05}
    remember(runs.RUNS / PACES, key, usual, "another")
    after = plan.check(recipe).plan["forecast"]
    assert (after["measured"], after["start_up"]) == (True, 1.1)
    assert after["scoring"] == pytest.approx(forecast.KEEPING_SECONDS + 4 * 0.05 + after["a_step"], rel=1e-3)


# -- how fast the CPU is


class Clock:
    """Time that passes only while the little network makes a step."""

    def __init__(self, *seconds: float):
        self.now, self.steps, self.seconds = 100.0, 0, seconds

    def step(self) -> None:
        self.now += self.seconds[self.steps % len(self.seconds)]
        self.steps += 1

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    """The clock of both networks; each starts its seconds anew."""

    def started(*seconds: float) -> Clock:
        clock = Clock(*seconds)
        monkeypatch.setattr(probe, "time", clock)
        return clock

    return started


def test_a_cpu_is_as_fast_as_it_is_on_average_for_a_fraction_of_a_second(clock):
    # The first step allocates and does not count; of the others every third is held up.
    ticking = clock(5.0, *[0.01, 0.01, 0.04] * 50)
    assert probe._step(ticking.step, 0.3) == pytest.approx(0.02, rel=0.1)
    assert ticking.now - 105.0 == pytest.approx(0.3, abs=0.05)


def test_one_moment_in_which_a_cpu_did_something_else_is_not_taken_for_its_speed(clock):
    assert probe._step(clock(5.0, *[0.01] * 9, 30.0).step, 0.3) == pytest.approx(0.01)


def test_a_cpu_too_slow_for_its_fraction_of_a_second_is_measured_by_one_step(clock):
    ticking = clock(5.0, 2.0)
    assert (probe._step(ticking.step, 0.3), ticking.steps) == (2.0, 2)


@pytest.mark.parametrize(("threads", "times"), [(1, 1.0), (8, 1.4)])
def test_a_look_tells_a_computation_from_an_operation_and_leaves_the_threads_alone(monkeypatch, threads, times):
    import torch

    seen, took = [], iter([0.02, 0.000081])
    monkeypatch.setattr(probe, "_network", lambda *sizes: sizes)
    monkeypatch.setattr(probe, "_step", lambda *given: seen.append((*given, torch.get_num_threads())) or next(took))
    monkeypatch.setattr(device, "_threads", lambda: threads)
    before = torch.get_num_threads()
    look = probe.look(0.6)
    assert (seen, torch.get_num_threads()) == ([((), 0.3, 1), (probe.TINY, 0.3, 1)], before)
    assert look == (pytest.approx(times * probe.WORK / 0.02), pytest.approx(1e-6))


def test_a_cpu_is_looked_at_again_when_the_app_has_started_and_then_after_each_minute(monkeypatch):
    monkeypatch.undo()  # the steady speed of all tests
    ticking, looks = Clock(), iter([probe.Look(speed, 1e-5) for speed in (1e9, 2e9, 3e9)])
    monkeypatch.setattr(pace, "time", ticking)
    monkeypatch.setattr(pace, "_looked", None)
    monkeypatch.setattr(probe, "look", lambda seconds: next(looks))
    assert [pace.device_speed(), pace.device_speed()] == [1e9, 1e9]
    ticking.now += 9
    assert pace.device_speed() == 1e9
    ticking.now += 2
    assert pace.device_speed() == 2e9
    ticking.now += 59
    assert pace.device_speed() == 2e9
    ticking.now += 2
    assert pace.device_speed() == 3e9


def test_a_small_model_takes_two_threads_of_a_cpu_and_a_large_one_all(monkeypatch):
    monkeypatch.setattr(device, "_threads", lambda: 8)
    assert [device.cpu_threads(n) for n in (4_000_000, 29_000_000, 31_000_000)] == [2, 2, 8]
    monkeypatch.setattr(device, "_threads", lambda: 1)
    assert [device.cpu_threads(n) for n in (4_000_000, 31_000_000)] == [1, 1]


def test_training_and_answering_take_the_threads_that_the_model_can_use(tmp_path, monkeypatch):
    import torch

    before, run, seen = torch.get_num_threads(), plan.prepare(small_recipe(budget__steps=1), path=tmp_path / "run"), []
    mean_loss = losses.mean_loss
    monkeypatch.setattr(device, "_threads", lambda: 8)
    monkeypatch.setattr(losses, "mean_loss", lambda *a: seen.append(torch.get_num_threads()) or mean_loss(*a))
    try:
        list(train(run))  # in a thread of its own
        assert set(seen) == {2}
        monkeypatch.setattr(device, "SMALL", 1e6)
        load_variants({"adapter": run})
        assert torch.get_num_threads() == 8
    finally:
        torch.set_num_threads(before)


def test_the_little_networks_work_is_counted_as_that_of_a_step():
    import torch

    kept, sizes = {}, (probe.ROWS, probe.LENGTH, probe.WIDTH)
    step = probe._network()
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.setdefault(t.data_ptr(), t) is None or t, lambda t: t
    ):
        step()
    rows, length, width = sizes
    weights, attention = 13 * width**2, 12 * length * width
    products = rows * length * (4 * (weights + width * probe.WORDS) + attention)
    activations = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept.values() if t.dim() != 2}
    assert pace.step_work(products, sum(activations.values())) == pytest.approx(probe.WORK, rel=0.2)


def test_the_second_networks_operations_are_counted():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Counted(TorchDispatchMode):
        operations = 0

        def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
            self.operations += 1
            return operation(*args, **(kwargs or {}))

    step = probe._network(*probe.TINY)
    with Counted() as counted:
        step()
    assert counted.operations == probe.OPERATIONS
