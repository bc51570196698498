"""Recipes that strangers paste: every one is refused in a sentence, and none takes noticeable time."""

import pytest
from bounded import done_within, refused_within

from tuner.recipe import Recipe

BILLION_LAUGHS = "a: &a [x]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGED = "a: &a {x: 1}\n" + "".join(
    f"{b}: &{b} {{<<: [{', '.join(['*' + a] * 9)}]}}\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (BILLION_LAUGHS, "the recipe has an anchor (&) or an alias (*) at line 1, column 4."),
        (MERGED, "the recipe has an anchor (&) or an alias (*) at line 1, column 4."),
        ("model: {<<: {name: x}}", "the recipe has a merge key (<<) at line 1, column 9."),
        ("a: *nothing", "the recipe has an anchor (&) or an alias (*) at line 1, column 4."),
        ("seed: !!int 3", "the recipe has a tag (!) at line 1, column 7."),
        ("name: !!python/object/apply:os.system [ls]", "the recipe has a tag (!) at line 1, column 7."),
        ("!!set {a}", "the recipe has a tag (!) at line 1, column 1."),
        ("a: " + "[" * 100_000, "the recipe has more than 10 levels of nesting at line 1, column 13."),
        ("? " * 100_000, "the recipe has more than 10 levels of nesting at line 1, column 21."),
        ("\n".join(" " * i + "a:" for i in range(600)), "more than 10 levels of nesting at line 10,"),
        ("[" + "a," * 200_000 + "]", "the recipe has more than 5,000 values"),
        ("a: b\n" * 60_000, "the recipe has more than 5,000 values"),
        ("".join(f"k{i}: 1\n" for i in range(2000)), "'k0' is not a setting."),
        ("#" * 2**20, "the recipe has more than 524,288 characters."),
        ("seed: " + "1" * 400_000, "seed: "),
        ("seed: 0x" + "f" * 400_000, "seed: "),
        ("seed: 1" + ":1" * 200_000, "seed: "),
        ("seed: 0b_", "seed: "),
        ("seed: 2001-99-99", "seed: "),
        ("seed: 1e999", "seed: "),
        ("budget: {steps: 1e300}", "budget.steps: "),
        ("budget: {epochs: 1e300}", "budget.epochs: "),
        ("budget: {seconds: 1e300}", "budget.seconds: "),
        ("data: {max_length: 1e300}", "data.max_length: "),
        ("data: {heldout: 1e300}", "data.heldout: "),
        ("training: {warmup_steps: 1e300}", "training.warmup_steps: "),
        ("evaluation: {loss_every: 1e300}", "evaluation.loss_every: "),
        ("method: {alpha: 1e300}", "method.alpha: "),
        ('name: "\\ud800"', 'name: "\\ud800" has half a character'),
        ('data: {system: "a\\udfff"}', 'data.system: "a\\udfff" has half a character'),
        ('data: {columns: {"\\ud800": a}}', 'data.columns: "\\ud800" has half a character'),
        ("\ud800", "the recipe is not valid YAML"),
        ("name: \x01", "the recipe is not valid YAML"),
        (f"data: {{system: {'x' * 400_000}}}", "data.system: "),
        (f"model: {{name: {'x' * 400_000}}}", "model.name: "),
        (f"method: {{target_modules: [{'x, ' * 4000}]}}", "method.target_modules: "),
        (f"evaluation: {{metrics: [{'x, ' * 4000}]}}", "evaluation.metrics: "),
        (f"data: {{columns: {{{''.join(f'k{i}: v, ' for i in range(2000))}}}}}", "data.columns: "),
    ],
)
def test_a_recipe_that_can_not_be_meant_is_refused_at_once(text, sentence):
    assert sentence in refused_within(2, Recipe.from_yaml, text)  # the slowest took 0.4 s


def test_values_that_look_like_dates_are_text():
    recipe = Recipe.from_yaml("name: 2001-01-01\ndata: {source: 2001-13-13}")
    assert (recipe.name, recipe.data.source) == ("2001-01-01", "2001-13-13")


def test_the_largest_recipe_is_written_and_read_back():
    wide = "\N{GRINNING FACE}"
    recipe = Recipe().with_settings(
        {
            "data.system": "\x1b" * 30_000,
            "model.name": wide * 8000,
            "data.columns": {f"{wide}{i}": "\x1b" * 8000 for i in range(8)},
            "method.target_modules": [f"{i} " + "q_proj" * 30 for i in range(500)],
        }
    )
    assert done_within(3, Recipe.from_yaml, recipe.to_yaml()) == recipe
