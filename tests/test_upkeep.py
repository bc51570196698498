"""What a window is built from: the run's folder, its trainer, its held-out loss and its checkpoints."""

import json
import shutil
import tempfile
import time
from contextlib import contextmanager
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
import transformers
from conftest import small_recipe
from machine import Machine
from safetensors import safe_open
from torch import nn

from tuner import runs
from tuner.data.batches import Batches
from tuner.methods.schedules import AdaLoraSchedule
from tuner.models.device import device_type
from tuner.models.fetch import base_of
from tuner.runs import Run
from tuner.tasks import TASKS
from tuner.training import trainer, upkeep, window
from tuner.training.micro_batches import MicroBatch
from tuner.training.window import Window


@pytest.fixture
def machine(monkeypatch) -> Machine:
    machine = Machine()
    monkeypatch.setattr(upkeep, "time", machine)
    return machine


ASKED = {"budget.seconds": 50.0, "training.warmup_steps": 5, "training.batch_size": 4, "seed": 11}


@pytest.fixture
def resumed(finished, tmp_path) -> Run:
    """The finished run, as if its budget were one in seconds and its batches of 3 rows, after two counts."""
    run = Run(shutil.copytree(finished.path, tmp_path / "run"))
    run.write_text("recipe.yaml", run.recipe.with_settings(ASKED).to_yaml())
    run.write_json("plan.json", {**run.plan, "steps": None, "settings": run.plan["settings"] | {"batch_size": 3}})
    run.log.path.unlink()
    for event in ({"steps": 300}, {"at": 20, "steps": 150}):
        run.append({"event": "schedule", **event})
    run.append({"event": "start", "step": 0, "steps": 150})
    return run


@pytest.fixture
def built(resumed):
    """A window that is built and goes on from the run's checkpoint, and what it said."""
    said = []
    win = Window(resumed, said.append, 20.0, time.monotonic() - 4.0)
    win.base = base_of(resumed)
    try:
        win._build(upkeep.load_from_disk(str(resumed.data / "train")))
        yield win, said
    finally:
        win.leave()


def test_a_resumed_window_goes_on_from_the_checkpoint_the_marks_and_the_rows(built, resumed, finished):
    win, said = built
    assert win.clock.marks == [(8, 300), (20, 150)]  # the first version did not say where it counted
    assert (win.clock.warmup, win.clock.budget, win.clock.deadline) == (5, 50.0, win.opened + 20)
    assert (win.first, win.clock.spent) == (0, 0.0)
    rows = upkeep.load_from_disk(str(resumed.data / "train"))
    lengths = [len(ids) for ids in rows["input_ids"]]
    batches, earlier = Batches(lengths, 3, 11), Batches(lengths, 4, finished.recipe.seed)
    assert next(win.clock.sizes(3)) == next(batches.sizes(3))
    win._restore()
    with safe_open(resumed.checkpoints / "step-00000008.safetensors", "pt") as file:
        counters = json.loads(file.metadata()["counters"])
    assert counters["tokens"] == finished.last_event("step")["tokens"]
    assert (win.step, win.first, win.tokens, win.trainer.batches.start) == (8, 8, counters["tokens"], 8)
    assert (win.clock.spent, win.heldout.seconds) == (counters["seconds"], counters["heldout_cost"])
    assert win.heldout.padding == win.trainer.processing_class.pad_token_id
    assert next(iter(win.trainer.batches)) == next(batches.since(8))
    assert [list(pace) for pace in win.clock.paces] == counters["paces"]
    assert [tokens for tokens, _ in win.clock.paces] == list(islice(earlier.sizes(0), 8))
    assert win.random.keys() >= {"cpu"}
    (start,) = said
    assert start == {
        "event": "start",
        "step": 8,
        "steps": 150,
        "device": window.device_name(),
        "start_up": win.start_up,
        "threads": torch.get_num_threads(),
    }
    assert 4.0 <= win.start_up < 60
    assert (start["device"] == "CPU") == (device_type() == "cpu")
    shutil.rmtree(resumed.checkpoints)
    win._restore()
    assert (win.step, win.first, win.tokens, win.random, win.clock.spent, win.heldout.seconds) == (0, 0, 0, None, 0, 0)


def test_a_windows_trainer_is_that_of_its_task(built):
    win, _ = built
    train = win.trainer
    assert [kind.__name__ for kind in type(train).__mro__[1:3]] == ["Overrides", "SFTTrainer"]
    assert (train.objective, train.schedule, train.floating_point_ops({})) == ("next_token", None, 0)
    assert train.args.report_to == []
    padding = train.processing_class.pad_token_id
    rows = [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, {"input_ids": [5], "labels": [5]}]
    assert train.data_collator(rows)["input_ids"].tolist() == [[5, 6, 7], [5, padding, padding]]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_each_setting_reaches_the_trainer_and_what_is_trained_stays_in_float32(monkeypatch, dtype):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    model[0].half()
    start = model[1].weight.clone()

    class Given:
        def __init__(self, **given):
            self.given, self.removed = given, []
            self.accelerator = SimpleNamespace(scaler=None, native_amp=False)
            model[1].bfloat16()  # as TRL does on a quantized base

        def remove_callback(self, kind: type) -> None:
            self.removed.append(kind)

    monkeypatch.setattr(trainer, "_classes", lambda task: (Given, SimpleNamespace, {"more": task.name}))
    recipe = small_recipe(training__max_grad_norm=0.7, training__weight_decay=0.3, seed=11)
    settings = {"batch_size": 6, "learning_rate": 0.02, "dtype": dtype}
    tokenizer, task = SimpleNamespace(pad_token_id=None), TASKS["seq2seq"]
    made = trainer.build(
        model, tokenizer, ["rows"], recipe, task, settings, lambda step: 0.25 + step, "callback", "micro-batch"
    )
    arguments = vars(made.given.pop("args"))
    assert arguments.pop("output_dir") == tempfile.gettempdir()
    assert arguments == {
        "per_device_train_batch_size": 6,
        "max_grad_norm": 0.7,
        "max_steps": 10**7,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        "bf16": dtype == "bfloat16",
        "fp16": dtype == "float16",
        "use_cpu": device_type() == "cpu",
        "seed": 11,
        "remove_unused_columns": False,
        "more": "seq2seq",
        "_n_gpu": 1,
        **({"mixed_precision": "no"} if dtype == "float32" else {}),
    }
    optimizer, rate = made.given.pop("optimizers")
    assert made.given.pop("data_collator")([{"input_ids": [5, 6]}, {"input_ids": [7]}])["input_ids"].tolist() == [
        [5, 6],
        [7, 0],
    ]
    assert made.given == {
        "model": model,
        "train_dataset": ["rows"],
        "processing_class": tokenizer,
        "callbacks": ["callback"],
    }
    (group,) = optimizer.param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in model[1].parameters()]
    assert (group["initial_lr"], group["lr"], group["weight_decay"]) == (0.02, 0.005, 0.3)
    assert group["fused"] == (dtype != "float16")
    optimizer.step()
    rate.step()
    assert group["lr"] == pytest.approx(0.02 * 1.25)
    assert (made.objective, made.micro_batch) == (task.objective, "micro-batch")
    assert made.removed == [transformers.PrinterCallback]
    assert (made.accelerator.scaler is not None, made.accelerator.native_amp) == (dtype == "float16",) * 2
    assert torch.equal(model[1].weight, start)
    assert {p.dtype for p in model[1].parameters()} == {torch.float32}
    assert model[0].weight.dtype == torch.float16


SFT = {"max_length": None, "dataset_kwargs": {"skip_prepare_dataset": True}, "router_aux_loss_coef": 0.0}


@pytest.mark.parametrize(
    ("task", "name", "extra"),
    [
        ("generation", "SFTTrainer", SFT),
        ("classification", "Trainer", {}),
        ("seq2seq", "Trainer", {}),
    ],
)
def test_each_task_has_its_trainer(task, name, extra):
    found, arguments, given = trainer._classes(TASKS[task])
    assert [kind.__name__ for kind in found.__mro__[1:3]] == ["Overrides", name]
    assert arguments.__name__ == {"SFTTrainer": "SFTConfig", "Trainer": "TrainingArguments"}[name]
    assert given == extra


def test_a_batchs_loss_has_the_penalty_of_the_schedule_and_counts_its_tokens(monkeypatch):
    monkeypatch.setattr(trainer.losses, "mean_loss", lambda *given: torch.tensor(float(given == ("nli", "m", inputs))))
    inputs = {"attention_mask": torch.tensor([[1, 1, 1], [1, 0, 0]]), "input_ids": torch.zeros(2, 3)}
    over = trainer.Overrides()
    over.objective = "nli"
    assert over.compute_loss("m", inputs) == 1
    assert (over.batch_tokens, over.padded_tokens) == (4, 6)
    over.schedule = SimpleNamespace(penalty=lambda: torch.tensor(0.25))
    assert over.compute_loss("m", inputs) == 1.25


def test_only_a_method_with_a_schedule_has_one(monkeypatch):
    assert trainer.schedule_of(None, "model") is None
    monkeypatch.setitem(trainer.SCHEDULES, AdaLoraSchedule.__name__, lambda model: f"schedule of {model}")
    assert trainer.schedule_of("AdaLoraSchedule", "model") == "schedule of model"


# Held-out losses and checkpoints


@pytest.fixture
def prepared(tmp_path) -> Run:
    """A run of a million trained weights."""
    run = runs.create(small_recipe(), path=tmp_path / "prepared")
    run.write_json("plan.json", {"trainable_parameters": 10**6})
    return run


def planned(run: Run, **measuring) -> Run:
    """The run with another way to measure its held-out loss."""
    run.write_json("plan.json", {**run.plan, "measuring": run.plan["measuring"] | measuring})
    return run


@pytest.fixture
def own(finished, tmp_path) -> Run:
    """A copy of the finished run."""
    return Run(shutil.copytree(finished.path, tmp_path / "own"))


def heldout_loss_of(run: Run, **counters) -> upkeep.HeldoutLoss:
    return upkeep.HeldoutLoss(run, base_of(run), 0, counters, MicroBatch(run, None))


@pytest.mark.parametrize(
    ("every", "step", "is_last", "due"),
    [
        (3, 6, False, True),
        (3, 7, False, False),
        (3, 7, True, True),
        (0, 6, False, False),
        (0, 6, True, False),
        (100, 6, True, True),
    ],
)
def test_a_heldout_loss_is_due_at_its_steps_however_long_it_takes(own, every, step, is_last, due):
    loss = heldout_loss_of(planned(own, every=every), heldout_cost=50.0)
    assert loss.is_due(step, 9.0, is_last=is_last) is due


@pytest.mark.parametrize(
    ("seconds", "cost", "due"), [(37.9, 0.5, False), (38.0, 0.5, True), (49.9, 2.0, False), (50.0, 2.0, True)]
)
def test_of_a_budget_in_seconds_a_tenth_lies_between_two_or_more_where_they_take_long(own, seconds, cost, due):
    own.write_text("recipe.yaml", own.recipe.with_settings({"budget.seconds": 80}).to_yaml())
    loss = heldout_loss_of(planned(own, every=None), measured_at=30.0, heldout_cost=cost)
    assert loss.is_due(7, seconds, is_last=False) is due
    assert loss.is_due(7, 30.0, is_last=True)


def test_a_heldout_loss_is_measured_without_dropout_on_the_planned_rows(finished, own, machine, monkeypatch):
    run, model, measured, entered = planned(own, first=1, last=2), nn.Dropout(), [], []
    run.plan["settings"] = run.plan["settings"] | {"batch_size": 3}  # as planned for a recipe that names none
    base = SimpleNamespace(row=SimpleNamespace(objective="nli"), model="the base")

    @contextmanager
    def autocast(model):
        entered.append(model)
        yield
        entered.clear()

    def heldout_losses(*given):
        measured.append((*given, model.training, *entered))
        machine.now += 3.5
        return [1.0, 0.23456789]

    monkeypatch.setattr(upkeep, "heldout_losses", heldout_losses)
    monkeypatch.setattr(upkeep, "autocast", autocast)
    loss = upkeep.HeldoutLoss(run, base, 7, {"heldout_cost": 2.0, "measured_at": 5.0}, MicroBatch(run, None))
    assert (loss.seconds, loss.measured_at) == (2.0, 5.0)
    assert loss.measure(model) == (1.23457, [1.0, 0.2345679])
    ((objective, given, rows, size, padding, *how),) = measured
    assert (objective, given, size, padding, how) == ("nli", model, 3, 7, [False, "the base"])
    assert rows.to_list() == upkeep.load_from_disk(str(finished.data / "heldout")).to_list()[1:2]
    assert model.training
    assert loss.seconds == 3.5


@pytest.mark.parametrize(
    ("setting", "writing", "since", "due"),
    [
        ("auto", 0.01, 9.9, False),
        ("auto", 0.01, 10.0, True),
        ("auto", 0.5, 49.0, False),
        ("auto", 0.5, 50.0, True),
        (30, 0.5, 29.0, False),
        (30, 0.5, 30.0, True),
        (5, 99.0, 5.0, True),
    ],
)
def test_a_checkpoint_is_due_after_the_seconds_of_the_recipe_or_a_hundred_times_its_own(
    prepared, machine, setting, writing, since, due
):
    prepared.write_text(
        "recipe.yaml", prepared.recipe.with_settings({"training.checkpoint_seconds": setting}).to_yaml()
    )
    checkpoints = upkeep.Checkpoints(prepared)
    assert (checkpoints.seconds, checkpoints.saved_at) == (12 * 10**6 / 50e6, 1000.0)
    checkpoints.seconds = writing
    machine.now += since
    assert checkpoints.is_due() is due


def test_a_checkpoint_is_written_with_its_parts_and_timed(prepared, machine, monkeypatch):
    saved = []

    def save(*given):
        saved.append(given)
        machine.now += 1.23456

    monkeypatch.setattr(upkeep.checkpoint, "save", save)
    checkpoints = upkeep.Checkpoints(prepared)
    train = SimpleNamespace(model="model", optimizer="optimizer", schedule="schedule")
    best = SimpleNamespace(save=lambda: saved.append("the best weights, which the checkpoint refers to"))
    event = checkpoints.save(7, {"tokens": 3}, train, best)
    assert event == {"event": "checkpoint", "step": 7, "seconds": 1.2346}
    assert saved[1:] == [(prepared, 7, {"tokens": 3}, "model", "optimizer", "schedule")]
    assert (checkpoints.saved_at, checkpoints.seconds) == (machine.now, pytest.approx(1.23456))
