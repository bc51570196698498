"""Recipe: one typed object, YAML both ways, all problems at once."""

import subprocess
import sys

import pytest
import yaml
from conftest import ROOT

from tuner.errors import TunerError
from tuner.recipe import EXAMPLES, Recipe, find


def problems(text: str) -> list[str]:
    with pytest.raises(TunerError) as caught:
        Recipe.from_yaml(text)
    return list(caught.value.problems)


def test_yaml_reads_back_as_the_same_recipe_with_every_default_written_out():
    recipe = Recipe.load("corporate")
    text = recipe.to_yaml()
    assert Recipe.from_yaml(text) == recipe
    assert yaml.safe_load(text)["training"]["warmup_steps"] == recipe.training.warmup_steps


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.yaml")), ids=lambda f: f.name)
def test_shipped_recipes_are_valid(file):
    assert Recipe.load(file).budget


def test_all_problems_are_reported_together_each_with_its_place():
    messages = problems(
        "training: {learning_rate: fast, batchsize: 3}\n"
        "method: {rank: 0}\n"
        "budget: {steps: 3, seconds: 5}\n"
        "model: {quantization: fp2}\n"
        "colour: blue\n"
    )
    assert 'training.learning_rate: "fast" is not a number. Give a number, or auto.' in messages
    assert "'training.batchsize' is not a setting. Did you mean 'batch_size'?" in messages
    assert any(p.startswith("method.rank: 0") and "1" in p for p in messages)
    assert any(p.startswith("budget:") and "exactly one" in p for p in messages)
    assert any(p.startswith("model.quantization:") and "nf4" in p for p in messages)
    assert any(p.startswith("'colour' is not a setting") for p in messages)
    assert len(messages) == 6


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- a", "is not a recipe"),
        ("a: [", "not valid YAML at line 1"),
        ("seed: 1.5", "whole number"),
        ("data: 3", "data: 3"),
        ("budget: {steps: null}", "none given"),
        ("training: {learning_rate: .nan}", "training.learning_rate"),
    ],
)
def test_bad_yaml_gets_a_sentence(text, says):
    (problem,) = problems(text)
    assert says in problem


def test_numbers_written_as_3e_3_are_numbers():
    assert Recipe.from_yaml("training: {learning_rate: 3e-3}").training.learning_rate == 0.003


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("model.name.x", "Did you mean 'name'?"),
        ("data.columns.prompt", "Did you mean 'columns'?"),
        ("a.b", "Choose from: name, task,"),
        ("training.batch size", "Did you mean 'batch_size'?"),
        ("modle.name", "Did you mean 'model'?"),
        ("seed.x", "Did you mean 'seed'?"),
    ],
)
def test_an_unknown_setting_is_named_as_it_was_given(key, hint):
    with pytest.raises(TunerError) as caught:
        Recipe().with_settings({key: 3})
    (problem,) = caught.value.problems
    assert problem.startswith(f"'{key}' is not a setting. ")
    assert hint in problem
    assert "3: is not" not in problems("3: 4")[0]


@pytest.mark.parametrize(
    ("text", "path", "number"),
    [
        ("budget: {steps: 1e3}", "budget.steps", 1000),
        ("seed: 1E6", "seed", 1_000_000),
        ("data: {max_length: 1.5e3}", "data.max_length", 1500),
        ("data: {heldout: 1e2}", "data.heldout", 100),
        ("data: {heldout: 1e-1}", "data.heldout", 0.1),
        ("data: {max_rows: 1e9}", "data.max_rows", 10**9),
        ("name: 1e3", "name", "1e3"),
        ("method: {rank: 8.0}", "method.rank", 8),
    ],
)
def test_whole_numbers_may_be_written_with_an_exponent(text, path, number):
    part, _, leaf = path.rpartition(".")
    recipe = Recipe.from_yaml(text)
    value = getattr(getattr(recipe, part) if part else recipe, leaf)
    assert (value, type(value)) == (number, type(number))


@pytest.mark.parametrize(
    "key", ["budget.steps", "budget.seconds", "seed", "method.rank", "method.alpha", "data.heldout"]
)
def test_yes_and_endless_numbers_are_no_numbers(key):
    for given in (True, "1e400", "1e3000000000"):
        with pytest.raises(TunerError, match=f"^{key}: "):
            Recipe().with_settings({key: given})
    with pytest.raises(TunerError, match=rf"^{key}: true is not a (whole )?number\."):
        Recipe().with_settings({key: True})


def test_naming_one_budget_takes_back_the_other():
    recipe = Recipe.load("corporate").with_settings({"budget.seconds": "20"})
    assert (recipe.budget.steps, recipe.budget.epochs, recipe.budget.seconds) == (None, None, 20.0)
    assert Recipe.from_yaml("budget: {epochs: 2}").budget.model_dump() == {"steps": None, "epochs": 2, "seconds": None}
    kept = recipe.with_settings({"method.rank": 3, "seed": 4})
    assert (kept.budget, kept.method.rank, kept.seed) == (recipe.budget, 3, 4)
    assert kept.method.model_copy(update={"rank": "auto"}) == recipe.method


def test_a_shipped_name_is_found_from_any_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("corporate", "corporate.yaml", "examples/corporate.yaml"):
        assert find(name) == EXAMPLES / "corporate.yaml"
    with pytest.raises(TunerError, match=r"'nowhere'.*corporate"):
        find("nowhere")
    for typo in ("nope/corporate.yaml", tmp_path / "corporate.yaml", "nope/corporate", "m" * 300, "/" + "m" * 5000):
        with pytest.raises(TunerError, match="There is no recipe"):
            find(typo)
    (tmp_path / "corporate.yaml").write_text("seed: 7\n")  # one's own goes first
    assert Recipe.load("corporate.yaml").seed == 7
    assert Recipe.load("corporate").seed == Recipe.load(EXAMPLES / "corporate.yaml").seed != 7


def test_reading_a_recipe_or_listing_methods_imports_nothing_heavy():
    code = (
        "import sys; from tuner import runs; from tuner.recipe import Recipe\n"
        "from tuner.methods.registry import METHODS\n"
        "Recipe.load('corporate'); list(METHODS)\n"
        "heavy = ('torch', 'transformers', 'peft', 'trl', 'datasets', 'gradio', 'spaces')\n"
        "print([m for m in heavy if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
