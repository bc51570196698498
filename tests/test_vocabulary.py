"""A token that the model has no embedding for is told before a GPU sees it, which it would break for good."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from conftest import small_recipe
from tiny import tiny_model

from tuner.data import parse
from tuner.errors import TunerError
from tuner.inference import generate, predict
from tuner.models.fetch import fetch_model
from tuner.models.shape import Base, load_tokenizer, shape_of
from tuner.planning import forecast, plan
from tuner.recipe import Model

EXTRA = "<|extra|>"
SENTENCE = (
    "The token '<|extra|>' has the id {id}, but this model knows only {size} tokens, with ids up to {last}: its "
    "tokenizer was made for another model. Leave that token out of the text, or choose a model with a tokenizer of "
    "its own."
)


def with_extra_token(folder: Path, **roles: str) -> int:
    """Give the tokenizer in the folder a token that its model does not know; returns its id."""
    tokenizer = load_tokenizer(folder)
    tokenizer.add_special_tokens({"extra_special_tokens": [EXTRA], **roles})
    tokenizer.save_pretrained(folder)
    return tokenizer.convert_tokens_to_ids(EXTRA)


def sentence(size: int, id: int) -> str:
    return SENTENCE.format(id=id, size=size, last=size - 1)


@pytest.fixture(autouse=True)
def no_estimate(monkeypatch):
    """Memory has tests of its own."""
    monkeypatch.setattr(forecast, "estimate_memory", lambda *args: {"activations": 1, "logits": 1, "total": 2})


def problem_with(folder: Path, row: dict, *, task: str = "auto") -> str | None:
    """What a check of a model in this folder says about rows of which one is this."""
    names = list(row)
    plain = [dict(zip(names, (f"do task {i}.", ["good", "bad"][i % 2]))) for i in range(30)]
    recipe = small_recipe(model__name=str(folder), model__quantization="none", data__max_rows=None, task=task)
    table = parse.Table("rows.csv", names, [*plain[:3], row, *plain[3:]])
    try:
        plan.check(recipe, table)
    except TunerError as error:
        (problem,) = error.problems
        return problem
    return None


@pytest.mark.parametrize("family", ["llama", "t5"])
@pytest.mark.parametrize("column", ["prompt", "completion"])
def test_rows_with_a_token_beyond_the_embedding_are_refused_before_training(tmp_path, family, column):
    folder = tiny_model(tmp_path / family, family)
    size = json.loads((folder / "config.json").read_text())["vocab_size"]
    row = {"prompt": "do it", "completion": "Please do it."}
    assert with_extra_token(folder) == size
    assert problem_with(folder, row) is None
    assert problem_with(folder, row | {column: f"odd {EXTRA} text"}) == sentence(size, size)


def test_rows_to_classify_are_checked_and_their_labels_are_no_tokens(tmp_path):
    folder = tiny_model(tmp_path / "bert", "bert")
    size = with_extra_token(folder)
    assert problem_with(folder, {"text": f"odd {EXTRA}", "label": "bad"}) == sentence(size, size)
    assert problem_with(folder, {"text": "odd", "label": "bad"}) is None


def test_padding_is_read_by_the_model_and_so_it_is_checked(tmp_path):
    folder = tiny_model(tmp_path / "llama")
    size = with_extra_token(folder, pad_token=EXTRA)
    assert problem_with(folder, {"prompt": "do it", "completion": "Done."}) == sentence(size, size)


def test_a_prompt_with_such_a_token_is_refused_before_it_goes_to_the_device(tmp_path, monkeypatch):
    folder = tiny_model(tmp_path / "llama")
    size = with_extra_token(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer, sampling = load_tokenizer(folder), generate.Sampling(max_new_tokens=2)
    assert len(generate.generate(model, tokenizer, ["hey"], sampling)) == 1
    monkeypatch.setattr(transformers.BatchEncoding, "to", None)
    with pytest.raises(TunerError) as caught:
        generate.generate(model, tokenizer, ["hey", f"odd {EXTRA} text"], sampling)
    assert str(caught.value) == sentence(size, size)


def test_a_text_to_classify_with_such_a_token_is_refused_before_it_goes_to_the_device(tmp_path, monkeypatch):
    folder = tiny_model(tmp_path / "bert", "bert")
    size = with_extra_token(folder)
    model = Model(name=str(folder))
    base = Base(fetch_model(model, folder), model, "classification", ("good", "bad"))
    assert shape_of(base).vocabulary == size
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    tokenizer = load_tokenizer(folder)
    assert len(predict.predict(loaded, tokenizer, base, ["fine"])) == 1
    monkeypatch.setattr(torch.Tensor, "to", None)
    with pytest.raises(TunerError) as caught:
        predict.predict(loaded, tokenizer, base, [f"odd {EXTRA}"])
    assert str(caught.value) == sentence(size, size)
