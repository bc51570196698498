"""Methods compared with each other, and several runs' adapters side by side and merged together."""

import json

import pytest
import torch
from conftest import small_recipe
from transformers import AutoModelForCausalLM

from tuner import runs
from tuner.cli import main
from tuner.errors import TunerError
from tuner.experiments import compare
from tuner.inference import generate, merge
from tuner.inference.variants import load_variants
from tuner.methods.registry import METHODS
from tuner.planning import plan
from tuner.training.window import train

FEW = ["data.max_rows=40", "evaluation={rows: 4, max_new_tokens: 4, loss_every: 0}", "training.batch_size=4"]
PROMPT = [{"role": "user", "content": "yo i gotta bounce early tmrw"}]


@pytest.mark.usefixtures("time_to_train")
def test_compare_trains_each_method_for_the_same_seconds_on_the_same_base_with_its_own_defaults(
    capsys, monkeypatch, tmp_path
):
    monkeypatch.setattr(runs, "RUNS", tmp_path)
    command = ["compare", "corporate", "--methods", "lora,ia3,full", "--seconds", "3", "--json"]
    assert main([*command, *(part for setting in FEW for part in ("--set", setting))]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["method"] for row in rows] == ["lora", "ia3", "full"]
    for row in rows:
        run = runs.open_run(row["run"])
        # Full fine-tuning needs 16-bit weights, so all methods train on them.
        assert run.recipe.model.quantization == "none"
        assert run.recipe.budget.seconds == 3
        width = 256
        assert run.plan["settings"]["learning_rate"] == METHODS[row["method"]].learning_rate(width)
        assert row["seconds"] <= 3.5
        assert row["steps"] > 0
        assert row["score"] is not None
        assert row["base"] == rows[0]["base"]
        assert row["adapter_bytes"] > 0
    assert rows[1]["trainable_parameters"] < rows[0]["trainable_parameters"] < rows[2]["trainable_parameters"]


def test_a_comparison_is_refused_with_the_problems_of_all_methods_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "RUNS", tmp_path)
    with pytest.raises(TunerError, match="no method 'lorra'"):
        compare.prepare(small_recipe(), ["lora", "lorra"], 5)
    with pytest.raises(TunerError) as refusal:
        compare.prepare(small_recipe(model__quantization="none"), ["qlora", "lora", "unilora", "supertuning"], 5)
    assert str(refusal.value).count("qlora") >= 1
    assert not list(tmp_path.iterdir())


def test_compared_methods_take_their_own_learning_rates_and_not_the_recipes(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "RUNS", tmp_path)
    recipe = small_recipe(training__learning_rate=0.5, model__quantization="none")
    prepared = compare.prepare(recipe, ["lora", "ia3"], 5)
    rates = {name: run.plan["settings"]["learning_rate"] for name, run in prepared.items()}
    assert rates == {name: METHODS[name].learning_rate(256) for name in ("lora", "ia3")}


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """Runs of four methods on one base: mixed in one batch, attached in turn, not mergeable."""
    folder, made = tmp_path_factory.mktemp("several"), {}
    for name in ("lora", "rslora", "ia3", "prefix_tuning"):
        rate = METHODS[name].learning_rate(256)
        recipe = small_recipe(method__name=name, method__rank="auto", training__learning_rate=rate)
        made[name] = plan.prepare(recipe, path=folder / name)
        list(train(made[name]))
    return made


def answers(adapters: dict, *variants: str) -> dict[str, str]:
    loaded = load_variants(adapters)
    sampling = generate.Sampling(max_new_tokens=12)
    *_, last = generate.stream(loaded, dict.fromkeys(variants or loaded.variants, PROMPT), sampling)
    return last


def test_any_number_of_adapters_answer_on_one_base_as_each_does_alone(several):
    together = answers(several)
    assert set(together) == {"base", *several}
    for name, run in several.items():
        assert answers({"adapter": run}, "adapter")["adapter"] == together[name]


def test_switching_adapters_does_not_load_the_base_again(several):
    from tuner.models.fetch import base_of
    from tuner.models.load import shared_base

    answers({"adapter": several["lora"]})
    before = shared_base(base_of(several["lora"]))
    answers(several)
    assert shared_base(base_of(several["ia3"])) is before


def test_adapters_of_different_bases_are_refused_side_by_side(several, tmp_path):
    other = plan.prepare(small_recipe(model__quantization="none", budget__steps=1), path=tmp_path / "other")
    list(train(other))
    with pytest.raises(TunerError, match="different bases"):
        load_variants({"a": several["lora"], "b": other})


def test_a_weighted_merge_is_the_weighted_sum_of_its_runs(several, tmp_path, capsys):
    def weights(folder) -> dict[str, torch.Tensor]:
        return {n: p.float() for n, p in AutoModelForCausalLM.from_pretrained(folder).named_parameters()}

    one, other = several["lora"], several["ia3"]
    for run in (one, other):
        merge.merge(run)
    merge.merge_weighted({one: 1.0, other: 0.0}, tmp_path / "one")
    alone = weights(one.merged)
    assert all(torch.equal(p, alone[n]) for n, p in weights(tmp_path / "one").items())
    assert (
        main(["merge", str(one.path), str(other.path), "--weights", "0.5,0.5", "--out", str(tmp_path / "half")]) == 0
    )
    second, half = weights(other.merged), weights(tmp_path / "half")
    base = weights(one.recipe.model.name if "/" in one.recipe.model.name else "examples/tiny-office")
    moved = 0
    for name, p in half.items():
        expected = base[name] + 0.5 * (alone[name] - base[name]) + 0.5 * (second[name] - base[name])
        assert torch.allclose(p, expected, atol=0.01)
        assert (p - expected).norm() <= 0.1 * (expected - base[name]).norm() + 1e-3 * base[name].norm(), name
        moved += int(not torch.equal(p, base[name]))
    assert moved > 10
    capsys.readouterr()
    assert main(["merge", str(one.path), str(other.path), "--out", str(tmp_path / "equal"), "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["shares"].values()) == [0.5, 0.5]


def test_methods_that_leave_the_weights_alone_cannot_be_merged(several, tmp_path):
    with pytest.raises(TunerError, match="can't be merged"):
        merge.merge_weighted({several["lora"]: 0.5, several["prefix_tuning"]: 0.5}, tmp_path / "sum")
    assert not (tmp_path / "sum").exists()
