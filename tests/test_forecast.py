"""Before a run: estimates, and refusals of what would not finish; afterwards, estimates next to actual figures."""

import re
import shutil
from datetime import datetime, timedelta, timezone

import pytest
from conftest import in_order, plain, small_recipe

from tuner import gpu, runs, terminal
from tuner.errors import TunerError
from tuner.models.device import device_type
from tuner.planning import forecast, plan
from tuner.planning.pace import PACES, pace_key, remember
from tuner.training.window import train
from tuner.ui import plan_card, progress, render


@pytest.fixture(autouse=True)
def no_earlier_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "RUNS", tmp_path / "runs")


def foreseen(**settings) -> dict:
    return plan.check(small_recipe(**settings)).plan["forecast"]


def test_steps_seconds_and_memory_in_parts_are_foretold():
    estimate = foreseen(budget__steps=100)
    assert estimate["steps"] == 100
    assert estimate["training"] == pytest.approx(estimate["start_up"] + 100 * estimate["a_step"], rel=0.01)
    parts = estimate["memory"]
    assert parts["total"] == sum(value for key, value in parts.items() if key != "total")
    assert all(parts[key] > 0 for key in ("weights", "adapter", "activations", "logits"))
    assert parts["total"] < estimate["available"]


def test_a_budget_in_seconds_is_foretold_in_steps():
    estimate = foreseen(budget__seconds=30)
    assert estimate["training"] == 30
    # That many steps fit into the budget and one more does not; the figures are rounded to 0.1 ms.
    left, a_step, rounding = 30 - estimate["start_up"], estimate["a_step"], 0.00005
    assert estimate["steps"] * (a_step - rounding) <= left + rounding
    assert left - rounding < (estimate["steps"] + 1) * (a_step + rounding)


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
    card = render.run_card(run, progress.read(run))
    assert f"{1000 * run.plan['forecast']['a_step']:.0f} ms" in card
    assert f"{1000 * taken:.0f} ms" in card


@pytest.mark.parametrize(("heldout", "rows", "scored"), [(16, 4, 4), (80, 4, 4), (80, 64, 64), (16, 80, 16)])
def test_scoring_is_estimated_for_the_held_out_rows_that_are_answered(heldout, rows, scored):
    key = pace_key(device_type(), small_recipe())
    remember(runs.RUNS / PACES, key, {"seconds_per_answer": 0.5})
    checked = plan.check(small_recipe(data__max_rows=heldout, evaluation__rows=rows)).plan
    assert checked["heldout_rows"] == heldout
    assert checked["forecast"]["scoring"] == forecast.LOAD_SECONDS + 0.5 * scored


def test_a_model_that_does_not_fit_is_refused_with_what_would(monkeypatch):
    monkeypatch.setattr(forecast, "available_memory", lambda: 4 * 2**20)
    with pytest.raises(TunerError) as refused:
        plan.check(small_recipe(model__quantization="none", training__batch_size=16))
    (problem,) = refused.value.problems
    assert "of memory (weights" in problem
    assert "the device has 4 MB" in problem
    assert "model.quantization: nf4" in problem
    assert "a smaller base model" in problem


def test_a_batch_that_was_left_to_us_shrinks_until_it_fits(monkeypatch):
    whole = plan.check(small_recipe(training__batch_size=16, data__max_rows=400)).plan["forecast"]["memory"]
    monkeypatch.setattr(forecast, "available_memory", lambda: int(whole["total"] / 1.5))
    settings = plan.check(small_recipe(training__batch_size="auto", data__max_rows=400)).plan
    assert settings["settings"]["batch_size"] == 8
    assert {"setting": "batch_size", "value": 8, "reason": "as many as fit in the device's memory"} in settings[
        "chosen"
    ]
    with pytest.raises(TunerError, match=r"at most 8 rows per step"):
        plan.check(small_recipe(training__batch_size=16, data__max_rows=400))


def test_what_would_not_finish_on_a_shared_page_is_refused_together_with_too_many_tokens(monkeypatch):
    monkeypatch.setattr(forecast, "MAX_TOKENS", 100)
    with pytest.raises(TunerError) as refused:
        plan.check(small_recipe(budget__steps=10**6), local=False)
    message = " ".join(refused.value.problems)
    assert len(refused.value.problems) == 2
    assert "would not finish" in message
    assert "steps, or a budget of at most 900 seconds" in message
    assert "data.max_rows" in message
    plan.check(small_recipe(budget__steps=10**6))  # on one's own machine one may


def test_a_budget_that_buys_no_step_is_refused():
    with pytest.raises(TunerError, match=r"budget\.seconds: 0\.1 seconds are too few for a single step"):
        plan.check(small_recipe(budget__seconds=0.1))


def test_a_method_without_an_estimate_is_planned_all_the_same(monkeypatch):
    def fails(*args):
        raise RuntimeError("no such shape")

    monkeypatch.setattr(forecast, "estimate_memory", fails)
    checked = plan.check(small_recipe())
    assert checked.plan["forecast"]["memory"] is None
    assert "Time" in plan_card.plan_card(checked.plan, "name")


def test_the_card_tells_the_share_of_the_quota_and_what_would_finish_today():
    facts = plan.check(small_recipe(budget__seconds=60)).plan
    plenty = plan_card.plan_card(facts, "name", {"left": 300, "resets_in": 0})
    assert "5 min 00 s left today" in plenty
    assert "will not finish" not in plenty
    little = plan_card.plan_card(facts, "name", {"left": 40, "resets_in": 7200})
    assert "will not finish today" in little
    assert "resume it in 2 h 00 min" in little
    assert "would finish today" in little


def test_the_quota_is_read_from_the_hub_with_the_visitors_token(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", hub.url)
    monkeypatch.setattr(gpu, "ZERO", True)
    back = datetime.now(timezone.utc) + timedelta(hours=3)
    hub.gpu_quota = {"base": 300, "current": 120, "resetsAt": back.strftime("%Y-%m-%dT%H:%M:%S.000Z")}
    quota = gpu.quota(hub.user("alice", "oauth"))
    assert quota["left"] == 120
    assert 3 * 3600 - 60 < quota["resets_in"] <= 3 * 3600
    assert gpu.quota("hf_unknown") is None
    assert gpu.quota(None) is None


FORESEEN = {"start_up": 2.0, "a_step": 0.2, "steps": 30, "training": 49.0, "scoring": 8.0, "measured": False}
FORESEEN |= {"available": 8 * 2**30, "memory": {"weights": 2 * 2**30, "adapter": 2**29, "total": 3 * 2**30}}
TAKEN = {"event": "end", "reason": "steps", "step": 30, "seconds": 27.0, "seconds_per_step": 0.1}
PLANNED = {
    "steps": 30, "steps_per_epoch": 15, "rows": 240, "heldout_rows": 24, "seconds": None, "epochs": 2.0,
    "tokens": 9000, "trained_tokens": 3000, "trainable_parameters": 1234, "model_parameters": 98765,
    "settings": {"batch_size": 16}, "warnings": ["Mind the rows."], "forecast": FORESEEN,
    "chosen": [{"setting": "rank", "value": 7, "reason": "the usual"}],
}  # fmt: skip


def test_the_estimate_stands_before_the_fact_each_with_its_own_figures(finished, tmp_path):
    run = runs.Run(shutil.copytree(finished.path, tmp_path / "run"))
    run.write_json("plan.json", run.plan | {"forecast": FORESEEN})
    run.append(TAKEN | {"peak_memory": 2 * 2**30})
    html = render.run_card(run, progress.read(run))
    (told,) = [line for line in re.findall(r'<p class="t-sub">(.*?)</p>', html) if "ms" in line]
    assert in_order(told, "49 s", "200 ms", "27 s", "100 ms", "3.0 GB", "2.0 GB")
    assert re.search(r"(?i)^(foretold|estimat).*49 s.*(taken|took).*27 s", told)
    run.append(TAKEN)  # without a GPU there is no peak to tell
    assert "GB" not in render.run_card(run, progress.read(run))
    run.write_json("plan.json", run.plan | {"forecast": None})
    assert "200 ms" not in render.run_card(run, progress.read(run))


def test_a_plan_says_each_figure_for_what_it_is_on_the_page_and_in_the_terminal():
    page, lines = plain(plan_card.plan_card(PLANNED, "name")), terminal.plan_text(PLANNED)
    for told in (page, lines):
        assert in_order(told, "Mind the rows.")
    for told in (re.sub(",", "", page.partition("240 ")[1] + page.partition("240 ")[2]), re.sub(",", "", lines)):
        assert in_order(told, "240 ", "24 ", "9000", "3000", "15 ", "30 ", "1234", "98765", "7", "the usual")
    assert in_order(page, "57 s", "49 s", "8 s", "3.0 GB", "8.0 GB", "2.0 GB", "512 MB")
    assert in_order(lines, "57 s", "30 steps", "49 s", "8 s", "3.0 GB", "8.0 GB", "2.0 GB", "512 MB")
    timed = PLANNED | {"steps": None, "epochs": None, "seconds": 45.0}
    for told in (plain(plan_card.plan_card(timed, "name")), terminal.plan_text(timed)):
        assert re.search(r"45\s+seconds", told)


def test_where_the_estimate_comes_from_is_told():
    measured = PLANNED | {"forecast": FORESEEN | {"measured": True}}
    for tell in (lambda facts: plain(plan_card.plan_card(facts, "")), terminal.plan_text):
        assert "earlier run" in tell(measured)
        assert "earlier run" not in tell(PLANNED)


@pytest.mark.parametrize(
    ("left", "warned", "instead"), [(57, False, None), (56.9, True, 48), (11, True, 3), (10, True, None)]
)
def test_the_quota_is_held_against_training_and_scoring_together(left, warned, instead):
    told = plain(plan_card.plan_card(PLANNED, "", {"left": left, "resets_in": 7200}))
    assert ("will not finish today" in told) == warned
    assert ("2 h 00 min" in told) == warned
    budgets = [int(n) for n in re.findall(r"budget of (\d+) seconds", told)]
    assert budgets == ([] if instead is None else [instead])


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (61, "1 min 01 s"),
        (3599, "59 min 59 s"),
        (3720, "1 h 02 min"),
    ],
)
def test_a_duration_is_said_in_its_largest_units(seconds, said):
    assert forecast.duration(seconds) == said


def test_bytes_are_said_in_their_unit():
    assert (forecast.gigabytes(2**30), forecast.gigabytes(2**30 - 2**20)) == ("1.0 GB", "1023 MB")
