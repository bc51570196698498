"""A window of training, step by step in simulated time: what it reports, measures, saves and keeps."""

import json
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from conftest import small_recipe
from machine import Machine

from tuner import heartbeat, runs
from tuner.errors import TunerError
from tuner.models.device import device_type
from tuner.runs import Run
from tuner.training import clock, failures, upkeep, window
from tuner.training.clock import Clock
from tuner.training.upkeep import Measured
from tuner.training.window import StopSignal, Window

PLAN = {
    "settings": {"learning_rate": 0.02, "batch_size": 4, "dtype": "float32"},
    "steps": 40,
    "steps_per_epoch": 7,
    "trainable_parameters": 10**6,
}


@pytest.fixture
def machine(monkeypatch) -> Machine:
    machine = Machine()
    for module in (clock, upkeep, window):
        monkeypatch.setattr(module, "time", machine)
    return machine


@pytest.fixture
def run(tmp_path) -> Run:
    """A run of 40 steps, 7 an epoch."""
    run = runs.create(small_recipe(training__warmup_steps=3, training__scheduler="linear"), path=tmp_path / "run")
    run.write_json("plan.json", PLAN)
    return run


@pytest.fixture(autouse=True)
def silence(monkeypatch):
    """No heartbeats, however busy the machine is."""
    monkeypatch.setattr(heartbeat, "HEARTBEAT", 60)


def replan(run: Run, **changes) -> Run:
    """The run with another plan."""
    run.write_json("plan.json", PLAN | changes)
    return run


# When to leave, and what is done in which order


@pytest.mark.parametrize(
    ("asked", "deadline", "reason"),
    [
        (False, None, None),
        (False, 1000.0, None),
        (False, 999.9, "window"),
        (True, None, "stopped"),
        (True, 999.9, "stopped"),
    ],
)
def test_scoring_is_left_when_a_person_or_the_window_ends_it(run, machine, asked, deadline, reason):
    if asked:
        run.stop()
    signal = StopSignal(run, deadline)
    assert (signal.reason, signal.is_set()) == (reason, reason is not None)


@pytest.fixture
def done(monkeypatch) -> list:
    """What a window did, with its training and scoring replaced by what they log."""
    done = []

    class Replaced:
        def __init__(self, run, emit, seconds, opened):
            self.run, self.emit = run, emit
            done.append(("window", run, seconds, opened))

        def train(self) -> str:
            done.append(("train", self.run.is_training))
            if isinstance(self.ends, Exception):
                raise self.ends
            self.emit(self.ends)
            return "the models"

        def leave(self) -> None:
            done.append("leave")

    Replaced.ends = {"event": "end", "reason": "steps", "step": 9}

    def evaluate(run, loaded, stop):
        done.append(("evaluate", run, loaded, stop.deadline))
        yield run.append({"event": "evaluation"})

    monkeypatch.setattr(window, "Window", Replaced)
    monkeypatch.setattr(window, "evaluate", evaluate)
    return done


@pytest.mark.parametrize(
    ("seconds", "deadline"), [(None, None), (60, 1057.0), (4, 1003.75), (5, 1004.75), (6, 1005.7)]
)
def test_a_window_trains_then_scores_and_keeps_a_twentieth_of_its_seconds_to_leave(run, done, seconds, deadline):
    said = [e["event"] for e in window.train(run, seconds, 1000.0)]
    assert said == ["end", "evaluation"]
    deadline = deadline and pytest.approx(deadline)
    assert done == [
        ("window", run, seconds, 1000.0),
        ("train", True),
        ("evaluate", run, "the models", deadline),
        "leave",
    ]
    assert [e["event"] for e in run.events()] == ["end", "evaluation"]
    assert not run.is_training


def test_only_what_is_left_to_do_is_done(run, done):
    window.Window.ends = {"event": "end", "reason": "stopped", "step": 9}
    before = time.monotonic()
    assert [e["event"] for e in window.train(run)] == ["end"]
    (_, _, seconds, opened), *others = done
    assert seconds is None
    assert before <= opened <= time.monotonic()
    assert others == [("train", True), "leave"]
    done.clear()
    run.append({"event": "end", "reason": "clock", "step": 9})
    assert [e["event"] for e in window.train(run)] == ["evaluation"]
    assert [name for name, *_ in done[1:-1]] == ["evaluate"]
    assert done[1][2] is None  # the models are yet to be loaded
    done.clear()
    run.write_json("evaluation.json", {})
    assert list(window.train(run)) == []
    assert done[1:] == ["leave"]


def test_a_window_that_breaks_is_explained_and_left(run, done):
    window.Window.ends = IndexError("odd")
    with pytest.raises(TunerError, match="Run run failed before step 1"):
        list(window.train(run))
    assert done[1:] == [("train", True), "leave"]
    assert run.last_event()["type"] == "IndexError"
    assert not run.is_training


def test_a_window_that_works_on_yields_heartbeats_until_its_generator_is_closed(run, monkeypatch):
    stopped, went_on = [], threading.Event()

    def work(run, seconds, opened, put):
        put({"event": "start"})
        while not run.is_asked_to_stop:
            went_on.wait(0.001)
        stopped.append((seconds, opened))

    monkeypatch.setattr(window, "_train_and_score", work)
    events = window.train(run, 30, 5.0)
    assert next(events) == {"event": "start"}
    monkeypatch.setattr(heartbeat, "HEARTBEAT", 0.02)
    assert next(events) == {"event": "heartbeat"}
    events.close()
    assert stopped == [(30, 5.0)]


# A window's own work


class NoBest:
    """Stands in for the best weights of a run that keeps its last."""

    state, is_over = {"step": None, "loss": None, "latest": None}, False

    def measured(self, *given) -> bool:
        """Of a held-out loss."""
        return False

    def end_with(self, step: int, *given) -> int:
        """The last weights."""
        return step

    def learned(self, loss: float) -> None:
        """In training."""

    def overfitting(self) -> None:
        """Nothing rises."""

    def rising_since(self, step: int) -> None:
        """Nothing rises."""


class Parts:
    """Stand in for the trainer, the held-out loss and the checkpoints of a window, and record what it does."""

    def __init__(self, run: Run, machine: Machine, opened: float = 1000.0, **settings):
        self.machine, self.emitted, self.saved = machine, [], []
        self.window = Window(run, self.emit, settings.get("window"), opened)
        self.schedule = None
        self.control = SimpleNamespace(should_training_stop=False)
        win = self.window
        win.base = SimpleNamespace(model=SimpleNamespace(name="the base"))
        win.model, win.step, win.first, win.tokens, win.random, win.start_up = "the model", 0, 0, 0, None, 1.5
        win.skipped, win.first_batch, win.restore_base = 0, 0, lambda: None
        win.micro_batch = SimpleNamespace(rows=4, batch=4, begin=lambda rows, optimizer: None)
        win.trainer = self
        win.clock = Clock(lambda step: iter([100] * 10**4), opened=opened, **{"warmup": 3, "steps": 40, **settings})
        win.heldout = self
        # The seconds of a held-out loss are `self.seconds`, those of a checkpoint `win.checkpoints.seconds`.
        win.checkpoints = SimpleNamespace(is_due=lambda: win.step in self.save_due, save=self.save, seconds=0.0)
        win.last = machine.now
        win.clock.begin()
        # As the trainer
        self.batch_tokens, self.padded_tokens = 80, 100
        self.accelerator = SimpleNamespace(scaler=None, optimizer_step_was_skipped=False)
        win.best = self.best = NoBest()
        # As the held-out loss, and for the checkpoints
        self.due, self.measuring, self.every, self.measured_at = (), 0.0, 1, 0.0
        self.saving, self.save_due = 0.0, ()
        self.seconds = 0.0

    def emit(self, event: dict) -> None:
        self.emitted.append(event)

    def is_due(self, step: int, seconds: float, *, is_last: bool) -> bool:
        """Of the held-out loss."""
        assert seconds == self.window.clock.seconds
        return is_last or step in self.due

    def measure(self, model: str) -> Measured:
        assert model == "the model"
        self.machine.now += self.measuring
        return Measured(1.25, [1.0, 0.25])

    def save(self, step: int, counters: dict, trainer: "Parts", best: NoBest) -> dict:
        assert (trainer, best) == (self, self.best)
        self.saved.append((step, counters))
        self.machine.now += self.saving
        return {"event": "checkpoint", "step": step}

    def steps(self, count: int, seconds: float = 0.5, loss: float = 2.0) -> list[str]:
        """Do so many steps; the events."""
        before = len(self.emitted)
        for _ in range(count):
            self.machine.now += seconds
            self.window.on_log(None, None, self.control, {"loss": loss, "grad_norm": torch.tensor(0.1234567)})
        return [event["event"] for event in self.emitted[before:]]


@pytest.fixture
def parts(run, machine) -> Parts:
    return Parts(run, machine)


def test_each_steps_report_has_its_figures(parts):
    parts.window.clock.spent = 7.0
    parts.steps(1, seconds=0.50041, loss=2.3456789)
    parts.batch_tokens = 40
    parts.steps(1, seconds=0.25)
    first, second = parts.emitted
    assert first == {
        "event": "step",
        "step": 1,
        "steps": 40,
        "epoch": 0.143,
        "loss": 2.34568,
        "learning_rate": pytest.approx(0.02 / 4),  # the first of three steps of warm-up
        "grad_norm": 0.12346,
        "tokens": 80,
        "tokens_per_second": 159.9,
        "seconds": 7.5,
        "seconds_to_go": 19.5,
    }
    changed = {"step": 2, "epoch": 0.286, "tokens": 120, "tokens_per_second": 159.9, "seconds": 7.75, "loss": 2.0}
    assert {key: second[key] for key in changed} == changed
    assert second["learning_rate"] == pytest.approx(0.02 / 2)
    assert second["seconds_to_go"] == round(38 * 0.75041 / 2, 1)


def test_a_resumed_windows_report_goes_on_where_the_last_one_ended(parts):
    win = parts.window
    win.step, win.first, win.tokens = 12, 12, 1000
    parts.steps(1)
    assert (parts.emitted[0]["step"], parts.emitted[0]["tokens"], parts.emitted[0]["epoch"]) == (13, 1080, 1.857)
    assert parts.emitted[0]["learning_rate"] == pytest.approx(0.02 * (1 - 9 / 37))


def test_tokens_per_second_are_those_of_the_last_twenty_steps(parts):
    parts.window.clock.marks = [(0, 100)]
    parts.steps(10, seconds=8.0)
    parts.steps(19)
    assert parts.emitted[-1]["tokens_per_second"] == round(20 * 80 / (19 * 0.5 + 8), 1)
    parts.steps(1)
    assert parts.emitted[-1]["tokens_per_second"] == 160.0
    assert parts.window.latest.maxlen == 20


def test_what_is_done_between_steps_is_no_part_of_the_next_ones_time(parts):
    parts.due, parts.measuring, parts.save_due, parts.saving = (1,), 3.0, (1,), 4.0
    assert parts.steps(1) == ["step", "heldout", "checkpoint"]
    assert parts.emitted[1] == {"event": "heldout", "step": 1, "loss": 1.25}
    parts.steps(1)
    assert parts.emitted[-1]["tokens_per_second"] == 160.0
    assert list(parts.window.clock.paces) == [(100, 0.5)] * 2
    assert parts.window.clock.in_steps == 1.0
    assert not parts.control.should_training_stop


def test_a_checkpoint_counts_what_a_later_window_needs(parts):
    parts.save_due, parts.seconds, parts.window.checkpoints.seconds = (12,), 2.0, 4.0
    parts.window.clock.spent = 7.0
    parts.steps(3, seconds=0.25)
    parts.steps(9)
    ((step, counters),) = parts.saved
    assert step == 12
    counted = {"seconds": 12.25, "tokens": 960, "heldout_cost": 2.0, "paces": [(100, 0.5)] * 8}
    assert counters == counted | {"micro_batch": 4, "measured_at": 0.0, "best": parts.best.state}
    # Two parts of a checkpoint and one of an adapter, which is a third of it, and a held-out loss.
    assert parts.window.clock.leaving == 1.5 * 4.0 + 2.0


REASONS = [
    # steps done, whether a stop was asked for, the seconds that are left of the window, what is due and takes, reason
    (1, False, 9.0, {}, None, ["step"]),
    (1, False, 9.0, {"due": (1,)}, None, ["step", "heldout"]),
    (1, True, 9.0, {"due": ()}, "stopped", ["step", "checkpoint"]),
    (1, True, 0.5, {"due": (1,)}, "stopped", ["step", "heldout", "checkpoint"]),
    (1, False, 0.5, {"due": ()}, "window", ["step", "checkpoint"]),
    (1, False, 9.0, {"due": (1,), "measuring": 8.5}, "window", ["step", "heldout", "checkpoint"]),
    (1, False, 9.0, {"save_due": (1,), "saving": 8.5}, "window", ["step", "checkpoint"]),
    (1, False, 9.0, {"save_due": (1,), "saving": 1.0}, None, ["step", "checkpoint"]),
    (40, False, 9.0, {}, "steps", ["step", "heldout", "checkpoint"]),
    (40, False, 0.5, {"measuring": 99.0}, "steps", ["step", "heldout", "checkpoint"]),
    (40, True, 9.0, {"due": ()}, "stopped", ["step", "checkpoint"]),
]


@pytest.mark.parametrize(("done", "asked", "left", "facts", "reason", "said"), REASONS)
def test_after_each_step_a_window_is_left_for_the_first_reason(run, machine, done, asked, left, facts, reason, said):
    parts = Parts(run, machine, window=30.0, opened=machine.now - 21.0 + 0.5 - (9.0 - left))
    for name, value in facts.items():
        setattr(parts, name, value)
    parts.window.step = done - 1
    if asked:
        run.stop()
    assert parts.steps(1) == said
    assert parts.window.reason == reason
    assert parts.control.should_training_stop == (reason is not None)


def test_a_spent_budget_ends_with_a_heldout_loss_and_its_mark_is_reported(run, machine):
    parts = Parts(replan(run, steps=None), machine, steps=None, seconds=60.0)
    said = parts.steps(8)
    assert said == [*["step"] * 7, "schedule", "step"]
    at, steps = parts.window.clock.marks[0]
    assert parts.emitted[7] == {"event": "schedule", "at": at, "steps": steps}
    assert (at, parts.emitted[-1]["steps"], parts.emitted[0]["steps"]) == (8, steps, None)
    machine.now += 55.0
    assert parts.steps(1) == ["step", "heldout", "checkpoint"]
    assert parts.window.reason == "clock"


@pytest.mark.parametrize(
    ("dtype", "loss", "norm", "breaks"),
    [
        ("float32", float("nan"), 1.0, True),
        ("float32", 1.0, float("inf"), True),
        ("bfloat16", 1.0, float("nan"), True),
        ("float16", 1.0, float("inf"), True),  # of a step that was not skipped
        ("float16", float("inf"), 1.0, True),
        ("float32", 1.0, 1.0, False),
    ],
)
def test_a_loss_that_is_no_number_ends_the_run_with_its_cause(run, machine, dtype, loss, norm, breaks):
    parts = Parts(replan(run, settings=PLAN["settings"] | {"dtype": dtype}), machine)
    parts.steps(2)
    machine.now += 1
    logs = {"loss": loss, "grad_norm": norm}
    if not breaks:
        parts.window.on_log(None, None, parts.control, logs)
        assert parts.window.step == 3
        return
    with pytest.raises(TunerError) as caught:
        parts.window.on_log(None, None, parts.control, logs)
    assert str(caught.value) == (
        "The loss was no longer a finite number at step 3. The learning rate 0.02 is too high for this model: try a "
        "third of it."
    ) + (dtype == "float16") * (
        " If that does not help, the model needs a wider range than float16 has: set model.dtype to float32."
    )
    assert len(parts.emitted) == 2


def test_a_log_without_a_loss_is_no_step(parts):
    parts.window.on_log(None, None, parts.control, {"train_runtime": 3.0})
    assert (parts.emitted, parts.window.step) == ([], 0)


def test_the_rate_of_a_resumed_window_goes_on_where_it_was(parts):
    rates = [parts.window._rate(step) for step in range(40)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[3:] == pytest.approx([1 - step / 37 for step in range(37)])
    parts.window.first = 12
    assert [parts.window._rate(step) for step in range(28)] == rates[12:]
    # A clock may allow fewer steps of warm-up than the recipe names.
    parts.window.first, parts.window.clock = 0, Clock(None, warmup=3, steps=19)
    assert [parts.window._rate(step) for step in range(2)] == [0.5, 1.0]
    parts.window.first, parts.window.clock = 12, Clock(None, warmup=3, steps=40)
    parts.optimizer = SimpleNamespace(param_groups=[{"lr": 9.0}, {"lr": 9.0}])
    parts.window.on_train_begin(None, None, None)
    assert parts.optimizer.param_groups == [{"lr": pytest.approx(0.02 * rates[12])}] * 2


def test_the_random_state_is_restored_before_the_first_step_alone(parts):
    torch.manual_seed(5)
    parts.window.random = {"cpu": torch.get_rng_state()}
    expected = torch.rand(3)
    parts.window.on_step_begin(None, None, None)
    assert torch.equal(torch.rand(3), expected)
    parts.window.on_step_begin(None, None, None)
    assert not torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("saved", "is_available", "restored"),
    [(("cpu",), True, []), (("cpu", "cuda"), True, ["cuda's"]), (("cpu", "cuda"), False, [])],
)
def test_a_gpus_random_state_is_restored_where_there_is_one(parts, monkeypatch, saved, is_available, restored):
    restoring = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: is_available)
    monkeypatch.setattr(torch.cuda, "set_rng_state", restoring.append)
    monkeypatch.setattr(torch, "set_rng_state", lambda state: None)
    parts.window.random = {kind: f"{kind}'s" for kind in saved}
    parts.window.on_step_begin(None, None, None)
    assert restoring == restored


def test_a_methods_schedule_is_told_the_step_that_was_done_and_how_far_the_run_is(parts):
    told = []
    parts.window.on_optimizer_step(None, None, None)  # without a schedule there is nobody to tell
    parts.schedule = SimpleNamespace(stepped=lambda step, progress: told.append((step, progress)))
    parts.window.step, parts.window.first = 21, 12
    parts.window.on_optimizer_step(None, None, None)
    assert told == [(22, pytest.approx(19 / 37))]


@pytest.fixture
def training(parts, monkeypatch) -> Parts:
    """A window whose steps are done by `parts.does`, with nothing built, and its end recorded."""
    parts.did, parts.processing_class, parts.does = [], "the tokenizer", lambda: None
    monkeypatch.setattr(window, "base_of", lambda run: "the base")
    monkeypatch.setattr(window, "load_from_disk", lambda path: path)
    monkeypatch.setattr(window, "trained_variants", lambda *given: given)
    monkeypatch.setattr(Window, "_build", lambda self, rows: parts.did.append(("build", rows)))
    monkeypatch.setattr(Window, "_restore", lambda self: parts.did.append("restore"))
    monkeypatch.setattr(Window, "_finish", lambda self: parts.did.append("finish"))

    def train() -> None:
        parts.did.append("train")
        parts.does()

    parts.train = train
    return parts


def leave(parts: Parts, step: int, reason: str):
    def does() -> None:
        parts.window.step, parts.window.reason = step, reason

    return does


def test_a_window_builds_restores_measures_trains_and_finishes(run, training):
    training.seconds, training.measuring, training.window.checkpoints.seconds = 2.0, 0.5, 4.0
    training.does = leave(training, 3, "stopped")
    assert training.window.train() == (run, "the base", "the tokenizer", "the model")
    assert training.did == [("build", str(run.data / "train")), "restore", "train", "finish"]
    assert training.emitted == [{"event": "heldout", "step": 0, "loss": 1.25}]
    win, now = training.window, training.machine.now
    assert (win.last, win.clock.began, win.checkpoints.saved_at) == (now,) * 3
    assert training.measured_at == win.clock.seconds
    assert win.clock.leaving == 8.0


COUNTED = {
    "step": 12,
    "tokens": 960,
    "seconds": 7.25,
    "heldout_cost": 0.5,
    "best": {"step": 8},
    "paces": [[100, 0.5], [90, 0.4]],
    "random": "it",
}


@pytest.mark.parametrize(("counters", "pad", "padding"), [(COUNTED, 7, 7), (None, None, 0)])
def test_a_window_takes_over_what_its_checkpoint_counted(run, machine, monkeypatch, counters, pad, padding):
    parts, given = Parts(run, machine, opened=998.76543), []
    parts.optimizer, parts.schedule = "the optimizer", "the schedule"
    parts.batches, parts.processing_class = SimpleNamespace(start=None), SimpleNamespace(pad_token_id=pad)
    monkeypatch.setattr(window.checkpoint, "load", lambda *parts: given.append(parts) or counters)
    monkeypatch.setattr(window, "HeldoutLoss", lambda *parts: parts[:-1])
    monkeypatch.setattr(window, "Best", lambda *given: given)
    monkeypatch.setattr(window, "Checkpoints", lambda run: (run,))
    monkeypatch.setattr(window, "device_name", lambda: "the device")
    win = parts.window
    parts.model = "not this one"
    win._restore()
    assert given == [(run, "the model", "the optimizer", "the schedule")]
    counted = counters or {"step": 0, "tokens": 0, "seconds": 0.0, "heldout_cost": 0.0, "paces": [], "random": None}
    assert (win.step, win.first, parts.batches.start) == (counted["step"],) * 3
    assert (win.tokens, win.clock.spent, win.random) == (counted["tokens"], counted["seconds"], counted["random"])
    assert [list(pace) for pace in win.clock.paces] == counted["paces"]
    assert all(type(pace) is tuple for pace in win.clock.paces)
    assert win.heldout == (run, win.base, padding, counters or {})
    assert win.best == (run, counted.get("best"))
    assert win.checkpoints == (run,)
    start = {"event": "start", "step": counted["step"], "steps": 40, "device": "the device", "start_up": 1.235}
    start["threads"] = torch.get_num_threads()
    assert parts.emitted == [start]


@pytest.mark.parametrize(("every", "step", "measures"), [(1, 0, True), (0, 0, False), (1, 5, False)])
def test_the_base_is_measured_before_the_first_step_only(training, every, step, measures):
    training.every, training.window.step, training.window.first = every, step, step
    training.does = leave(training, 9, "steps")
    training.window.train()
    assert [e["step"] for e in training.emitted] == [0] * measures


def test_a_window_of_one_second_is_one_in_words():
    assert "The window of 1 second was over" in failures.too_short("window", 1.0, 1.5).problems[0]


ALLOW = "Allow more seconds, or choose a smaller base model, shorter rows or fewer rows per step."
LOADING = "loading alone took 1.5 seconds."


@pytest.mark.parametrize(
    ("first", "step", "reason", "problem"),
    [
        (0, 0, "clock", f"The budget of 30 seconds was over before the first step was done: {LOADING} {ALLOW}"),
        (0, 0, "window", f"The window of 12.5 seconds was over before the first step was done: {LOADING} {ALLOW}"),
        (5, 5, "window", f"The window of 12.5 seconds was over before the first step was done: {LOADING} {ALLOW}"),
        (5, 5, "clock", None),
        (5, 5, "stopped", None),
        (5, 6, "window", None),
        (0, 1, "window", None),
        (0, 1, "clock", None),
    ],
)
def test_a_window_without_a_step_is_refused_unless_the_run_is_at_its_end(training, first, step, reason, problem):
    win = training.window
    win.step = win.first = win.first_batch = first
    win.window = 12.5
    win.recipe = small_recipe(budget__seconds=30)
    training.does = leave(training, step, reason)
    if problem is None:
        win.train()
        assert training.did[2:] == ["train", "finish"]
    else:
        with pytest.raises(TunerError) as caught:
            win.train()
        assert str(caught.value) == problem
        assert "finish" not in training.did


def test_a_run_at_its_end_is_not_trained_further(training):
    training.window.step = training.window.first = 40
    training.window.train()
    assert training.did[1:] == ["restore", "finish"]
    assert training.window.reason == "steps"


@pytest.mark.parametrize(
    ("steps", "in_window", "in_steps", "a_step"),
    [(4, 12.05, 2.05, 0.5124), (1, 10.513, 0.512, 0.5124), (0, 10.0, 0, 0)],
)
def test_the_end_of_a_window_replaces_what_was_made_before_and_is_reported(
    run, machine, monkeypatch, steps, in_window, in_steps, a_step
):
    parts = Parts(run, machine, opened=990.0)
    monkeypatch.setattr(runs, "RUNS", run.path.parent)
    monkeypatch.setattr(
        window.attach, "save", lambda model, folder, name: (folder / "adapter").write_text(f"{model} on {name}")
    )
    tokenizer = SimpleNamespace(save_pretrained=lambda folder: (folder / "tokenizer").write_text("words"))
    parts.processing_class, evaluated = tokenizer, []
    parts.window.clock.spent = 100.0
    parts.window.step = parts.window.first = 20  # steps of earlier windows
    parts.steps(steps, seconds=0.51239)
    parts.window.reason = "window"

    class Model(str):
        def eval(self) -> None:
            evaluated.append(self)

    parts.window.model = Model("the model")
    for name in ("merge_check.json", "evaluation.json", "answers.json", "kept.json"):
        run.write_json(name, {})
    (run.merged / "weights").mkdir(parents=True)
    (run.adapter / "old").mkdir(parents=True)
    machine.now += 0.0004
    parts.window._finish()
    assert sorted(file.name for file in run.path.glob("*.json")) == ["kept.json", "plan.json"]
    assert not run.merged.exists()
    assert {file.name: file.read_text() for file in run.adapter.iterdir()} == {
        "adapter": "the model on the base",
        "tokenizer": "words",
    }
    assert evaluated == ["the model"]
    assert parts.emitted[-1] == {
        "event": "end",
        "reason": "window",
        "step": 20 + steps,
        "seconds": 100 + in_window,
        "in_window": in_window,
        "in_steps": in_steps,
        "peak_memory": torch.cuda.max_memory_allocated() if device_type() == "cuda" else None,
        "seconds_per_step": a_step,
        "kept": 20 + steps,
        "steps": 40,
        "best": None,
        "best_loss": None,
        "last_loss": None,
        "rising_since": None,
    }
    if not steps:
        assert not (run.path.parent / "paces.json").exists()
        return
    paces = json.loads((run.path.parent / "paces.json").read_text())
    assert [kept.pop("run") for kept in paces.get(next(iter(paces)))] == [run.id]
    key = " | ".join((device_type(), run.recipe.model.name, run.recipe.model.quantization, run.recipe.method.name))
    measured = {"seconds_per_token": 0.0051239, "seconds_per_step": 0.51239, "start_up": 1.5}
    assert paces == {key: [pytest.approx(measured)]}


@pytest.mark.parametrize(("device", "name", "memory"), [("cpu", "CPU", None), ("cuda", "the GPU", 123)])
def test_a_window_names_its_device_and_the_memory_that_it_took_there(parts, monkeypatch, device, name, memory):
    monkeypatch.setattr(window, "device_type", lambda: device)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "the GPU")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 123)
    monkeypatch.setattr(window.attach, "save", lambda *given: None)
    parts.processing_class = SimpleNamespace(save_pretrained=lambda folder: None)
    parts.window.model, parts.window.reason = SimpleNamespace(eval=lambda: None), "steps"
    parts.window._finish()
    assert (window.device_name(), parts.emitted[-1]["peak_memory"]) == (name, memory)


def test_leaving_detaches_the_adapter_once_and_then_restores_the_base(parts, monkeypatch):
    done = []
    monkeypatch.setattr(window.attach, "detach", done.append)
    parts.window.restore_base = lambda: done.append("restored")
    parts.window.leave()
    assert (parts.window.model, parts.window.trainer, parts.window.restore_base) == (None, None, None)
    parts.window.leave()
    assert done == ["the model", "restored"]
