"""A process that checks for the page has no card: it plans for the one that the page's process describes."""

import json

import pytest
from conftest import small_recipe
from pretend_cards import H100, H200_SLICE, RTX_PRO, T4

from tuner.models import device
from tuner.planning import jobs, pace
from tuner.recipe import Model
from tuner.ui import checking


def what_counts() -> tuple:
    """Of the device, what plans depend on."""
    dtype = device.compute_dtype(Model())
    return device.device_type(), device.gpu(), device.gpu_memory(), dtype, pace.device_speed()


@pytest.mark.parametrize(
    "card",
    [T4, pytest.param(H100, marks=pytest.mark.long), RTX_PRO, pytest.param(H200_SLICE, marks=pytest.mark.long)],
    ids=lambda card: card.name,
)
def test_a_process_without_a_card_plans_for_the_one_that_was_described(pretend, monkeypatch, card):
    recipe, nothing = small_recipe().model_dump(), [None, None]
    with monkeypatch.context() as there:
        there.setattr(device, "ZERO", card.zero)
        pretend(card)
        seen, planned = what_counts(), checking.check(small_recipe())
        described = json.loads(json.dumps(checking.device()))
    monkeypatch.undo()  # no card any more
    assert device.device_type() == "cpu"
    with device.described(described):
        assert what_counts() == seen
        assert jobs.check(described, recipe, nothing, False) == planned
    assert device.device_type() == "cpu"
    assert jobs.check({}, recipe, nothing, False)["settings"]["dtype"] == "float32"
