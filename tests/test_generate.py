"""Playground, evaluation and merge on a small trained run."""

import itertools
import json
import shutil
import threading

import pytest
import torch
from conftest import small_recipe

from tuner import evaluate, export, generate, models, plan, runs
from tuner.errors import TunerError
from tuner.train import train

VARIANTS = ("base", "adapter", "merged")
PROMPT = [{"role": "user", "content": "yo i gotta bounce early tmrw cuz my kid is sick"}]


@pytest.fixture(scope="module")
def merged(finished, tmp_path_factory):
    """The finished run with its merged model, in a folder of its own."""
    run = runs.Run(shutil.copytree(finished.path, tmp_path_factory.mktemp("merged") / "run"))
    export.merge(run)
    return run


@pytest.fixture
def loaded(merged):
    return generate.attached({"adapter": merged}, {"merged": merged.merged})


def answers(loaded, variants, **sampling) -> dict[str, str]:
    *_, last = generate.stream(loaded, dict.fromkeys(variants, PROMPT), generate.Sampling(**sampling))
    return last


def test_three_variants_stream_together(loaded):
    seen = list(generate.stream(loaded, dict.fromkeys(VARIANTS, PROMPT), generate.Sampling(max_new_tokens=12)))
    assert len(seen) > 3
    assert set(seen[-1]) == set(VARIANTS)
    assert all(seen[-1].values())
    for before, after in itertools.pairwise(seen):
        assert all(after[v].startswith(before[v]) for v in VARIANTS)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_base_and_adapter_answer_in_one_batch_as_each_does_alone(loaded, temperature):
    sampling = {"max_new_tokens": 12, "temperature": temperature, "top_p": 0.9, "seed": 3}
    together = answers(loaded, ("base", "adapter"), **sampling)
    assert together == answers(loaded, ("base",), **sampling) | answers(loaded, ("adapter",), **sampling)


def test_runs_of_several_methods_answer_beside_their_base_as_each_does_alone(finished, merged, tmp_path):
    other = plan.prepare(small_recipe(method__name="ia3", method__rank="auto"), path=tmp_path / "ia3")
    list(train(other))
    several = generate.attached({"one": finished, "factors": other, "two": merged})
    assert sorted(several.variants) == ["base", "factors", "one", "two"]
    together = answers(several, several.variants, max_new_tokens=12)
    assert together["one"] == together["two"]
    for name, run in (("one", finished), ("factors", other)):
        alone = answers(generate.attached({name: run}), ("base", name), max_new_tokens=12)
        assert alone == {variant: together[variant] for variant in ("base", name)}


def test_runs_on_different_bases_are_not_loaded_side_by_side(finished, tmp_path):
    other = plan.prepare(small_recipe(model__quantization="none"), path=tmp_path / "other")
    shutil.copytree(finished.adapter, other.adapter)
    with pytest.raises(TunerError, match=r"stand on different bases \(tiny-office, nf4.*tiny-office, none"):
        generate.attached({"one": finished, "two": other})


def test_a_seed_fixes_a_sampled_answer_and_another_seed_changes_it(loaded):
    texts = [answers(loaded, VARIANTS, temperature=1.5, seed=s, max_new_tokens=16) for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_sampling_follows_the_distribution_of_the_scores():
    scores = torch.log(torch.tensor([[0.5, 0.3, 0.2]])).repeat(4000, 1)
    noise = generate.Noise(generate.Sampling(temperature=1.0))
    noise.streams = [torch.Generator().manual_seed(i) for i in range(4000)]
    drawn = noise(None, scores).argmax(-1)
    shares = torch.bincount(drawn, minlength=3) / 4000
    assert shares.tolist() == pytest.approx([0.5, 0.3, 0.2], abs=0.03)


def test_top_p_leaves_unlikely_tokens_out():
    scores = torch.log(torch.tensor([[0.6, 0.3, 0.1]])).repeat(500, 1)
    noise = generate.Noise(generate.Sampling(temperature=1.0, top_p=0.7))
    noise.streams = [torch.Generator().manual_seed(i) for i in range(500)]
    assert 2 not in noise(None, scores).argmax(-1)


def test_merged_and_adapter_answer_together_when_nothing_is_loaded_yet(merged):
    for _ in range(3):
        models.forget()
        loaded = generate.attached({"adapter": merged}, {"merged": merged.merged})
        assert all(answers(loaded, VARIANTS, max_new_tokens=4).values())


def test_stop_ends_the_answers(loaded):
    stop = threading.Event()
    seen = 0
    for _ in generate.stream(loaded, dict.fromkeys(VARIANTS, PROMPT), generate.Sampling(max_new_tokens=400), stop):
        seen += 1
        stop.set()
    assert seen < 20


def test_a_conversation_longer_than_the_context_is_refused(loaded):
    long = [{"role": "user", "content": "meeting " * 600}]
    with pytest.raises(TunerError, match="context of 512 tokens"):
        list(generate.stream(loaded, {"base": long}, generate.Sampling()))


def test_chatting_before_training_says_so(tmp_path):
    run = plan.prepare(small_recipe(), path=tmp_path / "run")
    with pytest.raises(TunerError, match="Train it first"):
        export.merge(run)
    with pytest.raises(TunerError, match="Train it first"):
        generate.attached({"adapter": run})


def test_the_merged_model_is_a_plain_16_bit_model_that_agrees_with_the_adapter(merged):
    from transformers import AutoModelForCausalLM

    config = json.loads((merged.merged / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert "quantization_config" not in config
    plain = AutoModelForCausalLM.from_pretrained(merged.merged)
    assert not any("lora" in name for name, _ in plain.named_parameters())
    check = merged.read_json("merge_check.json")
    assert check["top1_agreement"] >= 0.99
    assert check["top1_agreement_quantized"] <= check["top1_agreement"]
    assert check["max_logit_difference"] < check["max_logit_difference_quantized"]
    assert check["tokens"] > 100


def test_merging_again_reads_what_was_merged(merged):
    before = (merged.merged / "model.safetensors").stat().st_mtime_ns
    assert export.merge(merged) == merged.read_json("merge_check.json")
    assert (merged.merged / "model.safetensors").stat().st_mtime_ns == before


def test_evaluation_scores_base_and_adapter_with_intervals_and_keeps_rows(finished):
    scores = finished.read_json("evaluation.json")
    for variant in ("base", "adapter"):
        row = scores[variant]
        assert 0 <= row["rougeL_low"] <= row["rougeL"] <= row["rougeL_high"] <= 1
        assert row["loss"] > 0
    assert scores["gain"]["rougeL"] == pytest.approx(scores["adapter"]["rougeL"] - scores["base"]["rougeL"], abs=2e-4)
    assert scores["rows"] == len(scores["examples"]) == 4
    assert scores["adapter"]["loss"] < scores["base"]["loss"]


def test_scores_are_recomputed_to_the_same_figures(finished, loaded):
    before = finished.read_json("evaluation.json")
    list(evaluate.evaluate(finished, loaded))
    assert finished.read_json("evaluation.json") == before


def test_plain_text_is_judged_by_its_loss_everywhere(tmp_path, monkeypatch, capsys):
    from tuner.cli import main
    from tuner.tables import read_pasted
    from tuner.ui import actions, progress, show

    monkeypatch.setattr(runs, "RUNS", tmp_path)

    lines = "\n".join(f'{{"text": "please send report {n} by friday, it is due"}}' for n in range(40))
    run = plan.prepare(small_recipe(), read_pasted(lines), path=tmp_path / "run")
    list(train(run))
    scores = run.read_json("evaluation.json")
    assert scores["rows"] == 0
    assert scores["adapter"]["loss"] < scores["base"]["loss"]
    told = f"{scores['base']['loss']:.3f}", f"{scores['adapter']['loss']:.3f}"
    card = show.view(run, progress.read(run))
    assert all(loss in card for loss in told)
    assert "t-bar" not in card
    assert "finished" in show.runs_list([actions.summary(run)], "", "")
    assert (main(["evaluate", "run"]), main(["runs"])) == (0, 0)
    assert all(loss in capsys.readouterr().out for loss in told[:1])
