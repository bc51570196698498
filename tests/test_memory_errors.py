"""Memory that runs out in other words than PyTorch's allocator has, and a GPU that breaks before it is left."""

import shutil

import pytest
import torch
from conftest import in_order, mostly_long, small_recipe
from torch import nn

from tuner.errors import TunerError
from tuner.evaluation import answers
from tuner.planning import plan
from tuner.planning.pace import PACES, pace_key, recall
from tuner.runs import RUNS, Run
from tuner.training import micro_batches, window
from tuner.training.window import train

pytestmark = pytest.mark.usefixtures("no_estimates")

ELSEWHERE = [  # where cuBLAS, the driver and this machine ask for memory themselves
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call.",
    "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate",
]


@pytest.fixture
def run(tmp_path, small_base):
    few = {"budget__steps": 2, "evaluation__rows": 1, "evaluation__max_new_tokens": 1}
    return plan.prepare(small_recipe(model__name=small_base, **few), path=tmp_path / "run")


@pytest.fixture
def fails_with():
    """Let a forward pass of more than so many rows in training fail with this message."""
    handles = []

    def fails_with(message: str, rows: int = 0) -> None:
        def fail(module, inputs):
            if isinstance(module, nn.Embedding) and module.training and len(inputs[0]) > rows:
                raise RuntimeError(message)

        handles.append(nn.modules.module.register_module_forward_pre_hook(fail))

    yield fails_with
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("message", mostly_long(ELSEWHERE, ELSEWHERE[0]))
def test_memory_that_runs_out_outside_the_allocator_splits_the_batch_too(run, fails_with, message):
    fails_with(message, rows=2)
    list(train(run))
    assert run.status == "finished"
    assert [e["rows"] for e in run.events() if e["event"] == "micro_batch"] == [2]
    # The pace of parts says little of whole batches.
    assert "seconds_per_token" not in recall(RUNS / PACES, pace_key("cpu", run.recipe))


def test_scoring_that_runs_out_of_memory_asks_for_fewer_answers_at_once(finished, tmp_path):
    scored, first = Run(shutil.copytree(finished.path, tmp_path / "again")), finished.read_json("evaluation.json")
    (scored.path / "evaluation.json").unlink()
    sizes = []

    def limited(module, inputs):
        if isinstance(module, nn.Embedding) and not module.training:
            sizes.append(len(inputs[0]))
            if sizes[-1] > 3:
                raise torch.OutOfMemoryError("CUDA out of memory.")

    hook = nn.modules.module.register_module_forward_pre_hook(limited)
    losses = answers._losses
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answers, "_losses", lambda *given: hook.remove() or losses(*given))
        list(answers.evaluate(scored))
    assert [size for size in sizes if size > 3] == [24, 12, 6]
    assert scored.read_json("evaluation.json") | {"costs": None} == first | {"costs": None}  # which has its seconds


def test_an_answer_that_does_not_fit_alone_is_told_of(finished, tmp_path):
    scored = Run(shutil.copytree(finished.path, tmp_path / "again"))
    (scored.path / "evaluation.json").unlink()

    def limited(module, inputs):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    hook = nn.modules.module.register_module_forward_pre_hook(limited)
    with pytest.raises(torch.OutOfMemoryError):
        list(answers.evaluate(scored))
    hook.remove()


def test_any_other_error_does_not_split_the_batch(run, fails_with):
    fails_with("shapes do not match", rows=2)
    with pytest.raises(TunerError):
        list(train(run))
    assert run.last_event("micro_batch") is None


def test_a_lost_gpu_that_can_give_back_no_memory_is_told_of_all_the_same(run, fails_with, monkeypatch):
    """Everything that is asked of a device after such an error fails with it again."""
    message = "CUDA error: an illegal memory access was encountered"

    def lost():
        raise torch.AcceleratorError(message)

    fails_with(message)
    monkeypatch.setattr(micro_batches, "device_type", lambda: "cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (10**12, 10**12))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 0)
    monkeypatch.setattr(torch.cuda, "empty_cache", lost)
    monkeypatch.setattr(window.failures.log, "disabled", True)
    with pytest.raises(TunerError) as caught:
        list(train(run))
    assert in_order(str(caught.value), "an illegal memory access was encountered", "Resume it")


def test_no_error_of_a_chain_keeps_the_frames_that_hold_the_model(run):
    try:
        try:
            raise RuntimeError("first")
        except RuntimeError as error:
            first = error
            raise KeyError("second") from error
    except KeyError as error:
        second = error
    window.failures.explain(second, run)
    assert first.__traceback__ is None
    assert second.__traceback__ is None
