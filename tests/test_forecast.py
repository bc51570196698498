"""Before a run: what it will take, what would not finish and what would; afterwards, the estimate beside the fact."""

from datetime import datetime, timedelta, timezone

import pytest
from conftest import small_recipe

from tuner import estimate, forecast, gpu, plan, runs
from tuner.errors import TunerError
from tuner.train import train
from tuner.ui import progress, show


@pytest.fixture(autouse=True)
def no_earlier_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "RUNS", tmp_path / "runs")


def foreseen(**settings) -> dict:
    return plan.check(small_recipe(**settings)).plan["forecast"]


def test_steps_seconds_and_memory_in_parts_are_foretold():
    found = foreseen(budget__steps=100)
    assert found["steps"] == 100
    assert found["training"] == pytest.approx(found["start_up"] + 100 * found["a_step"], rel=0.01)
    parts = found["memory"]
    assert parts["total"] == sum(value for key, value in parts.items() if key != "total")
    assert all(parts[key] > 0 for key in ("weights", "adapter", "activations", "logits"))
    assert parts["total"] < found["available"]


def test_a_budget_in_seconds_is_foretold_in_steps():
    found = foreseen(budget__seconds=30)
    assert found["training"] == 30
    assert found["steps"] == pytest.approx((30 - found["start_up"]) / found["a_step"], rel=0.01)


def test_the_pace_of_an_earlier_run_corrects_the_next_estimate():
    before = foreseen(budget__steps=20)
    run = plan.prepare(small_recipe(budget__steps=20))
    list(train(run))
    after = foreseen(budget__steps=20)
    assert not before["measured"]
    assert after["measured"]
    taken = run.last_event("end")["seconds_per_step"]
    assert abs(after["a_step"] - taken) < abs(before["a_step"] - taken) or after["a_step"] == pytest.approx(
        taken, rel=0.25
    )
    assert after["scoring"] != before["scoring"]
    card = show.view(run, progress.read(run))
    assert "Foretold:" in card
    assert "Taken:" in card


def test_a_model_that_does_not_fit_is_refused_with_what_would(monkeypatch):
    monkeypatch.setattr(estimate, "available", lambda: 4 * 2**20)
    with pytest.raises(TunerError) as refused:
        plan.check(small_recipe(model__quantization="none", training__batch_size=16))
    (problem,) = refused.value.problems
    assert "of memory (weights" in problem
    assert "the device has 4 MB" in problem
    assert "model.quantization: nf4" in problem
    assert "a smaller base model" in problem


def test_a_batch_that_was_left_to_us_shrinks_until_it_fits(monkeypatch):
    whole = plan.check(small_recipe(training__batch_size=16, data__max_rows=400)).plan["forecast"]["memory"]
    monkeypatch.setattr(estimate, "available", lambda: int(whole["total"] / 1.5))
    settings = plan.check(small_recipe(training__batch_size="auto", data__max_rows=400)).plan
    assert settings["settings"]["batch_size"] == 8
    assert {"setting": "batch_size", "value": 8, "reason": "as many as the device's memory holds"} in settings[
        "chosen"
    ]
    with pytest.raises(TunerError, match=r"at most 8 rows a step"):
        plan.check(small_recipe(training__batch_size=16, data__max_rows=400))


def test_what_would_not_finish_on_a_shared_page_is_refused_together_with_too_many_tokens(monkeypatch):
    monkeypatch.setattr(forecast, "MAX_TOKENS", 100)
    with pytest.raises(TunerError) as refused:
        plan.check(small_recipe(budget__steps=10**6), local=False)
    said = " ".join(refused.value.problems)
    assert len(refused.value.problems) == 2
    assert "would not finish" in said
    assert "steps, or a budget of at most 900 seconds" in said
    assert "data.max_rows" in said
    plan.check(small_recipe(budget__steps=10**6))  # on one's own machine one may


def test_a_budget_that_buys_no_step_is_refused():
    with pytest.raises(TunerError, match=r"budget\.seconds: 0\.1 seconds buy no step"):
        plan.check(small_recipe(budget__seconds=0.1))


def test_a_method_without_an_estimate_is_planned_all_the_same(monkeypatch):
    def fails(*args):
        raise RuntimeError("no such shape")

    monkeypatch.setattr(estimate, "memory", fails)
    checked = plan.check(small_recipe())
    assert checked.plan["forecast"]["memory"] is None
    assert "Time" in show.plan(checked.plan, "name")


def test_the_card_tells_the_share_of_the_quota_and_what_would_finish_today():
    facts = plan.check(small_recipe(budget__seconds=60)).plan
    plenty = show.plan(facts, "name", {"left": 300, "resets_in": 0})
    assert "5 min 00 s left today" in plenty
    assert "will not finish" not in plenty
    little = show.plan(facts, "name", {"left": 40, "resets_in": 7200})
    assert "will not finish today" in little
    assert "whole again in 2 h 00 min" in little
    assert "would finish today" in little


def test_the_quota_is_read_from_the_hub_with_the_visitors_token(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", hub.url)
    monkeypatch.setattr(gpu, "ZERO", True)
    back = datetime.now(timezone.utc) + timedelta(hours=3)
    hub.gpu_quota = {"base": 300, "current": 120, "resetsAt": back.strftime("%Y-%m-%dT%H:%M:%S.000Z")}
    found = gpu.quota(hub.user("alice", "oauth"))
    assert found["left"] == 120
    assert 3 * 3600 - 60 < found["resets_in"] <= 3 * 3600
    assert gpu.quota("hf_unknown") is None
    assert gpu.quota(None) is None
