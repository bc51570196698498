"""Recipe: one typed object, YAML both ways, all problems at once."""

import subprocess
import sys

import pytest
import yaml
from conftest import ROOT

from tuner.errors import TunerError
from tuner.recipe import EXAMPLES, Recipe, find

ENGLAND, SCOTLAND = ("".join(chr(0xE0000 + ord(c)) for c in code) for code in ("gbeng", "gbsct"))  # in their flags


def problems(text: str) -> list[str]:
    with pytest.raises(TunerError) as caught:
        Recipe.from_yaml(text)
    return list(caught.value.problems)


def test_yaml_reads_back_as_the_same_recipe_with_every_default_written_out():
    recipe = Recipe.load("corporate")
    text = recipe.to_yaml()
    assert Recipe.from_yaml(text) == recipe
    assert yaml.safe_load(text)["training"]["warmup_steps"] == recipe.training.warmup_steps


def test_a_text_that_was_read_before_is_not_read_again():
    text = Recipe.load("corporate").to_yaml()
    assert Recipe.from_yaml(text) is Recipe.from_yaml(text)
    assert Recipe.from_yaml(f"{text}\n# another") is not Recipe.from_yaml(text)


@pytest.mark.parametrize("file", sorted(EXAMPLES.glob("*.yaml")), ids=lambda f: f.name)
def test_shipped_recipes_are_valid(file):
    assert Recipe.load(file).budget


def test_all_problems_are_reported_together_each_with_its_place():
    messages = problems(
        "training: {learning_rate: fast, batchsize: 3}\n"
        "method: {rank: 0}\n"
        "budget: {steps: 3, seconds: 5}\n"
        "model: {quantization: fp2}\n"
        "color: blue\n"
    )
    assert 'training.learning_rate: "fast" is not a number. Give a number, or auto.' in messages
    assert "'training.batchsize' is not a setting. Did you mean 'batch_size'?" in messages
    assert any(p.startswith("method.rank: 0") and "1" in p for p in messages)
    assert any(p.startswith("budget:") and "at most one" in p for p in messages)
    assert any(p.startswith("model.quantization:") and "nf4" in p for p in messages)
    assert any(p.startswith("'color' is not a setting") for p in messages)
    assert len(messages) == 6


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- a", "is not a recipe"),
        ("a: [", "not valid YAML at line 1"),
        ("seed: 1.5", "whole number"),
        ("data: 3", "data: 3"),
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


# -- every setting

DEFAULTS = {
    "name": None,
    "task": "auto",
    "model": {"name": "tiny-office", "revision": None, "quantization": "nf4", "dtype": "auto"},
    "data": {
        "source": "corporate.jsonl",
        "config": None,
        "split": None,
        "heldout_split": None,
        "heldout": "auto",
        "format": "auto",
        "columns": {},
        "header": "auto",
        "encoding": "auto",
        "empty": "refuse",
        "system": None,
        "max_rows": None,
        "seed": None,
        "max_length": "auto",
    },
    "method": {"name": "lora"}
    | dict.fromkeys(("rank", "alpha", "dropout", "target_modules", "virtual_tokens", "bottleneck", "layers"), "auto")
    | {"start_from": None},
    "training": {
        "learning_rate": "auto",
        "batch_size": "auto",
        "warmup_steps": 10,
        "scheduler": "linear",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "loss_on": "completion",
        "checkpoint_seconds": "auto",
        "keep": "best",
        "patience": "auto",
    },
    "budget": {"steps": None, "epochs": None, "seconds": None},
    "evaluation": {
        "rows": 64,
        "max_new_tokens": "auto",
        "metrics": "auto",
        "few_shot": "auto",
        "seconds": None,
        "loss_every": "auto",
    },
    "tracking": "none",
    "seed": 0,
}


def test_the_defaults_are_written_out_in_their_order():
    text = Recipe().to_yaml()
    assert yaml.safe_load(text) == DEFAULTS
    keys = [line.split(":")[0].strip() for line in text.splitlines()]
    parts = [[name, *part] if isinstance(part, dict) else [name] for name, part in DEFAULTS.items()]
    assert keys == [key for part in parts for key in part]
    named = Recipe(name="Größe").with_settings({"data.columns": {"prompt": "q", "completion": "a"}})
    assert "name: Größe\n" in named.to_yaml()
    assert Recipe.from_yaml(named.to_yaml()) == named


AUTO = "auto"
WHOLE, NUMBER = "is not a whole number. Give a whole number, or", "is not a number. Give a number, or"
MODULES = [AUTO, "all-linear", ["q_proj", "v_proj"], []]


@pytest.mark.parametrize(
    ("key", "taken", "refused"),
    [
        ("name", [None, "x" * 80], {"x" * 81: "can't be used: String should have at most 80 characters."}),
        ("model.name", ["x"], {"": "can't be used: String should have at least 1 character."}),
        (
            "model.quantization",
            ["nf4", "int8", "none"],
            {"int4": "can't be used: it must be 'nf4', 'int8' or 'none'."},
        ),
        (
            "model.dtype",
            [AUTO, "float32", "bfloat16", "float16"],
            {"fp8": "can't be used: it must be 'auto', 'float32', 'bfloat16' or 'float16'."},
        ),
        ("data.source", ["x"], {"": "can't be used: String should have at least 1 character."}),
        (
            "data.heldout",
            [AUTO, 0.001, 0.999, 1, 5000],
            {
                0: "can't be used: it must be greater than 0.",
                1.5: "can't be used: it must be less than 1.",
                "x": f"{NUMBER} auto.",
            },
        ),
        (
            "data.max_rows",
            [None, 1, 10**9],
            {0: "can't be used: it must be at least 1.", "x": f"{WHOLE} leave it out."},
        ),
        (
            "data.seed",
            [None, 0, 2**31 - 1],
            {-1: "can't be used: it must be at least 0.", "x": f"{WHOLE} leave it out."},
        ),
        ("data.max_length", [AUTO, 8], {7: "can't be used: it must be at least 8.", "x": f"{WHOLE} auto."}),
        (
            "method.rank",
            [AUTO, 1, 1024],
            {
                0: "can't be used: it must be at least 1.",
                1025: "can't be used: it must be at most 1024.",
                2.5: f"{WHOLE} auto.",
            },
        ),
        ("method.alpha", [AUTO, 0.5, 2000], {0: "can't be used: it must be greater than 0.", "x": f"{NUMBER} auto."}),
        (
            "method.dropout",
            [AUTO, 0, 0.99],
            {-0.1: "can't be used: it must be at least 0.", 1: "can't be used: it must be less than 1."},
        ),
        ("method.target_modules", MODULES, {"x": "can't be used: it must be a valid list."}),
        (
            "method.virtual_tokens",
            [AUTO, 1, 512],
            {0: "can't be used: it must be at least 1.", 513: "can't be used: it must be at most 512."},
        ),
        (
            "method.bottleneck",
            [AUTO, 1, 1024],
            {0: "can't be used: it must be at least 1.", 1025: "can't be used: it must be at most 1024."},
        ),
        (
            "method.layers",
            [AUTO, 1, 200],
            {0: "can't be used: it must be at least 1.", 201: "can't be used: it must be at most 200."},
        ),
        (
            "training.learning_rate",
            [AUTO, 1e-9, 1],
            {
                0: "can't be used: it must be greater than 0.",
                1e-320: "can't be used: it must be at least 1e-30.",
                1.01: "can't be used: it must be at most 1.",
            },
        ),
        (
            "training.batch_size",
            [AUTO, 1, 1024],
            {0: "can't be used: it must be at least 1.", 1025: "can't be used: it must be at most 1024."},
        ),
        (
            "training.warmup_steps",
            [0, 5],
            {-1: "can't be used: it must be at least 0.", 1.5: f"{WHOLE} leave it out."},
        ),
        (
            "training.scheduler",
            ["linear", "cosine", "constant"],
            {"x": "can't be used: it must be 'linear', 'cosine' or 'constant'."},
        ),
        ("training.weight_decay", [0, 0.5, 3], {-0.1: "can't be used: it must be at least 0."}),
        (
            "training.max_grad_norm",
            [0.1, 5],
            {
                0: "can't be used: it must be greater than 0.",
                1e-46: "can't be used: it must be at least 1e-30.",
                "x": f"{NUMBER} leave it out.",
            },
        ),
        (
            "training.loss_on",
            ["completion", "last", "all"],
            {"x": "can't be used: it must be 'completion', 'last' or 'all'."},
        ),
        ("training.checkpoint_seconds", [AUTO, 0.5], {0: "can't be used: it must be greater than 0."}),
        ("budget.steps", [1, "1e3"], {0: "can't be used: it must be at least 1.", 2.5: f"{WHOLE} leave it out."}),
        ("budget.epochs", [0.5, 7], {0: "can't be used: it must be greater than 0.", "x": f"{NUMBER} leave it out."}),
        ("budget.seconds", [0.5, 7], {0: "can't be used: it must be greater than 0."}),
        (
            "evaluation.rows",
            [1, 2000],
            {0: "can't be used: it must be at least 1.", 2001: "can't be used: it must be at most 2000."},
        ),
        (
            "evaluation.max_new_tokens",
            [1, 2048],
            {0: "can't be used: it must be at least 1.", 2049: "can't be used: it must be at most 2048."},
        ),
        ("evaluation.metrics", [AUTO, "f1", ["f1", "bleu"]], {3: "can't be used: it must be a valid string."}),
        (
            "evaluation.few_shot",
            [AUTO, 0, 32],
            {-1: "can't be used: it must be at least 0.", 33: "can't be used: it must be at most 32."},
        ),
        (
            "evaluation.seconds",
            [None, 0.5],
            {0: "can't be used: it must be greater than 0.", "long": f"{NUMBER} leave it out."},
        ),
        ("evaluation.loss_every", [AUTO, 0, 1], {-1: "can't be used: it must be at least 0."}),
        ("training.patience", [AUTO, 0, 1], {-1: "can't be used: it must be at least 0."}),
        ("training.keep", ["best", "last"], {"first": "can't be used: it must be 'best' or 'last'."}),
        (
            "seed",
            [0, 2**31 - 1],
            {-1: "can't be used: it must be at least 0.", 2**31: "can't be used: it must be less than 2147483648."},
        ),
    ],
)
def test_what_each_setting_may_be(key, taken, refused):
    part, _, leaf = key.rpartition(".")
    for value in taken:
        recipe = Recipe().with_settings({key: value})
        given = 1000 if value == "1e3" else value
        assert getattr(getattr(recipe, part) if part else recipe, leaf) == given
        assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    for value, sentence in refused.items():
        with pytest.raises(TunerError) as caught:
            Recipe().with_settings({key: value})
        shown = f'"{value}"'[:80] if isinstance(value, str) else value
        assert str(caught.value) == f"{key}: {shown} {sentence}"


PARTS = "name, task, model, data, method, training, budget, evaluation, tracking, seed."


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("null", "r.yaml is not a recipe. Give settings by name, such as 'budget: {steps: 300}'."),
        (
            "seed: 1\n  a: [",
            "r.yaml is not valid YAML at line 2, column 4: mapping values are not allowed here. Fix it there.",
        ),
        (
            "seed: 1\n\na: [",
            "r.yaml is not valid YAML at line 3, column 5: expected the node content, but found '<stream end>'. Fix "
            "it there.",
        ),
        (
            "seed: \0",
            "r.yaml is not valid YAML: unacceptable character #x0000: special characters are not allowed. Fix it "
            "there.",
        ),
        ("1: 2", f"'1' is not a setting. Choose from: {PARTS}"),
        ("color: 2", f"'color' is not a setting. Choose from: {PARTS}"),
        ("modle: 2", "'modle' is not a setting. Did you mean 'model'?"),
        ("model: {nme: a}", "'model.nme' is not a setting. Did you mean 'name'?"),
        ("model: {x: a}", "'model.x' is not a setting. Choose from: name, revision, quantization, dtype."),
        ("model: a", 'model: "a" can\'t be used. Put its settings under it, one per line.'),
        ("model:", "model: null can't be used. Put its settings under it, one per line."),
        ("data: {columns: {text: 1}}", "data.columns.text: 1 can't be used: it must be a valid string."),
        ("seed: 2000-01-01", f'seed: "2000-01-01" {WHOLE} leave it out.'),
        ("training: {learning_rate: }", f"training.learning_rate: null {NUMBER} auto."),
        ("method: {alpha: [1]}", f"method.alpha: [1] {NUMBER} auto."),
        ("method: {target_modules: [a, 1]}", "method.target_modules: 1 can't be used: it must be a valid string."),
        ("evaluation: {rows: 1e-3}", f'evaluation.rows: "1e-3" {WHOLE} leave it out.'),
        ("evaluation: {rows: 1.5e0}", f'evaluation.rows: "1.5e0" {WHOLE} leave it out.'),
        ("evaluation: {rows: ١e1}", f'evaluation.rows: "\\u0661e1" {WHOLE} leave it out.'),
        (
            "budget: {steps: 1, seconds: 2}",
            "budget: give at most one of steps, epochs and seconds (steps, seconds given).",
        ),
        (
            "budget: {steps: 1, epochs: 3, seconds: 2}",
            "budget: give at most one of steps, epochs and seconds (steps, epochs, seconds given).",
        ),
    ],
)
def test_what_is_said_of_a_recipe_that_can_not_be_read(text, sentence):
    with pytest.raises(TunerError) as caught:
        Recipe.from_yaml(text, "r.yaml")
    assert str(caught.value) == sentence


def test_settings_are_changed_by_their_names_and_the_others_stay():
    recipe = Recipe.load("corporate")
    changed = recipe.with_settings(
        {"model.name": "a/b", "name": "x", "seed": " +1E+2 ", "data.columns": {"text": "t"}}
    )
    assert (changed.model.name, changed.name, changed.seed) == ("a/b", "x", 100)
    rest = {"name": recipe.name, "seed": recipe.seed, "model": recipe.model.model_dump()}
    data = recipe.data.model_dump()
    assert changed.with_settings(rest | {"data": data}) == recipe
    budgets = [{"budget.steps": 7, "budget.epochs": 2}, {"budget": {"epochs": 2}}, {"budget.epochs": "2"}]
    for settings in budgets:
        assert recipe.with_settings(settings).budget.model_dump() == {"steps": None, "epochs": 2, "seconds": None}
    for part, name, value in ((recipe, "seed", 3), (recipe.model, "name", "a/b")):
        with pytest.raises(ValueError, match="frozen"):
            setattr(part, name, value)


def test_what_is_said_of_a_recipe_that_can_not_be_found_or_decoded(tmp_path):
    with pytest.raises(TunerError) as caught:
        Recipe.load("corprate")
    names = ", ".join(sorted(file.stem for file in EXAMPLES.glob("*.yaml")))
    remedy = "Give a YAML file, a file of rows, or a shipped recipe:"
    assert str(caught.value) == f"There is no recipe 'corprate'. {remedy} {names}."
    path = tmp_path / "mine.yaml"
    path.write_bytes(b"name: caf\xe9\n")
    for given in (path, str(path)):
        with pytest.raises(TunerError) as caught:
            Recipe.load(given)
        assert str(caught.value) == "mine.yaml is not UTF-8 text. Give a recipe in YAML."
    path.write_text("- a")
    with pytest.raises(TunerError, match=r"^mine\.yaml is not a recipe\."):
        Recipe.load(path)
    path.write_text("name: café", encoding="utf-8")
    assert Recipe.load(path).name == "café"
    for settings in (None, [], "a"):
        with pytest.raises(TunerError, match=r"^the recipe is not a recipe\."):
            Recipe.parse(settings)


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("\u202egpj.exe\u202c", "gpj.exe"),  # which would be read from right to left
        ("a\u200bb\u2066c\ufeff\u00ad", "abc"),
        ("two\nlines\x1b[2J", "two lines[2J"),
        ("\u200d\u2063", ""),
        (
            "\U0001f469\u200d\U0001f52c \u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
            ...,
        ),  # where a joiner is part of a letter
        ("Grüße 東京 مرحبا", ...),
        *((c, "") for c in "\u3164\u2800\u115f\u1160\uffa0\ufe0f\u034f\u180b\u17b4\U000e0100\u2065"),
        ("\u3164 \u2800\ufe0f \u034f", ""),
        (" \u200d ", ""),
        ("\u200d \u200c", ""),
        ("\u200b a \u200d \u200b", "a"),
        ("a \u200b b", "a b"),
        ("\u2764\ufe0f \U0001f1e9\U0001f1ea \ud55c\u3164\uae00 \u2803", ...),
        *((f"a \U0001f3f4{tags}\U000e007f", ...) for tags in (ENGLAND, SCOTLAND)),
        (f"{ENGLAND}\U000e007f", ""),
        (f"a \U0001f3f4{ENGLAND * 4} b{SCOTLAND}\U000e007f", "a \U0001f3f4 b"),  # a text that nobody sees
    ],
)
def test_a_runs_name_has_no_characters_that_nobody_sees(given, name):
    read = Recipe.parse({"name": given})
    assert read.name == (given if name is ... else name)
    assert Recipe.from_yaml(read.to_yaml()) == read
