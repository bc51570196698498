"""Methods that are compared start alike: the first pays for nothing that the others find done."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from conftest import small_recipe

from tuner import runs
from tuner.experiments.candidates import request
from tuner.experiments.experiment import create
from tuner.experiments.train import train_all
from tuner.models import load, losses
from tuner.models.load import forget_bases
from tuner.training import clock, upkeep, window

pytestmark = pytest.mark.usefixtures("no_estimates")

SLOW = 5  # seconds of a slow disk


@pytest.fixture
def slow_disk(monkeypatch) -> Iterator[None]:
    """Time that passes only while weights are read, and with each batch that a loss is computed of."""
    now, mean_loss, load_base = [0.0], losses.mean_loss, load.load_base

    def read(base, **options):
        now[0] += SLOW
        return load_base(base, **options)

    def step(*arguments):
        now[0] += 1
        return mean_loss(*arguments)

    monkeypatch.setattr(load, "load_base", read)
    monkeypatch.setattr(losses, "mean_loss", step)
    for module in (clock, upkeep, window):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    forget_bases()
    yield
    forget_bases()


def test_no_method_is_charged_for_loading_the_base(slow_disk, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "RUNS", tmp_path)
    recipe = small_recipe(model__quantization="none", evaluation__rows=1, evaluation__max_new_tokens=1)
    experiment = create(request(recipe, ["lora", "ia3"], seconds=SLOW + 1))
    events = list(train_all(experiment))
    first, second = (event for event in events if event["event"] == "end")
    assert first["step"] == second["step"] >= 4
    assert first["seconds"] == pytest.approx(second["seconds"], abs=0.5)
    assert [event["start_up"] for event in events if event["event"] == "start"] == [0, 0]
    assert [event["label"] for event in events if event["event"] == "loading"] == ["lora"]
