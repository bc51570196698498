"""One run trains in one process on one card, and measures what it alone takes of it."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
import transformers
from conftest import ROOT, SMALL, small_recipe
from torch import nn

from tuner import runs
from tuner.errors import TunerError
from tuner.models import load
from tuner.models.fetch import base_of
from tuner.planning import plan
from tuner.recipe import Recipe
from tuner.training import trainer, window
from tuner.training.window import Window, train

pytestmark = pytest.mark.usefixtures("no_estimates")

FEW = {"budget__steps": 2, "evaluation__rows": 1, "evaluation__max_new_tokens": 1}
SENTENCE = (
    "Tuner trains on one GPU, and this is one of 2 processes. Start it without `accelerate launch` or torchrun, or "
    "with --num_processes 1."
)


@pytest.fixture
def run(tmp_path) -> runs.Run:
    return plan.prepare(small_recipe(model__quantization="none", **FEW), path=tmp_path / "run")


@pytest.mark.parametrize("name", ["corporate", "reviews"])  # TRL's trainer, and transformers' own
def test_with_two_cards_an_unquantized_model_is_trained_on_one(tmp_path, monkeypatch, name):
    """The cards are pretended; transformers would wrap the model to spread each batch over them, and TRL refuses."""
    few = SMALL | {"model.quantization": "none", "budget.steps": 2, "evaluation.rows": 1}
    run = plan.prepare(Recipe.load(name).with_settings(few), path=tmp_path / "run")
    load.shared_base(base_of(run))  # loading would look at the cards, too
    trained = []

    class Watched(Window):
        def on_train_begin(self, *args, **kwargs):
            trained.extend([kwargs["model"], self.trainer.model_wrapped, self.trainer.args.n_gpu])
            super().on_train_begin(*args, **kwargs)

    monkeypatch.setattr(window, "Window", Watched)
    monkeypatch.setattr(trainer, "device_type", lambda: "cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    list(train(run))
    model, wrapped, cards = trained
    assert not isinstance(wrapped, nn.DataParallel)
    assert wrapped is model
    assert cards == 1
    assert run.status == "finished"


def test_one_of_several_processes_is_refused_before_anything_is_done(run, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TunerError) as caught:
        next(train(run))
    assert str(caught.value) == SENTENCE
    assert run.events() == []


def test_a_single_process_of_torchrun_trains_like_any_other(run, monkeypatch):
    """Wrapped for several processes, a model has no other method than its forward pass."""
    for name, value in {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "0")
    list(train(run))
    assert run.status == "finished"
    assert not torch.distributed.is_initialized()


def test_an_empty_number_of_processes_is_one(run, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "")
    list(train(run))
    assert run.status == "finished"


def test_the_precision_is_the_plans_whatever_the_launcher_was_given(run, monkeypatch):
    plain = runs.Run(shutil.copytree(run.path, run.path.parent / "plain"))
    list(train(plain))
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    list(train(run))
    adapter, expected = (r.adapter / "adapter_model.safetensors" for r in (run, plain))
    assert adapter.read_bytes() == expected.read_bytes()


def launched(*arguments: str, out) -> subprocess.CompletedProcess:
    """What `accelerate launch` makes of `tuner train`."""
    command = [sys.executable, "-m", "accelerate.commands.launch", *arguments, "-m", "tuner", "train"]
    settings = {"budget.steps": 2, "data.max_rows": 16, "training.batch_size": 4, "evaluation.rows": 1}
    options = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, "corporate", "--out", str(out), *options], cwd=ROOT, env=environment, capture_output=True, text=True
    )


@pytest.mark.long
def test_accelerate_launch_trains_with_one_process(tmp_path):
    done = launched("--cpu", "--num_processes", "1", out=tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert runs.Run(tmp_path / "run").status == "finished"


@pytest.mark.long
def test_accelerate_launch_with_two_processes_is_answered_with_a_sentence_and_no_run(tmp_path):
    done = launched("--multi_gpu", "--num_processes", "2", out=tmp_path / "run")
    assert done.returncode != 0
    assert SENTENCE in done.stderr
    assert not (tmp_path / "run").exists()


class Counter:
    """Below torch.cuda: the memory that a process has, and the most since the counter was reset."""

    def __init__(self):
        self.peak = 9 * 10**9  # of an earlier run in this worker

    def reset(self) -> None:
        self.peak = 0

    def take(self, size: int) -> None:
        self.peak = max(self.peak, size)


def test_the_peak_of_memory_is_that_of_the_window(run, monkeypatch):
    counter, step = Counter(), Window.on_step_begin

    def take(self, *args, **kwargs):
        counter.take(5 * 10**8)
        step(self, *args, **kwargs)

    monkeypatch.setattr(window, "device_type", lambda: "cuda")
    monkeypatch.setattr(Window, "on_step_begin", take)
    for name, deed in {"reset_peak_memory_stats": counter.reset, "max_memory_allocated": lambda: counter.peak}.items():
        monkeypatch.setattr(torch.cuda, name, deed)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    list(train(run))
    assert run.last_event("end")["peak_memory"] == 5 * 10**8


@pytest.mark.parametrize(("device", "place"), [("cuda", {"": 0}), ("cpu", None)])
def test_a_base_is_loaded_whole_onto_the_one_card(run, monkeypatch, device, place):
    class Asked(Exception):
        """Where the weights are to go is known; there is no card to put them on."""

    def from_pretrained(folder, **options):
        raise Asked(options["device_map"])

    monkeypatch.setattr(load, "device_type", lambda: device)
    monkeypatch.setattr(load, "_check_room", lambda *arguments: None)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    with pytest.raises(Asked) as caught:
        load.load_base(base_of(run))
    assert caught.value.args == (place,)
