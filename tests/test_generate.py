"""Playground, evaluation and merge on a small trained run."""

import copy
import functools
import itertools
import json
import math
import shutil
import threading

import pytest
import torch
import transformers
from conftest import mostly_long, small_recipe
from datasets import load_from_disk
from peft import PeftModel, PromptTuningConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from tiny import tiny_model, tiny_tokenizer

from tuner import runs
from tuner.data import chat
from tuner.errors import TunerError
from tuner.evaluation.answers import evaluate, heldout_rows
from tuner.inference import generate, merge
from tuner.inference.variants import load_variants
from tuner.methods import attach
from tuner.models.fetch import base_of
from tuner.models.load import forget_bases, load_base, shared_base
from tuner.models.shape import load_tokenizer
from tuner.planning import plan
from tuner.rouge import rouge_l
from tuner.training.window import train

pytestmark = pytest.mark.usefixtures("no_estimates")

VARIANTS = ("base", "adapter", "merged")
PROMPT = [{"role": "user", "content": "yo i gotta bounce early tmrw cuz my kid is sick"}]


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A run whose adapter answers quite otherwise than its base, so that one can't pass for the other."""
    settings = {"budget__steps": 16, "training__learning_rate": 2e-2, "evaluation__max_new_tokens": 24}
    run = plan.prepare(small_recipe(**settings), path=tmp_path_factory.mktemp("taught") / "run")
    list(train(run))
    return run


@pytest.fixture(scope="module")
def merged(taught, tmp_path_factory):
    """The same run with its merged model, in a folder of its own."""
    run = runs.Run(shutil.copytree(taught.path, tmp_path_factory.mktemp("merged") / "run"))
    merge.merge(run)
    return run


@pytest.fixture(scope="module")
def plainly(taught, merged):
    """The answers of base, adapter and merged model as transformers and PEFT alone give them."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(taught.adapter)
    base = base_of(taught)

    @functools.cache
    def model_of(variant: str) -> torch.nn.Module:
        if variant == "merged":
            return transformers.AutoModelForCausalLM.from_pretrained(merged.merged, dtype=torch.float32)
        model = load_base(base)
        return PeftModel.from_pretrained(model, taught.adapter) if variant == "adapter" else model

    def plainly(variant: str, messages: list[dict], tokens: int) -> str:
        prompt = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        written = model_of(variant).eval().generate(**prompt, do_sample=False, max_new_tokens=tokens)
        return tokenizer.decode(written[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)

    return plainly


@pytest.fixture
def loaded(merged):
    return load_variants({"adapter": merged}, {"merged": merged.merged})


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
    assert together["base"] != together["adapter"]


def test_each_variant_answers_with_its_own_weights(loaded, plainly):
    together = answers(loaded, VARIANTS, max_new_tokens=24)
    assert together == {variant: plainly(variant, PROMPT, 24) for variant in VARIANTS}
    assert together["base"] != together["adapter"]


def test_the_answers_that_were_scored_are_each_variants_own_to_the_row_they_stand_with(taught, plainly):
    scores = taught.read_json("evaluation.json")
    rows = heldout_rows(taught)[:4]
    for row, example in zip(rows, scores["examples"], strict=True):
        assert (example["prompt"], example["reference"]) == (row["messages"][-1]["content"], row["reference"])
        for variant in ("base", "adapter"):
            assert example[variant] == plainly(variant, row["messages"], 24)
            rouge = rouge_l(row["reference"], example[variant])
            assert example[f"{variant}_rougeL"] == pytest.approx(rouge, abs=1e-4)
    assert scores["gain"]["rougeL"] > 0.05
    for variant in ("base", "adapter"):
        mean = sum(example[f"{variant}_rougeL"] for example in scores["examples"]) / 4
        assert scores[variant]["rougeL"] == pytest.approx(mean, abs=1e-4)


def test_an_answer_ends_at_its_end_mark_and_not_before(loaded, plainly):
    texts = answers(loaded, ("base", "adapter"), max_new_tokens=200)
    tokenizer = loaded.tokenizer
    for variant, text in texts.items():
        assert text == plainly(variant, PROMPT, 200)
        assert 3 < len(tokenizer(text)["input_ids"]) < 150
        assert not set(tokenizer.all_special_tokens) & set(tokenizer.tokenize(text))


def test_runs_of_several_methods_answer_beside_their_base_as_each_does_alone(finished, merged, tmp_path):
    other = plan.prepare(
        small_recipe(method__name="ia3", method__rank="auto", budget__steps=2, evaluation__rows=1),
        path=tmp_path / "ia3",
    )
    list(train(other))
    several = load_variants({"one": finished, "factors": other, "two": merged})
    assert sorted(several.variants) == ["base", "factors", "one", "two"]
    together = answers(several, several.variants, max_new_tokens=12)
    assert together["base"] != together["two"] != together["one"]
    for name, run in (("one", finished), ("factors", other), ("two", merged)):
        alone = answers(load_variants({name: run}), ("base", name), max_new_tokens=12)
        assert alone == {variant: together[variant] for variant in ("base", name)}


def test_runs_on_different_bases_are_not_loaded_side_by_side(finished, tmp_path):
    other = plan.prepare(small_recipe(model__quantization="none"), path=tmp_path / "other")
    shutil.copytree(finished.adapter, other.adapter)
    with pytest.raises(TunerError, match=r"have different bases \(tiny-office, nf4.*tiny-office, none"):
        load_variants({"one": finished, "two": other})


def test_a_seed_fixes_a_sampled_answer_and_another_seed_changes_it(loaded):
    texts = [answers(loaded, VARIANTS, temperature=1.5, seed=s, max_new_tokens=16) for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def shares(scores: list[float], **sampling) -> list[float]:
    """How often each token is drawn from such probabilities, in 4000 rows with a random stream each."""
    noise = generate.GumbelSampler(generate.Sampling(**sampling))
    noise.streams = [torch.Generator().manual_seed(i) for i in range(4000)]
    drawn = noise(None, torch.log(torch.tensor([scores])).repeat(4000, 1)).argmax(-1)
    return (torch.bincount(drawn, minlength=len(scores)) / 4000).tolist()


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        ({"temperature": 1.0}, [0.6, 0.3, 0.1]),
        ({"temperature": 0.5}, [0.36 / 0.46, 0.09 / 0.46, 0.01 / 0.46]),
        ({"temperature": 2.0}, [0.6**0.5 / 1.6385, 0.3**0.5 / 1.6385, 0.1**0.5 / 1.6385]),
        ({"temperature": 1.0, "top_p": 0.7}, [2 / 3, 1 / 3, 0]),  # the fewest that make 0.7 together
        ({"temperature": 1.0, "top_p": 0.5}, [1, 0, 0]),
        ({"temperature": 2.0, "top_p": 0.7}, [0.5858, 0.4142, 0]),  # the share counts after the temperature
    ],
)
def test_sampling_follows_the_distribution_of_the_scores(sampling, expected):
    measured = shares([0.6, 0.3, 0.1], **sampling)
    assert measured == pytest.approx(expected, abs=0.025)
    assert [share == 0 for share in measured] == [share == 0 for share in expected]


def test_every_row_has_the_same_stream_of_its_own_which_moves_on_with_each_token():
    noise, scores = generate.GumbelSampler(generate.Sampling(temperature=1.0, seed=5)), torch.zeros(3, 50)
    first, second = noise(None, scores), noise(None, scores)
    assert torch.equal(first[0], first[1])
    assert torch.equal(first[0], first[2])
    assert not torch.equal(first[0], second[0])
    alone = generate.GumbelSampler(generate.Sampling(temperature=1.0, seed=5))(None, scores[:1])
    assert torch.equal(alone[0], first[0])


def test_merged_and_adapter_answer_together_when_nothing_is_loaded_yet(merged):
    for _ in range(2):
        forget_bases()
        loaded = load_variants({"adapter": merged}, {"merged": merged.merged})
        assert all(answers(loaded, VARIANTS, max_new_tokens=4).values())


def test_a_prompt_that_was_rendered_elsewhere_runs_no_template_here(loaded, monkeypatch):
    *_, expected = generate.stream(loaded, dict.fromkeys(VARIANTS, PROMPT), generate.Sampling(max_new_tokens=8))
    rendered, ends = chat.render_prompt(PROMPT, loaded.tokenizer), chat.stop_ids(loaded.tokenizer)
    monkeypatch.setattr(loaded.tokenizer, "chat_template", "{{ raise_exception('rendered here') }}")
    given = dict.fromkeys(VARIANTS, rendered), generate.Sampling(max_new_tokens=8, ends=tuple(ends))
    assert [*generate.stream(loaded, *given)][-1] == expected


def test_stop_ends_the_answers(loaded):
    stop = threading.Event()
    seen = 0
    for _ in generate.stream(loaded, dict.fromkeys(VARIANTS, PROMPT), generate.Sampling(max_new_tokens=400), stop):
        seen += 1
        stop.set()
    assert seen < 20


def test_a_stop_is_seen_at_the_next_token(loaded):
    stop, shown = threading.Event(), []

    def show(texts: list[str]) -> None:
        shown.append(texts)
        if len(shown) == 3:
            stop.set()

    streamer = generate.Streamer(loaded.tokenizer, show)
    (answer,) = generate.answer(
        loaded, loaded.sharing_base[0], ["base"], [PROMPT], generate.Sampling(max_new_tokens=400),
        streamer=streamer, stop=stop,
    )  # fmt: skip
    assert len(shown) <= 4
    assert [answer.text] == shown[-1]


def test_an_encoder_decoder_with_a_soft_prompt_streams_and_stops(tmp_path):
    """PEFT copies the arguments of its generate, and a copy could be neither made of a lock nor heard of."""
    tiny_model(tmp_path, "t5")
    torch.manual_seed(0)  # what is written depends on the prompt
    base = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    config = PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=2, num_transformer_submodules=1)
    tokenizer, shown, stop = load_tokenizer(tmp_path), [], threading.Event()

    def show(texts: list[str]) -> None:
        shown.append(texts)
        if len(shown) == 3:
            stop.set()

    model, sampling = get_peft_model(base, config).eval(), generate.Sampling(temperature=1.0, max_new_tokens=40)
    streamer = generate.Streamer(tokenizer, show)
    (answer,) = generate.generate(model, tokenizer, ["hello"], sampling, streamer=streamer, stop=stop)
    assert 3 <= len(shown) <= 4
    assert answer.text == shown[-1][0].strip()


@pytest.mark.parametrize("ended", [False, True])
def test_of_a_character_that_is_cut_off_neither_the_stream_nor_the_answer_shows_anything(ended):
    tokenizer, shown = tiny_tokenizer(), []
    tea = tokenizer("hey 🍵", add_special_tokens=False)["input_ids"]
    cut, ends = tea[:-1], [tokenizer.eos_token_id] * ended

    class Writes(torch.nn.Linear):
        config = transformers.LlamaConfig(max_position_embeddings=50)

        def generate(self, input_ids, streamer, **others) -> torch.Tensor:
            written = torch.tensor([cut + ends] * len(input_ids))
            for tokens in (input_ids, *written.T):
                streamer.put(tokens)
            return torch.cat([input_ids, written], dim=1)

    streamer = generate.Streamer(tokenizer, shown.append)
    answers = generate.generate(Writes(1, 1), tokenizer, ["hello"], generate.Sampling(), streamer=streamer)
    assert [answer.text for answer in answers] == shown[-1] == ["hey "]
    assert "\ufffd" in tokenizer.decode(cut)


def test_a_conversation_longer_than_the_context_is_refused(loaded):
    long = [{"role": "user", "content": "meeting " * 600}]
    with pytest.raises(TunerError, match="context of 512 tokens"):
        list(generate.stream(loaded, {"base": long}, generate.Sampling()))


def test_generation_is_greedy_with_one_beam_and_compiles_nothing():
    """torch.compile does not work on ZeroGPU; a model's own settings, such as BART's four beams, do not count."""
    seen, tokenizer = [], tiny_tokenizer()

    class Writes(torch.nn.Linear):
        config = transformers.LlamaConfig(max_position_embeddings=50)

        def generate(self, input_ids, generation_config, **others) -> torch.Tensor:
            seen.append(generation_config)
            return input_ids

    generate.generate(Writes(1, 1), tokenizer, ["hello"], generate.Sampling(temperature=1.0, max_new_tokens=3))
    (config,) = seen
    assert (config.disable_compile, config.num_beams, config.do_sample, config.max_new_tokens) == (True, 1, False, 3)
    assert (config.eos_token_id, config.pad_token_id) == ([tokenizer.eos_token_id], tokenizer.pad_token_id)


def test_virtual_tokens_take_up_places_in_the_context(taught):
    base = base_of(taught)
    tokenizer = load_tokenizer(base.folder)
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=20)
    model = get_peft_model(load_base(base), config).eval()
    fits, shown = "1" * (512 - 20 - 1), []
    assert len(tokenizer(fits, add_special_tokens=False)["input_ids"]) == len(fits)
    generate.generate(
        model, tokenizer, [fits], generate.Sampling(), streamer=generate.Streamer(tokenizer, shown.append)
    )
    assert len(shown) == 1
    with pytest.raises(TunerError, match="context of 512 tokens"):
        generate.generate(model, tokenizer, [fits + "1"], generate.Sampling())


def test_a_long_text_is_cut_to_leave_an_encoder_room_for_virtual_tokens(tmp_path):
    tiny_model(tmp_path, "bart")
    base, tokenizer = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path), load_tokenizer(tmp_path)
    config = PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=20, num_transformer_submodules=1)
    model, read = get_peft_model(base, config).eval(), []
    base.get_encoder().register_forward_pre_hook(
        lambda module, given, named: read.append(named["inputs_embeds"].shape[1]), with_kwargs=True
    )
    generate.generate(model, tokenizer, ["1" * 600], generate.Sampling(max_new_tokens=2))
    assert read == [512]


def test_chatting_before_training_says_so(tmp_path):
    run = plan.prepare(small_recipe(), path=tmp_path / "run")
    with pytest.raises(TunerError, match="Train it first"):
        merge.merge(run)
    with pytest.raises(TunerError, match="Train it first"):
        load_variants({"adapter": run})


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
    assert check["max_logit_difference"] > 0  # two computations were held against each other, not one with itself
    assert check["tokens"] > 100


def test_a_merged_weight_is_the_bases_plus_the_scaled_product_of_the_adapters(merged):
    before = load_file(base_of(merged).folder / "model.safetensors")
    after, adapter = (load_file(path) for path in (
        merged.merged / "model.safetensors", merged.adapter / "adapter_model.safetensors",
    ))  # fmt: skip
    prefix, changed = "base_model.model.", 0
    for name, weight in before.items():
        key = prefix + name.removesuffix(".weight") + ".lora_{}.weight"
        expected = weight.float()
        if key.format("A") in adapter:
            changed += 1
            expected = expected + 32 / 4 * adapter[key.format("B")] @ adapter[key.format("A")]  # alpha over rank
            assert (after[name] - weight).abs().max() > 0.01
        assert torch.allclose(after[name].float(), expected, rtol=2**-8, atol=1e-4), name
    assert changed == len(adapter) / 2


def scaled(factor: float):
    def merge(model):
        for module in model.modules():
            if isinstance(module, LoraLayer):
                module.scaling = {name: factor * scale for name, scale in module.scaling.items()}
        return MERGE(model)

    return merge


def into_a_copy(model):
    MERGE(copy.deepcopy(model))
    return attach.detach(model)


MERGE = attach.merge
BROKEN = {
    "does nothing": attach.detach,
    "into a copy": into_a_copy,
    "at half the scale": scaled(0.5),
    "at twice the scale": scaled(2.0),
    "with the wrong sign": scaled(-1.0),
}


@pytest.mark.parametrize("how", mostly_long(BROKEN, "at half the scale"))
def test_the_check_of_a_broken_merge_is_clearly_below_that_of_a_sound_one(taught, merged, monkeypatch, tmp_path, how):
    run = runs.Run(shutil.copytree(taught.path, tmp_path / "run"))
    monkeypatch.setattr(attach, "merge", BROKEN[how])
    broken, sound = merge.merge(run), merged.read_json("merge_check.json")
    assert broken["tokens"] == sound["tokens"]
    assert (broken["merge_failed"], sound["merge_failed"]) == (True, False)
    # Rounding to four bits alone moves one logit by several, and on one processor more than on another.
    for against, times in (("", 10), ("_quantized", 1.5)):
        assert broken[f"top1_agreement{against}"] < min(0.95, sound[f"top1_agreement{against}"] - 0.03)
        assert broken[f"max_logit_difference{against}"] > times * sound[f"max_logit_difference{against}"]


def test_merging_again_reads_what_was_merged(merged):
    before = (merged.merged / "model.safetensors").stat().st_mtime_ns
    assert merge.merge(merged) == merged.read_json("merge_check.json")
    assert (merged.merged / "model.safetensors").stat().st_mtime_ns == before


def test_a_base_that_could_not_be_given_its_adapter_is_loaded_anew(finished, monkeypatch):
    loaded = load_variants({"adapter": finished})
    before = shared_base(base_of(finished))

    def fail(*given):
        raise ValueError("damaged")

    monkeypatch.setattr(attach, "load", fail)
    with pytest.raises(ValueError, match="damaged"), loaded.model_for("adapter"):
        pass
    assert shared_base(base_of(finished)) is not before


@pytest.fixture
def mine(finished, tmp_path) -> runs.Run:
    """A copy of the finished run, not merged."""
    run = runs.Run(shutil.copytree(finished.path, tmp_path / "mine"))
    shutil.rmtree(run.merged, ignore_errors=True)
    (run.path / "merge_check.json").unlink(missing_ok=True)
    return run


def test_a_merge_is_kept_only_with_its_check_and_counts_the_places_compared(mine):
    check = merge.merge(mine)
    rows = load_from_disk(str(mine.data / "heldout"))
    labels = sum(label != -100 for row in rows for label in row["labels"][1:])
    assert check["tokens"] == min(labels, merge.CHECKED_TOKENS)
    assert check == mine.read_json("merge_check.json")
    assert set(check) == {
        "tokens",
        "quantization_agreement",
        *(f"{kind}{on}" for kind in ("top1_agreement", "max_logit_difference") for on in ("", "_quantized")),
        *(f"merge_{kind}" for kind in ("error", "tolerance", "failed")),
    }
    assert {path.name for path in mine.merged.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}
    mine.write_json("merge_check.json", check | {"tokens": 1})
    assert merge.merge(mine) == check | {"tokens": 1}
    (mine.path / "merge_check.json").unlink()
    mine.adapter.rename(mine.path / "gone")
    with pytest.raises(TunerError, match="is gone from its folder"):  # so it would be merged again
        merge.merge(mine)


def test_shares_of_a_weighted_merge_belong_to_their_runs(mine, finished, tmp_path):
    file = mine.adapter / "adapter_model.safetensors"
    trained = load_file(file)
    save_file({n: 2 * t if "lora_B" in n else t for n, t in trained.items()}, file, {"format": "pt"})
    merge.merge_weighted({finished: 0.75, mine: 0.5}, tmp_path / "new" / "sum")
    start = load_file(base_of(finished).folder / "model.safetensors")
    after = load_file(tmp_path / "new" / "sum" / "model.safetensors")
    config = json.loads((finished.adapter / "adapter_config.json").read_text())
    scale = config["lora_alpha"] / config["r"]
    changed = 0
    for name, weight in after.items():
        key = f"base_model.model.{name.removesuffix('.weight')}.lora_{{}}.weight"
        expected = start[name].float()
        if key.format("A") in trained:
            changed += 1
            expected = expected + 1.75 * scale * trained[key.format("B")] @ trained[key.format("A")]
        assert weight.dtype == start[name].dtype
        torch.testing.assert_close(weight.float(), expected, rtol=2**-7, atol=1e-3)
    assert changed == len(trained) / 2
    assert (tmp_path / "new" / "sum" / "tokenizer.json").is_file()


def test_what_is_not_trained_or_leaves_the_weights_alone_is_not_merged(mine, monkeypatch, tmp_path):
    kept = mine.adapter.rename(tmp_path / "kept")
    with pytest.raises(TunerError, match=r"^The adapter of run mine is gone from its folder\. Train its recipe again"):
        merge.check_mergeable(mine)
    kept.rename(mine.adapter)
    merge.check_mergeable(mine)
    mine._read["recipe.yaml"] = mine.recipe.with_settings({"method.name": "ia3"})
    assert merge.is_mergeable(mine)
    for name, title in (("prefix_tuning", "Prefix tuning"), ("bitfit", "BitFit")):  # of which one depends on the base
        mine._read["recipe.yaml"] = mine.recipe.with_settings({"method.name": name})
        assert not merge.is_mergeable(mine)
        with pytest.raises(TunerError) as caught:
            merge.check_mergeable(mine)
        assert str(caught.value) == (
            f"{title} can't be merged: what run mine learned is not a change of the base model's weights. Use the "
            "adapter with its base model, or train with a method that can be merged, such as LoRA."
        )


def test_evaluation_scores_base_and_adapter_with_intervals_and_keeps_rows(finished):
    scores = finished.read_json("evaluation.json")
    for variant in ("base", "adapter"):
        row = scores[variant]
        assert 0 <= row["rougeL_low"] <= row["rougeL"] <= row["rougeL_high"] <= 1
        assert row["loss"] > 0
    assert scores["gain"]["rougeL"] == pytest.approx(scores["adapter"]["rougeL"] - scores["base"]["rougeL"], abs=2e-4)
    assert (scores["rows"], len(scores["examples"])) == (12, 8)
    assert scores["adapter"]["loss"] < scores["base"]["loss"]


def test_scores_are_recomputed_to_the_same_figures(merged, loaded):
    before = merged.read_json("evaluation.json")
    merged.write_json("evaluation.json", {})
    list(evaluate(merged, loaded))
    again = merged.read_json("evaluation.json")
    seconds = [scores.pop("costs")["base"].pop("seconds") for scores in (before, again)]
    assert all(seconds)
    assert again == before


def test_plain_text_is_judged_by_its_perplexity_everywhere(tmp_path, monkeypatch, capsys):
    from tuner.cli import main
    from tuner.data.sources import read_pasted
    from tuner.ui import actions, progress, render

    monkeypatch.setattr(runs, "RUNS", tmp_path)

    lines = "\n".join(f'{{"text": "please send report {n} by friday, it is due"}}' for n in range(40))
    run = plan.prepare(small_recipe(), read_pasted(lines), path=tmp_path / "run")
    list(train(run))
    scores = run.read_json("evaluation.json")
    assert scores["metric"] == "perplexity"
    assert scores["adapter"]["loss"] < scores["base"]["loss"]
    for variant in ("base", "adapter"):
        assert scores[variant]["perplexity"] == pytest.approx(math.exp(scores[variant]["loss"]), rel=1e-4)
    figures = [f"{scores[variant]['perplexity']:.2f}" for variant in ("base", "adapter")]
    card = render.run_card(run, progress.read(run))
    assert all(figure in card for figure in figures)
    assert "t-bar" not in card
    assert "finished" in render.runs_list([actions.summary(run)], "", "")
    assert (main(["evaluate", "run"]), main(["runs"])) == (0, 0)
    assert all(figure in capsys.readouterr().out for figure in figures[:1])
