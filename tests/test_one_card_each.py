"""Off ZeroGPU: one training a card, which finds it free, and a chat that is refused where there is no room left."""

import os
import subprocess
import sys
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, small_recipe

from tuner import gpu, runs
from tuner.errors import TunerError
from tuner.inference.variants import load_variants
from tuner.models import load
from tuner.models.fetch import base_of
from tuner.models.shape import shape_of
from tuner.planning import forecast
from tuner.runs import Run
from tuner.ui import run_queue
from tuner.ui.run_queue import RunQueue


@pytest.fixture
def visible(monkeypatch):
    """Lets torch see this many cards, and CUDA_VISIBLE_DEVICES name these."""

    def visible(count: int, names: str | None = None) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        if names is None:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        else:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", names)

    return visible


@pytest.mark.parametrize(
    ("count", "names", "cards"),
    [(0, None, []), (0, "", []), (1, None, ["0"]), (3, None, ["0", "1", "2"]), (2, "5,7", ["5", "7"]),
     (1, "GPU-8932f937", ["GPU-8932f937"]), (1, "2,99", ["2"])],
)  # fmt: skip
def test_the_cards_are_those_that_are_visible_under_their_own_names(count, names, cards, visible):
    visible(count, names)
    assert gpu.cards() == cards


@pytest.mark.parametrize(("count", "places"), [(0, 2), (1, 1), (4, 4)])
def test_one_run_trains_on_each_card_and_two_on_a_cpu_unless_the_app_is_told_otherwise(
    count, places, visible, monkeypatch
):
    visible(count)
    queue = RunQueue()
    assert queue.places == places
    visible(9)
    assert queue.places == places  # counted once
    monkeypatch.setattr(run_queue, "SLOTS", "3")
    assert RunQueue().places == 3
    monkeypatch.setattr(run_queue, "SLOTS", None)
    monkeypatch.setattr(gpu, "ZERO", True)
    monkeypatch.setattr(torch.cuda, "device_count", None)  # which is not asked in ZeroGPU's main process
    assert RunQueue().places == 8
    assert gpu.cards() == []


def test_no_cards_are_counted_before_a_run_wants_one_since_that_imports_torch():
    code = "import sys; from tuner.ui import run_queue; print('torch' in sys.modules)"
    clean = {k: v for k, v in os.environ.items() if k not in ("SPACES_ZERO_GPU", "TUNER_TRAINING_SLOTS")}
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=clean, capture_output=True, text=True)
    assert told.stdout.split() == ["False"]


def test_each_run_in_training_holds_a_slot_of_its_own_and_the_first_free_one_comes_next():
    queue = RunQueue(3)
    for run in "abcd":
        queue.join(run, run)
    with ExitStack() as others:
        first = others.enter_context(ExitStack())
        assert first.enter_context(queue.turn("a"))
        assert others.enter_context(queue.turn("b"))
        assert others.enter_context(queue.turn("c"))
        assert [queue.slot(run) for run in "abc"] == [0, 1, 2]
        first.close()
        assert others.enter_context(queue.turn("d"))
        assert [queue.slot(run) for run in "dbc"] == [0, 1, 2]


@pytest.fixture
def run(tmp_path) -> Run:
    return runs.create(small_recipe(), path=tmp_path / "run")


def test_the_turn_of_a_run_trains_on_the_card_of_its_slot(run, monkeypatch):
    trained, queue = [], RunQueue(2)
    monkeypatch.setattr(run_queue, "queue", queue)
    monkeypatch.setattr(gpu, "train", lambda run, slot: trained.append(slot) or iter([]))
    queue.join("other", "bob")
    with queue.turn("other"):
        queue.join(run.id, "ann")
        run_queue._take_turn(run)
    assert trained == [1]


@pytest.fixture
def trained_on(run, monkeypatch, tmp_path):
    """Trains the run at a slot, in a process that only tells its cards."""
    (tmp_path / "python").write_text('#!/bin/sh\necho "${CUDA_VISIBLE_DEVICES-all}" > "$4/cards"\n')
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(gpu, "POLL", 0.002)

    def trained_on(slot: int) -> str:
        list(gpu.train(run, slot))
        return (run.path / "cards").read_text().strip()

    return trained_on


def test_a_training_process_sees_the_card_of_its_slot_and_no_other(trained_on, visible):
    visible(2, "5,7")
    assert [trained_on(slot) for slot in range(4)] == ["5", "7", "5", "7"]  # more slots than cards, if asked for
    visible(1)
    assert trained_on(0) == "0"
    visible(0)
    assert trained_on(1) == "all"
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


def test_models_kept_for_chat_are_dropped_before_a_training_takes_their_card(trained_on, visible, finished):
    base = base_of(finished)
    kept = load.shared_base(base)
    visible(0)
    trained_on(0)
    assert load.shared_base(base) is kept
    visible(2)
    trained_on(1)  # the chat is on the first card
    visible(0)
    assert load.shared_base(base) is kept
    visible(2)
    trained_on(0)
    visible(0)
    assert load.shared_base(base) is not kept


# Chat beside a training


@pytest.fixture
def card(monkeypatch):
    """A card over the CPU: `memory` bytes, of which kept models take theirs."""
    card, kept = SimpleNamespace(memory=0), type(load._kept)()

    def free() -> int:
        return card.memory - sum(model.get_memory_footprint() for model in kept.values())

    monkeypatch.setattr(load, "_kept", kept)
    monkeypatch.setattr(load, "_free_bytes", free)
    return card


def test_a_model_that_does_not_fit_is_refused_before_it_is_loaded(finished, card, monkeypatch):
    base = base_of(finished)
    needed = load.weight_bytes(shape_of(base), "nf4", "float32")
    card.memory = needed - 1
    with pytest.raises(TunerError) as caught:
        load_variants({"adapter": finished})
    gigabytes = forecast.gigabytes(needed)  # as the plan says it
    assert str(caught.value) == (
        f"{base.model.name} needs {gigabytes} of the GPU's memory to load, and {gigabytes} are free. Wait until the "
        "other jobs on this GPU have finished, compare fewer models at once, or use a smaller base model or 4-bit "
        "precision."
    )
    card.memory = needed
    assert load_variants({"adapter": finished}).variants == ["base", "adapter"]


def test_kept_models_are_dropped_for_one_that_would_not_fit_beside_them(finished, card):
    base = base_of(finished)
    exact, small = (load.weight_bytes(shape_of(base), q, "float32") for q in ("none", "nf4"))
    card.memory = exact + 2 * small
    load.shared_base(base)
    load.shared_base(base, quantization="none")
    assert len(load._kept) == 2
    load.forget_bases()
    card.memory = exact + small // 2
    load.shared_base(base)
    load.shared_base(base, quantization="none")
    assert [key[4] for key in load._kept] == ["none"]


def test_what_is_reserved_but_not_used_is_free_and_a_cpu_is_not_asked(monkeypatch):
    assert load._free_bytes() is None
    monkeypatch.setattr(load, "device_type", lambda: "cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (700, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 250)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 200)
    assert load._free_bytes() == 750


def test_a_training_that_begins_while_a_chat_loads_its_model_takes_nothing_from_it(finished, card, monkeypatch):
    card.memory = 2**40

    class Forgetful(type(load._kept)):
        """What a training that begins leaves of the cache, as soon as a model is in it."""

        def __setitem__(self, key, model):
            super().__setitem__(key, model)
            load.forget_bases()

    monkeypatch.setattr(load, "_kept", Forgetful())
    assert load.shared_base(base_of(finished)).get_memory_footprint() > 0
