"""Checkpoints: all of a step's state or nothing, and the newest that can be read."""

import os

import pytest
import torch
from conftest import small_recipe
from safetensors import safe_open
from safetensors.torch import save as serialize

from tuner import runs
from tuner.runs import Run
from tuner.training import checkpoint

COUNTERS = {"seconds": 1.5, "tokens": 12, "paces": [[100, 0.5]]}


class Schedule:
    """A method's schedule with one tensor."""

    def __init__(self, value: float):
        self.kept = {"ranks": torch.tensor([[value, 2.0], [3.0, 4.0]]).T}

    def state(self) -> dict:
        """What a later window needs."""
        return self.kept

    def load(self, state: dict) -> None:
        """Take it over."""
        self.kept = state


class Training:
    """A model whose first layer is frozen, with its optimizer."""

    def __init__(self, seed: int):
        torch.manual_seed(seed)
        self.model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 2))
        self.model[0].requires_grad_(False)
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=0.1)
        self.schedule = Schedule(seed)

    def step(self) -> None:
        """Learn a little."""
        loss = self.model(torch.tensor([[1.0, -2.0, 3.0]])).square().sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def save(self, run: Run, step: int, **counters) -> None:
        """Write a checkpoint."""
        checkpoint.save(run, step, COUNTERS | counters, self.model, self.optimizer, self.schedule)

    def load(self, run: Run) -> dict | None:
        """Continue from the newest checkpoint."""
        return checkpoint.load(run, self.model, self.optimizer, self.schedule)


@pytest.fixture
def run(tmp_path) -> Run:
    return runs.create(small_recipe(), path=tmp_path / "run")


def names(run: Run) -> list[str]:
    return sorted(file.name for file in run.checkpoints.iterdir())


def test_what_was_saved_goes_on_exactly_and_frozen_weights_are_left_alone(run):
    saved, resumed = Training(1), Training(2)
    for training in (saved, resumed, resumed):
        training.step()
    frozen = resumed.model[0].weight.clone()
    random = torch.get_rng_state()
    saved.save(run, 7)
    torch.rand(3)
    counters = resumed.load(run)
    assert torch.equal(counters.pop("random")["cpu"], random)
    assert counters == {"step": 7, **COUNTERS}
    assert resumed.schedule.kept.keys() == {"ranks"}
    assert torch.equal(resumed.schedule.kept["ranks"], torch.tensor([[1.0, 3.0], [2.0, 4.0]]))
    for training in (saved, resumed):
        training.model[0] = saved.model[0]
        training.step()
    for one, other in zip(saved.model[1].parameters(), resumed.model[1].parameters(), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(frozen, saved.model[0].weight)


@pytest.mark.parametrize("on_gpu", [False, True])
def test_a_checkpoint_holds_the_trained_weights_and_the_devices_random_states(run, monkeypatch, on_gpu):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: on_gpu)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: torch.tensor([7], dtype=torch.uint8))
    training = Training(1)
    training.save(run, 7)
    with safe_open(run.checkpoints / "step-00000007.safetensors", "pt") as file:
        stored = set(file.keys())
    expected = {"weight/1.weight", "weight/1.bias", "schedule/ranks", "random/cpu"}
    assert stored == expected | ({"random/cuda"} if on_gpu else set())
    assert training.load(run)["random"].get("cuda") == (7 if on_gpu else None)


def test_a_method_without_a_schedule_has_none_in_its_checkpoints(run):
    training = Training(1)
    training.schedule = None
    training.save(run, 7)
    assert training.load(run)["step"] == 7
    with safe_open(run.checkpoints / "step-00000007.safetensors", "pt") as file:
        assert not [name for name in file.keys() if name.startswith("schedule")]  # noqa: SIM118


def test_the_newest_two_are_kept(run):
    training = Training(1)
    assert training.load(run) is None
    for step in (9, 10, 100):
        training.save(run, step)
    assert names(run) == ["step-00000010.safetensors", "step-00000100.safetensors"]
    os.utime(run.checkpoints / "step-00000010.safetensors", (2e9, 2e9))  # the number counts, whenever it was written
    assert training.load(run)["step"] == 100


def test_a_checkpoint_has_its_name_only_once_it_is_on_the_disk(run, monkeypatch):
    target, synced = run.checkpoints / "step-00000007.safetensors", []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append((os.fstat(file).st_size, target.exists())))
    Training(1).save(run, 7)
    assert synced == [(target.stat().st_size, False)]
    assert names(run) == [target.name]


def rewritten(content: bytes, change) -> bytes:
    """The file with its tensors and metadata changed, but whole."""
    with safe_open(content, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    change(tensors, metadata)
    return serialize(tensors, metadata)


def swap(tensors: dict, metadata: dict) -> None:
    one, other = "optimizer/0/exp_avg", "optimizer/0/exp_avg_sq"
    tensors[one], tensors[other] = tensors[other], tensors[one]


def move(tensors: dict, metadata: dict) -> None:
    tensors["weight/1.bias"][1] += 1


def rename(tensors: dict, metadata: dict) -> None:
    tensors["schedule/rates"] = tensors.pop("schedule/ranks")


def recount(tensors: dict, metadata: dict) -> None:
    metadata["counters"] = metadata["counters"].replace("12", "13")


def forget(tensors: dict, metadata: dict) -> None:
    del metadata["counters"]


def of_the_first_version(tensors: dict, metadata: dict) -> None:
    del metadata["crc32"]


@pytest.mark.parametrize("damage", [swap, move, rename, recount, forget, "cut", "empty", "gone", of_the_first_version])
def test_the_newest_that_is_whole_is_taken(run, damage):
    training = Training(1)
    training.step()
    training.save(run, 3, tokens=5)
    training.save(run, 4)
    newest = run.checkpoints / "step-00000004.safetensors"
    if callable(damage):
        newest.write_bytes(rewritten(newest, damage))
    elif damage == "gone":
        newest.unlink()
        newest.symlink_to("nowhere")
    else:
        newest.write_bytes(newest.read_bytes()[: -1 if damage == "cut" else 0])
    (run.checkpoints / "step-00000005.part").write_bytes(b"half of it")
    counters = training.load(run)
    expected = (4, 12) if damage is of_the_first_version else (3, 5)
    assert (counters["step"], counters["tokens"]) == expected
    for file in run.checkpoints.iterdir():
        file.write_bytes(b"")
    assert training.load(run) is None
