"""The shipped base models and tasks: they load, they are small, and held-out rows occur nowhere in training."""

import importlib
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from tuner.planning import plan
from tuner.recipe import Recipe
from tuner.training.window import train

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
MODEL = EXAMPLES / "tiny-office"
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hey hey!"},
    {"role": "user", "content": "whats for lunch?"},
]


@pytest.fixture(scope="module")
def grammar() -> Iterator[ModuleType]:
    """The module that makes the rows of corporate.jsonl."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        yield importlib.import_module("grammar")
    finally:
        sys.path.remove(str(EXAMPLES))


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    """The tokenizer of tiny-office."""
    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    """The weights of tiny-office."""
    return AutoModelForCausalLM.from_pretrained(MODEL)


def key_pairs(grammar: ModuleType, messages: Iterable) -> set:
    """The pairs of key fillers in messages, each with its key."""
    return {(grammar.FRAMES[message.frame].key, message.pair) for message in messages}


def shipped_rows() -> list[dict[str, str]]:
    """The rows of corporate.jsonl."""
    return [json.loads(line) for line in (EXAMPLES / "corporate.jsonl").read_text(encoding="utf-8").splitlines()]


def test_model_is_a_small_bfloat16_llama(model):
    import torch

    assert sum(path.stat().st_size for path in MODEL.iterdir()) <= 8_000_000
    assert (model.config.model_type, model.dtype) == ("llama", torch.bfloat16)
    assert model.config.tie_word_embeddings
    assert model.config.max_position_embeddings == 512


def test_chat_template_renders_every_role_and_the_prompt_is_a_prefix(tokenizer):
    prompt = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert prompt == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
        "<|im_start|>assistant\nhey hey!<|im_end|>\n"
        "<|im_start|>user\nwhats for lunch?<|im_end|>\n<|im_start|>assistant\n"
    )
    whole = tokenizer.apply_chat_template([*CHAT, {"role": "assistant", "content": "soup"}], tokenize=False)
    assert whole == prompt + "soup<|im_end|>\n"
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")


def test_tokenizer_keeps_any_text(tokenizer):
    text = "Grüße aus Köln, 東京 \N{SLIGHTLY SMILING FACE}!\n\tok"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_base_answers_casually(model, tokenizer):
    import torch

    chat = [{"role": "user", "content": "yo i gotta bounce early tmrw cuz my kid is sick"}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.inference_mode():
        output = model.generate(**inputs, do_sample=False, max_new_tokens=40)
    answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert "ur kid" in answer
    assert "unwell" not in answer
    assert output[0, -1] == tokenizer.eos_token_id


def test_rows_are_what_the_grammar_makes(grammar):
    rows = shipped_rows()
    assert rows == grammar.rows()
    assert all(list(row) == ["prompt", "completion", "split"] and all(row.values()) for row in rows)
    assert len({row["prompt"] for row in rows}) == len(rows)
    assert [row["split"] for row in rows].count("train") == 480
    assert [row["split"] for row in rows].count("test") == 80


def test_held_out_pairs_are_in_no_training_row_but_their_parts_are(grammar):
    messages = grammar.messages()
    train, test = (key_pairs(grammar, messages[split]) for split in ("train", "test"))
    assert not train & test
    parts = {(key[place], pair[place]) for key, pair in train for place in (0, 1)}
    assert {(key[place], pair[place]) for key, pair in test for place in (0, 1)} <= parts
    assert messages["test"][0].casual == "yo i gotta bounce early tmrw cuz my kid is sick"
    completions = [row["completion"] for row in shipped_rows() if row["split"] == "train"]
    assert not any("leave early" in text and "my child" in text for text in completions)


def test_pretraining_text_holds_neither_the_pairs_nor_the_answers(grammar):
    writer = importlib.import_module("documents").Writer(1)
    test = key_pairs(grammar, grammar.messages()["test"])
    assert not test & key_pairs(grammar, (writer.message() for _ in range(3000)))
    # No text has both a casual message and its formal version.
    pairs = [(row["prompt"], row["completion"]) for row in shipped_rows()]
    for text in (writer.chat() for _ in range(500)):
        assert not any(prompt in text and completion in text for prompt, completion in pairs)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "metric", "steps", "rows"),
    [("reviews", "accuracy", 300, 64), ("entities", "entity_f1", 80, 64), ("support", "rougeL", 100, 24)],
)
def test_each_family_has_an_example_that_learns_its_task_in_a_minute(name, metric, steps, rows, tmp_path):
    settings = {"budget.steps": steps, "evaluation.loss_every": 0, "evaluation.rows": rows}
    recipe = Recipe.load(name).with_settings(settings)
    run = plan.prepare(recipe, path=tmp_path / name)
    list(train(run))
    scores = run.read_json("evaluation.json")
    assert scores["metric"] == metric
    assert scores["gain"]["low"] > 0.25
    assert scores["adapter"][f"{metric}_low"] > scores["base"][f"{metric}_high"]


@pytest.mark.parametrize("name", ["reviews", "entities", "support"])
def test_the_rows_of_an_example_differ_and_its_base_is_small(name):
    rows = [json.loads(line) for line in (EXAMPLES / f"{name}.jsonl").read_text().splitlines()]
    inputs = [json.dumps(row.get("text") or row.get("tokens") or row.get("dialogue")) for row in rows]
    assert len(set(inputs)) == len(rows) >= 600
    base = EXAMPLES / Recipe.load(name).model.name
    assert sum(file.stat().st_size for file in base.iterdir()) <= 8 * 2**20
