"""Before a run: estimates, and refusals of what would not finish; afterwards, estimates next to actual figures."""

import re
import runpy
import shutil
from datetime import datetime, timedelta, timezone
from itertools import islice

import pytest
from conftest import in_order, plain, small_recipe

from tuner import gpu, runs, terminal
from tuner.data.batches import Batches
from tuner.data.tokens import Tokenized
from tuner.errors import TunerError
from tuner.models import load
from tuner.models.device import device_type
from tuner.models.fetch import fetch_model
from tuner.models.shape import Base, shape_of
from tuner.planning import forecast, pace, plan, scoring
from tuner.planning.pace import PACES, pace_key, remember
from tuner.planning.probe import Look
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
    # That many steps fit into the budget and one more does not; the figures are rounded.
    left, a_step, rounding = 30 - estimate["start_up"], estimate["a_step"], 0.00005
    assert estimate["steps"] * (a_step - rounding) <= left + rounding
    assert left - rounding < (estimate["steps"] + 1) * (a_step + rounding)


def test_loading_is_estimated_from_a_run_that_had_to_load_the_base_and_not_from_a_warm_one():
    for forget in (True, False):
        if forget:
            load.forget_bases()
        run = plan.prepare(small_recipe(budget__steps=2, evaluation__rows=1, evaluation__max_new_tokens=1))
        list(train(run))
        start_up = run.last_event("start")["start_up"]
        if forget:
            cold = start_up
    assert start_up < cold
    assert foreseen()["start_up"] == pytest.approx(cold)


def test_the_pace_of_an_earlier_run_corrects_the_next_estimate():
    before = foreseen(budget__steps=8)
    run = plan.prepare(small_recipe(budget__steps=8))
    list(train(run))
    after = foreseen(budget__steps=8)
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
    for run in ("a", "b"):
        remember(runs.RUNS / PACES, key, {"seconds_per_answer": 0.5}, run)
    checked = plan.check(small_recipe(data__max_rows=heldout, evaluation__rows=rows)).plan
    assert checked["heldout_rows"] == heldout
    losses = checked["forecast"]["a_step"] * scored / 4  # in batches of four
    assert checked["forecast"]["scoring"] == pytest.approx(forecast.KEEPING_SECONDS + 0.5 * scored + losses, rel=1e-4)


def test_a_model_that_does_not_fit_is_refused_with_what_would(monkeypatch):
    monkeypatch.setattr(forecast, "available_memory", lambda: 4 * 2**20)
    with pytest.raises(TunerError) as refused:
        plan.check(small_recipe(model__quantization="none", training__batch_size=16))
    (problem,) = refused.value.problems
    assert "of memory for 16 rows per step (weights" in problem
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


def test_what_measuring_the_held_out_loss_takes_is_foretold_and_left_out_of_the_steps():
    told = plan.check(small_recipe(budget__seconds=30, evaluation__loss_every="auto")).plan["forecast"]
    assert told["measuring"] > 0
    steps = (30 - told["start_up"] - told["measuring"]) / told["a_step"]
    assert told["steps"] == pytest.approx(steps, abs=1)
    without = plan.check(small_recipe(budget__seconds=30)).plan["forecast"]
    assert without["measuring"] == 0


def test_a_budget_that_buys_no_step_is_refused():
    with pytest.raises(TunerError, match=r"budget\.seconds: 0\.1 s is too short for a single step"):
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
        (3599.6, "1 h 00 min"),
        (3720, "1 h 02 min"),
        (90061, "25 h 01 min"),
    ],
)
def test_a_duration_is_said_in_its_largest_units(seconds, said):
    assert forecast.duration(seconds) == said


def test_bytes_are_said_in_their_unit():
    assert (forecast.gigabytes(2**30), forecast.gigabytes(2**30 - 2**20)) == ("1.0 GB", "1023 MB")
    assert (forecast.gigabytes(2.36 * 2**30), forecast.gigabytes(7.6 * 2**20)) == ("2.4 GB", "8 MB")


# -- each figure of an estimate, and each sentence with its figures

MB = 2**20


def room_for(megabytes: float, batch_size: int = 16) -> dict:
    """An estimate in which a row takes 50 MB, everything else 150 MB, and so much memory is usable."""
    memory = {"weights": 100 * MB, "adapter": 50 * MB, "activations": 30 * MB * batch_size}
    memory["logits"] = 20 * MB * batch_size
    return {"memory": memory | {"total": sum(memory.values())}, "available": megabytes * MB / forecast.USABLE}


@pytest.mark.parametrize(
    ("batch_size", "rows", "fitting"),
    [(16, 16, 16), (16, 15.9, 8), (16, 99, 16), (12, 12, 12), (12, 11.9, 8), (16, 8, 8), (16, 7.9, 4), (16, 3.9, 2),
     (16, 1, 1), (16, 0.9, 0), (1, 1, 1), (1, 0.9, 0), (16, -2, 0), (16, -50, 0)],
)  # fmt: skip
def test_a_batch_that_fits_is_the_given_one_or_the_next_smaller_power_of_two(batch_size, rows, fitting):
    assert forecast.rows_that_fit(room_for(150.001 + 50 * rows, batch_size), batch_size) == fitting


def test_a_batch_is_not_cut_where_no_row_needs_memory_or_none_is_known():
    free = {"memory": {"activations": 0, "logits": 0, "total": 9 * MB}, "available": 11 * MB}
    assert forecast.rows_that_fit(free, 8) == 8
    assert forecast.rows_that_fit(free | {"available": 9 * MB}, 8) == 0
    assert forecast.rows_that_fit({"memory": None, "available": 1}, 6) == 6
    assert forecast.check_memory({"memory": None, "available": 1}, small_recipe(), 6) is None


@pytest.mark.parametrize(
    ("rows", "quantization", "ways"),
    [
        (3.5, "none", "at most 2 rows per step (training.batch_size), 4-bit precision (model.quantization: nf4), "),
        (1.5, "int8", "at most 1 row per step (training.batch_size), 4-bit precision (model.quantization: nf4), "),
        (0.5, "int8", "4-bit precision (model.quantization: nf4), "),
        (4, "nf4", "at most 4 rows per step (training.batch_size), "),
        (0.5, "nf4", ""),
    ],
)
def test_a_refusal_for_memory_names_every_part_and_every_way_out(rows, quantization, ways):
    estimate = room_for(150.001 + 50 * rows, 40)
    estimate["memory"]["context"] = 600 * MB
    recipe = small_recipe(model__quantization=quantization)
    with pytest.raises(TunerError) as refused:
        forecast.check_memory(estimate, recipe, 40)
    assert refused.value.problems == (
        "tiny-office needs about 2.1 GB of memory for 40 rows per step (weights 100 MB, adapter and optimizer 50 MB, "
        f"activations 1.2 GB, logits 800 MB, CUDA context 600 MB), and the device has "
        f"{estimate['available'] / MB:.0f} MB. Choose {ways}shorter rows (data.max_length) or a smaller base model.",
    )
    assert forecast.check_memory(room_for(150.001 + 50 * 40, 40), recipe, 40) is None


def test_a_refusal_for_a_budget_without_a_step_says_what_loading_and_a_step_take():
    estimate = {"steps": 0, "start_up": 65.2, "a_step": 2.34, "measuring": 0.0}
    recipe = small_recipe(budget__seconds=66.5)
    with pytest.raises(TunerError) as refused:
        forecast.check_budget(estimate, recipe)
    assert refused.value.problems == (
        "budget.seconds: 66.5 s is too short for a single step: loading takes about 1 min 05 s, and a step 2.3 s. "
        "Give more seconds, or choose a smaller base model.",
    )
    with pytest.raises(TunerError, match=r"1 min 05 s, measuring the held-out loss 3\.1 s and a step 2\.3 s\. "):
        forecast.check_budget(estimate | {"measuring": 3.12}, recipe)
    assert forecast.check_budget(estimate | {"steps": 1}, recipe) is None
    with pytest.raises(TunerError, match=r"budget\.seconds: 1 s is too short for a single step"):
        forecast.check_budget(estimate, small_recipe(budget__seconds=1))


@pytest.mark.parametrize(
    ("seconds", "start_up", "a_step", "steps", "ways"),
    [
        (901, 30.0, 3.0, 291, "at most 290 steps, or "),
        (7384, 898.5, 1.5, 4323, "at most 1 step, or "),
        (902, 898.5, 1.6, 2, ""),  # not a single one
        (901, 30.0, 3.0, 290, ""),  # as many as the run has
        (5000, 5000.0, 3.0, 9, ""),
    ],
)
def test_a_refusal_of_what_would_not_finish_says_how_much_would(seconds, start_up, a_step, steps, ways):
    estimate = {"training": seconds, "start_up": start_up, "a_step": a_step, "steps": steps}
    with pytest.raises(TunerError) as refused:
        forecast.check_limits(estimate, 5_000_000)
    assert refused.value.problems == (
        f"This run would not finish: it needs about {forecast.duration(seconds)}, and this page allows at most 15 min "
        f"00 s per run. Set {ways}a budget of at most 900 seconds.",
    )


def test_the_limits_themselves_are_allowed_and_too_many_tokens_are_told_with_both_figures():
    estimate = {"training": 900.0, "start_up": 1.0, "a_step": 1.0, "steps": 899}
    assert forecast.check_limits(estimate, 5_000_000) is None
    with pytest.raises(TunerError) as refused:
        forecast.check_limits(estimate, 5_000_001)
    assert refused.value.problems == (
        "The rows have 5,000,001 tokens per epoch, and this page allows at most 5,000,000. Set data.max_rows to use "
        "fewer rows.",
    )


def test_the_limits_of_a_shared_page_are_set_by_its_environment(monkeypatch):
    def limits() -> list[float]:
        constants = runpy.run_path(forecast.__file__)
        return [constants[name] for name in ("MAX_PARAMETERS", "MAX_SECONDS", "MAX_TOKENS")]

    names = ("TUNER_MAX_BILLION_PARAMETERS", "TUNER_MAX_SECONDS", "TUNER_MAX_TOKENS")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    assert limits() == [9e9, 900, 5e6]
    for name, value in zip(names, ("1.5", "70", "3e4")):
        monkeypatch.setenv(name, value)
    assert limits() == [1.5e9, 70, 3e4]


def test_an_estimate_is_put_in_words_with_each_figure_in_its_place():
    parts = {"weights": 2048 * MB, "adapter": 512 * MB, "activations": 96 * MB, "logits": 32 * MB}
    estimate = FORESEEN | {"memory": parts | {"context": 640 * MB, "total": 3328 * MB}}
    assert forecast.sentences(estimate) == [
        "About 57 s in all, estimated from the model's size: 30 steps in 49 s, then 8 s of scoring",
        "About 3.2 GB of memory, of 8.0 GB available: weights 2.0 GB, adapter and optimizer 512 MB, activations 96 "
        "MB, logits 32 MB, CUDA context 640 MB",
    ]
    measured = FORESEEN | {"memory": None, "measured": True, "steps": 1, "training": 3100, "scoring": 520.0}
    assert forecast.sentences(measured) == [
        "About 1 h 00 min in all, estimated from an earlier run: 1 step in 51 min 40 s, then 8 min 40 s of scoring"
    ]


@pytest.fixture
def tokenized(monkeypatch):
    """Six rows in batches of two, of 40, 80 and 140 padded tokens. In the longest batch 11 columns have a label."""
    labeled = {10: (0, 10), 20: (3, 20), 30: (0, 30), 40: (2, 9), 60: (50, 55), 70: (52, 61)}
    rows = [
        {"input_ids": [7] * length, "labels": [5 if first <= i < end else -100 for i in range(length)]}
        for length, (first, end) in labeled.items()
    ]
    return Tokenized(rows, [*labeled], 70, 0)


SETTINGS = {"batch_size": 2, "dtype": "float32", "max_new_tokens": 8}
MEMORY = {"activations": 20, "logits": 4, "total": 24}


def estimate(rows: Tokenized, heldout: int = 9, task: str = "generation", **settings) -> dict:
    recipe = small_recipe(**settings)
    base = Base(fetch_model(recipe.model), recipe.model, task, ("a", "b") if task == "classification" else ())
    settings = SETTINGS if base.row.generates else {k: v for k, v in SETTINGS.items() if k != "max_new_tokens"}
    return forecast.estimate_run(recipe, base, settings, rows, heldout, 1234)


def test_an_estimate_without_an_earlier_run_comes_from_sizes_alone(tokenized, monkeypatch):
    asked = []
    monkeypatch.setattr(forecast, "estimate_memory", lambda *args: asked.append(args[2:]) or MEMORY)
    monkeypatch.setattr(forecast, "available_memory", lambda: 99)
    monkeypatch.setattr(forecast, "step_operations", lambda *args: 1000)
    monkeypatch.setattr(pace, "cpu_look", lambda: Look(speed=1e9, operation=1e-5))
    got = estimate(tokenized, model__quantization="none")
    assert asked == [(SETTINGS, 70, 11)]  # of the longest batch
    shape = shape_of(Base(fetch_model(small_recipe().model), small_recipe(model__quantization="none").model))
    # On average a batch has 260 / 3 padded tokens, and as large a share of them has a label as in the longest one.
    kept = 20 * (260 / 3) / 140
    a_step = pace.step_work(pace.flops_per_step(shape, 1234, SETTINGS, 43, 7), kept) / 1e9
    a_step += (1250 + 2.5 * 1000) * 1e-5  # the host's
    start_up = 1 + 4 * shape.parameters / 1e9  # as they are stored, whatever they are quantized to
    assert (got["memory"], got["available"], got["measured"], got["steps"]) == (MEMORY, 99, False, 6)
    assert got["a_step"] == pytest.approx(a_step, rel=1e-3)
    assert got["start_up"] == pytest.approx(start_up, rel=1e-5)
    assert got["training"] == pytest.approx(start_up + 6 * a_step, rel=1e-3)
    # Four rows are answered by base and adapter together, in eight tokens: the host's time, and the device's.
    answers = 8 * (shape.layers * 120 * 10e-6 + 2 * shape.parameters * 8 / 1e9 / 0.4)
    assert got["scoring"] == pytest.approx(0.1 + answers + 2 * got["a_step"], rel=1e-5)
    quantizing = sum(a * b for _, a, b in shape.linear_layers) / 5e7
    for quantization in ("nf4", "int8"):
        quantized = estimate(tokenized, model__quantization=quantization)["start_up"]
        assert quantized == pytest.approx(start_up + quantizing, rel=1e-5)
    monkeypatch.setitem(SETTINGS, "dtype", "bfloat16")
    halved = estimate(tokenized, model__quantization="none")["start_up"]
    assert halved == pytest.approx(1 + 2 * shape.parameters / 1e9, rel=1e-5)


def test_steps_are_estimated_for_the_batches_that_the_runs_seed_makes(monkeypatch):
    monkeypatch.setattr(forecast, "estimate_memory", lambda *args: MEMORY)
    lengths = [10 + n * n % 97 for n in range(61)]
    rows = Tokenized([{"input_ids": [7] * n, "labels": [5] * n} for n in lengths], lengths, 97, 0)
    for run in ("a", "b"):
        remember(runs.RUNS / PACES, pace_key(device_type(), small_recipe()), {"seconds_per_token": 1.0}, run)
    for seed in (3, 4):
        sizes = [*islice(Batches(lengths, 2, seed).sizes(0), 31)]
        assert estimate(rows, seed=seed)["a_step"] == pytest.approx(sum(sizes) / 31, rel=1e-5)
    assert estimate(rows, seed=3)["a_step"] != estimate(rows, seed=4)["a_step"]


@pytest.mark.parametrize(
    ("heldout", "rows", "task", "seconds"),
    [(64, 70, "generation", 0.1 + 2 * 8 * 0.03), (65, 70, "generation", 0.1 + 3 * 8 * 0.03),
     (90, 65, "generation", 0.1 + 3 * 8 * 0.03), (0, 70, "generation", 0.1),
     (65, 70, "classification", 0.1 + 3 * 0.03)],
)  # fmt: skip
def test_scoring_takes_a_token_at_a_time_for_each_batch_of_answers_and_each_model_that_needs_its_own(
    tokenized, heldout, rows, task, seconds, monkeypatch
):
    monkeypatch.setattr(forecast, "estimate_memory", lambda *args: MEMORY)
    monkeypatch.setattr(scoring, "token_seconds", lambda *args: 0.03)
    got = estimate(tokenized, heldout, task, evaluation__rows=rows)
    # The rows' losses, two rows at a time, for each of which base and adapter need about as long as a step. A base
    # whose head is untrained neither answers nor is measured.
    losses = -(-min(heldout, rows) // 2) * got["a_step"] * (0.5 if task == "classification" else 1)
    assert got["scoring"] == pytest.approx(seconds + losses, rel=1e-5)


@pytest.mark.parametrize(
    ("budget", "steps", "training"),
    [({"steps": 7}, 7, 3.5 + 7 * 0.26), ({"epochs": 1.5}, 4, 3.5 + 4 * 0.26), ({"epochs": 1.6}, 5, 3.5 + 5 * 0.26),
     ({"epochs": 0.1}, 1, 3.5 + 0.26), ({"seconds": 6.0}, 9, 6), ({"seconds": 3.7}, 0, 3.7), ({"seconds": 2}, 0, 2)],
)  # fmt: skip
def test_an_estimate_after_an_earlier_run_goes_by_its_pace(tokenized, monkeypatch, budget, steps, training):
    monkeypatch.setattr(forecast, "estimate_memory", lambda *args: MEMORY)
    settings = {f"budget__{name}": value for name, value in budget.items()}
    key = pace_key(device_type(), small_recipe())
    for run in ("a", "b"):
        remember(
            runs.RUNS / PACES, key, {"seconds_per_token": 0.003, "start_up": 3.5, "seconds_per_answer": 0.25}, run
        )
    got = estimate(tokenized, 16, evaluation__rows=5, **settings)
    assert (got["a_step"], got["start_up"], got["measured"]) == (pytest.approx(0.26), 3.5, True)
    assert (got["steps"], got["training"]) == (steps, pytest.approx(training))
    assert got["scoring"] == pytest.approx(0.1 + 5 * 0.25 + 3 * 0.26)
    others = {"method__name": "ia3", "method__rank": "auto"}
    assert not estimate(tokenized, **settings, **others)["measured"]  # another method's pace says nothing


def test_answers_of_adapter_alone_have_a_pace_of_their_own(tokenized, monkeypatch):
    monkeypatch.setattr(forecast, "estimate_memory", lambda *args: MEMORY)
    for run, paces in (("a", {"seconds_per_answer": 9.0}), ("b", {"seconds_per_lone_answer": 0.25})):
        for twice in ("1", "2"):
            remember(runs.RUNS / PACES, pace_key(device_type(), small_recipe()), paces, run + twice)
    got = estimate(tokenized, 4, "classification")
    assert got["scoring"] == pytest.approx(0.1 + 4 * 0.25 + got["a_step"], rel=1e-5)


def test_scoring_alone_is_no_pace_of_training(tokenized):
    for run in ("a", "b"):
        remember(runs.RUNS / PACES, pace_key(device_type(), small_recipe()), {"seconds_per_answer": 0.25}, run)
    got = estimate(tokenized)
    assert not got["measured"]
    assert got["scoring"] == pytest.approx(0.1 + 4 * 0.25 + 2 * got["a_step"], rel=1e-5)


def test_the_memory_of_a_method_that_needs_storage_is_unknown(tokenized):
    method = {"method__name": "shira", "method__rank": "auto"}
    assert estimate(tokenized, **method)["memory"] is None


def test_a_step_too_short_to_notice_still_takes_time(tokenized, monkeypatch):
    monkeypatch.setattr(pace, "cpu_look", lambda: Look(speed=1e15, operation=1e-12))
    got = estimate(tokenized, budget__seconds=1000)
    assert 0 < got["a_step"] < 1e-5
    with pytest.raises(TunerError, match="would not finish"):
        forecast.check_limits(got, 1)
