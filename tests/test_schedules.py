"""AdaLoRA's rank budget follows the share of the run completed, on a real layer or two."""

import copy

import pytest
import torch
from conftest import small_recipe
from peft import AdaLoraConfig, get_peft_model
from tiny import tiny_model
from transformers import AutoModelForCausalLM

from tuner.methods import schedules
from tuner.models.losses import collate, mean_loss
from tuner.planning import plan
from tuner.training.window import train

pytestmark = pytest.mark.usefixtures("no_estimates")

RANK = 4
ROWS = collate([{"input_ids": list(range(5, 25)), "labels": list(range(5, 25))}])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def schedule(folder):
    torch.manual_seed(0)
    config = AdaLoraConfig(
        init_r=6,
        target_r=RANK,
        total_step=100,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        orth_reg_weight=0.5,
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_E" in name:
                p.copy_(torch.rand_like(p) + 0.1)
    mean_loss("next_token", model, ROWS).backward()
    return schedules.AdaLoraSchedule(model)


def kept(schedule) -> int:
    """Ranks that are not zero."""
    return sum(int((p != 0).sum()) for n, p in schedule.model.named_parameters() if "lora_E" in n)


LAYERS = 14  # two blocks of seven


def test_no_rank_is_dropped_in_the_first_tenth_nor_between_two_countings(schedule):
    schedule.stepped(5, 0.1)
    assert kept(schedule) == LAYERS * 6
    schedule.stepped(6, 0.4)
    assert kept(schedule) == LAYERS * 6
    schedule.stepped(10, 0.4)
    assert kept(schedule) < LAYERS * 6


@pytest.mark.parametrize("progress", [0.15, 0.25, 0.4, 0.55, 0.69])
def test_ranks_fall_by_the_cube_of_what_is_left(schedule, progress):
    schedule.stepped(5, progress)
    share = ((0.7 - progress) / 0.6) ** 3
    assert kept(schedule) == round(LAYERS * (RANK + share * (6 - RANK)))


def test_the_ranks_that_matter_least_are_dropped(schedule):
    def ranks() -> list[torch.Tensor]:
        return [p.detach().flatten() for n, p in schedule.model.named_parameters() if "lora_E" in n]

    with torch.no_grad():
        for name, p in schedule.model.named_parameters():
            # A rank counts as much as its size times its gradient: the first two of each layer get next to none.
            if "lora_E" in name:
                p[:2] *= 1e-6
            if "lora_E" in name or "lora_A" in name:
                p.grad[:2] *= 1e-6
            if "lora_B" in name:
                p.grad[:, :2] *= 1e-6
    for step in range(1, 6):
        schedule.stepped(step, 0.65)
    schedule.stepped(7, 0.8)
    assert all((values[:2] == 0).all() and (values[2:] != 0).all() for values in ranks())


def test_importance_is_a_running_mean_that_follows_the_latest_gradients(schedule):
    def importance() -> dict[str, torch.Tensor]:
        return {name: t.clone() for name, t in schedule.state().items() if name.startswith("mean/")}

    schedule.stepped(1, 0.05)
    before = importance()
    for p in schedule.model.parameters():
        if p.grad is not None:
            p.grad.zero_()
    schedule.stepped(2, 0.05)
    for name, tensor in importance().items():
        assert before[name].sum() > 0
        torch.testing.assert_close(tensor, 0.85 * before[name])


def test_from_seven_tenths_on_the_target_holds_and_what_was_dropped_stays_dropped(schedule):
    schedule.stepped(5, 0.4)
    schedule.stepped(7, 0.7)
    assert kept(schedule) == LAYERS * RANK
    with torch.no_grad():
        for name, p in schedule.model.named_parameters():
            if "lora_E" in name:
                p += 1.0  # as an optimizer's momentum would
    schedule.stepped(8, 0.9)
    assert kept(schedule) == LAYERS * RANK


def test_the_penalty_is_how_far_the_factors_are_from_orthogonal(schedule):
    distances = []
    for name, p in schedule.model.named_parameters():
        if "lora_A" in name:
            distances.append((p @ p.T - torch.eye(6)).norm())
        elif "lora_B" in name:
            distances.append((p.T @ p - torch.eye(6)).norm())
    assert len(distances) == 2 * LAYERS
    assert schedule.penalty().item() == pytest.approx(0.5 * sum(distances).item() / len(distances), rel=1e-5)


def test_a_schedule_that_is_loaded_goes_on_as_the_one_that_was_saved(schedule):
    for step in range(1, 6):
        schedule.stepped(step, 0.3)
    other = copy.deepcopy(schedule)
    for copied, p in zip(other.model.parameters(), schedule.model.parameters()):
        copied.grad = p.grad
    other.ranks.exp_avg_ipt, other.ranks.exp_avg_unc, other.ranks.ipt = {}, {}, {}
    other.config.rank_pattern = None
    other.load({name: t.clone() for name, t in schedule.state().items()})
    for one in (schedule, other):
        one.stepped(10, 0.6)
    assert kept(schedule) == kept(other) < LAYERS * 6
    assert schedule.config.rank_pattern == other.config.rank_pattern
    for name, tensor in schedule.state().items():
        assert torch.equal(tensor, other.state()[name]), name


def test_training_adds_the_penalty_to_the_loss_and_the_heldout_loss_does_not(tmp_path):
    """At the first step an adapter changes nothing, so what AdaLoRA's loss is above LoRA's is the penalty."""
    settings = {"budget__steps": 1, "evaluation__loss_every": 1, "evaluation__rows": 1}
    settings |= {"evaluation__max_new_tokens": 1}
    first, heldout = {}, {}
    for name in ("lora", "adalora"):
        run = plan.prepare(small_recipe(method__name=name, **settings), path=tmp_path / name)
        list(train(run))
        first[name] = run.last_event("step")["loss"]
        heldout[name] = next(e["loss"] for e in run.events() if e["event"] == "heldout")
    assert heldout["adalora"] == heldout["lora"]
    assert first["adalora"] > first["lora"] + 0.1
