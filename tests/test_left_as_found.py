"""What a training leaves in a warm worker: the base as it was found, and no memory but the base's."""

import gc
import shutil
from itertools import product

import pytest
import torch
from conftest import mostly_long, small_recipe

from tuner import runs
from tuner.errors import TunerError
from tuner.evaluation import answers
from tuner.models import load, losses
from tuner.models.fetch import base_of
from tuner.planning import plan
from tuner.training import failures, window
from tuner.training.window import Window, train

pytestmark = pytest.mark.usefixtures("no_estimates")

QUICK = {"budget__steps": 2, "evaluation__rows": 1, "evaluation__max_new_tokens": 1}
# Methods of each way to attach: PEFT's layers, with a schedule, copies of the base's weights, hooks, tokens in front.
IN_16_BIT = ("full", "bottleneck")
KINDS = ("lora", "adalora", "full", "bottleneck", "prompt_tuning")


@pytest.fixture
def make(tmp_path, small_base):
    """A prepared run of a method, with few steps and little to score."""

    def make(method: str, **settings) -> runs.Run:
        number = len(list(tmp_path.iterdir()))
        precision = "none" if method in IN_16_BIT else "nf4"
        settings = {"model__quantization": precision, "method__name": method, "method__rank": "auto"} | settings
        recipe = small_recipe(model__name=small_base, **QUICK | settings)
        return plan.prepare(recipe, path=tmp_path / f"run{number}")

    return make


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """No base that another test left, none left for others, and windows that nobody watches."""
    monkeypatch.setattr(window, "Window", Window)
    load.forget_bases()
    yield
    load.forget_bases()


def facts(base: torch.nn.Module) -> dict[str, tuple]:
    """All that the next job may notice of a base, apart from the values of its weights."""
    hooks = [key for key in vars(base) if key.endswith("hooks")]
    return {
        name: (
            type(module),
            {key: len(value) if key in hooks else type(value) for key, value in vars(module).items()},
            module.training,
            [(key, p.requires_grad, p.dtype, p.data_ptr()) for key, p in module.named_parameters(recurse=False)],
            [(key, b.dtype, b.data_ptr()) for key, b in module.named_buffers(recurse=False)],
        )
        for name, module in base.named_modules()
    }


TIMES = [(method, 3 if method == "lora" else 2) for method in KINDS]


@pytest.mark.parametrize(("method", "times"), mostly_long(TIMES, ("lora", 3), ("full", 2), ("prompt_tuning", 2)))
def test_trainings_leave_their_base_exactly_as_they_found_it(make, method, times):
    first = make(method, budget__steps=1)
    first.write_json("evaluation.json", {})  # training alone
    base = load.shared_base(base_of(first))
    base.generation_config.pad_token_id = None  # as in many models; the Trainer sets it to the tokenizer's
    before, config = facts(base), (base.config.to_dict(), base.generation_config.to_dict())
    weights = {name: value.clone() for name, value in base.state_dict().items()}
    for number in range(times):
        list(train(runs.Run(shutil.copytree(first.path, first.path.parent / f"copy{number}"))))
    assert load.shared_base(base_of(first)) is base
    assert facts(base) == before
    assert (base.config.to_dict(), base.generation_config.to_dict()) == config
    assert all(torch.equal(value, weights[name]) for name, value in base.state_dict().items())


def live_bytes() -> int:
    """Bytes of all tensors that anything still refers to; memory that several share counts once."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.Tensor) and thing.device.type != "meta":
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def finish(run: runs.Run, monkeypatch) -> None:
    list(train(run))
    assert run.status == "finished"


def break_with(kind: type[Exception]):
    """Let the second step of a run break at the beginning of its backward pass."""

    def end(run: runs.Run, monkeypatch) -> TunerError:
        mean_loss, error = losses.mean_loss, kind("planted")

        def fail(gradient):
            raise error

        def broken(*arguments):
            loss = mean_loss(*arguments)
            if run.last_event("step", "start")["step"] == 1:
                loss.register_hook(fail)
            return loss

        with monkeypatch.context() as patch:
            patch.setattr(losses, "mean_loss", broken)
            patch.setattr(failures.log, "disabled", True)  # pytest keeps what is logged, with its traceback
            with pytest.raises(TunerError) as caught:
                list(train(run))
        assert run.status == "failed"
        assert caught.value.__cause__ is error
        return caught.value

    return end


def break_scoring(run: runs.Run, monkeypatch) -> TunerError:
    def broken(*arguments):
        raise IndexError("planted")

    with monkeypatch.context() as patch:
        patch.setattr(answers, "row_losses", broken)
        patch.setattr(failures.log, "disabled", True)
        with pytest.raises(TunerError) as caught:
            list(train(run))
    return caught.value


ENDS = {
    "finished": finish,
    "failed": break_with(IndexError),
    "failed in scoring": break_scoring,
    "refused": break_with(TunerError),  # after which the base is kept for the next job
    "out of memory": break_with(torch.OutOfMemoryError),
}


def test_an_8_bit_base_keeps_nothing_of_the_rows_that_it_has_seen(make):
    first, second = (make("lora", model__quantization="int8", seed=seed) for seed in (0, 5))
    list(train(first))
    before = live_bytes()
    list(train(second))
    assert live_bytes() == before


JOBS = [*(("lora", end) for end in ENDS), *product(["adalora", "full"], ["finished", "failed", "out of memory"])]
QUICKLY = [*(("lora", end) for end in ("finished", "failed", "refused", "out of memory")), ("full", "finished")]


@pytest.mark.parametrize(("method", "end"), mostly_long(JOBS, *QUICKLY))
def test_after_a_job_the_memory_holds_what_it_held_before_to_the_byte(make, monkeypatch, method, end):
    run = make(method)
    list(train(runs.Run(shutil.copytree(run.path, run.path.parent / "warm"))))  # what is made once in a process
    base = load.shared_base(base_of(run))  # kept here too: after an unexpected error the cache is emptied
    before, as_found = live_bytes(), facts(base)
    told = ENDS[end](run, monkeypatch)  # an error is kept by whoever is telling it
    assert live_bytes() == before
    assert told is None or told.problems
    assert facts(base) == as_found
