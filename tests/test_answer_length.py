"""The longest answer is chosen from the references, unless the recipe names it; everything follows the choice."""

import json

import pytest
from conftest import small_recipe
from recorded import recorded
from tables import table
from tiny import tiny_model

from tuner.errors import TunerError
from tuner.evaluation import answers
from tuner.hub import card
from tuner.models.shape import load_tokenizer, shape_of
from tuner.planning import plan
from tuner.planning.answering import answer_limit
from tuner.planning.pace import token_seconds
from tuner.recipe import Recipe
from tuner.runs import Run

pytestmark = pytest.mark.usefixtures("no_estimates")


def planned(lengths: list[int], folder, family: str = "llama", **settings) -> plan.Checked:
    """A plan whose held-out references have so many tokens, each a digit."""
    base = tiny_model(folder / family, family)
    columns = ["prompt", "completion"] if family == "llama" else ["dialogue", "summary"]
    pairs = [(f"q {n}", "7" * 30) for n in range(20)] + [(f"held {i}", "7" * n) for i, n in enumerate(lengths)]
    rows = table(columns, *pairs, splits=["train"] * 20 + ["validation"] * len(lengths))
    changed = {"model.name": str(base), "data.max_rows": None, "evaluation.max_new_tokens": "auto"}
    return plan.check(small_recipe(**settings).with_settings(changed), rows)


def chosen(checked: plan.Checked) -> tuple[int, str]:
    (choice,) = [c for c in checked.plan["chosen"] if c["setting"] == "max_new_tokens"]
    assert checked.plan["settings"]["max_new_tokens"] == choice["value"]
    return choice["value"], choice["reason"]


SAID = "95% of the references have at most"


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([30] * 19 + [90], (31, f"{SAID} 31 tokens")),  # with the end token
        ([30] * 18 + [40, 90], (41, f"{SAID} 41 tokens")),
        ([50] + [20] * 10, (51, f"{SAID} 51 tokens")),
        ([3] * 8, (16, f"{SAID} 4 tokens, and 16 are the fewest")),
        ([450] * 8, (384, f"{SAID} 451 tokens, and there is room for 384")),  # a prompt keeps a quarter
    ],
    ids=["one of twenty is longer", "two are", "few rows", "short", "beyond the room"],
)
def test_it_is_as_long_as_95_percent_of_the_references(lengths, expected, tmp_path):
    assert chosen(planned(lengths, tmp_path, evaluation__rows=64)) == expected


def test_only_references_of_rows_that_are_scored_are_measured(tmp_path):
    checked = planned([*range(20, 36)], tmp_path, evaluation__rows=4)
    scored = [len(row["messages"][-1]["content"]) for row in checked.split.heldout[:4]]
    assert chosen(checked)[0] == max(scored) + 1 < 36


def test_an_encoder_decoders_references_are_measured_as_its_targets(tmp_path):
    checked = planned([30] * 8, tmp_path, "t5")
    assert chosen(checked)[0] == len(load_tokenizer(tmp_path / "t5")("7" * 30)["input_ids"]) == 32


@pytest.mark.parametrize("loss_on", ["completion", "all"])
def test_what_is_learned_from_does_not_change_it(tmp_path, loss_on):
    assert chosen(planned([30] * 8, tmp_path, training__loss_on=loss_on))[0] == 31


def test_a_recipes_own_figure_is_kept(tmp_path):
    checked = planned([30] * 8, tmp_path)
    given = checked.recipe.with_settings({"evaluation.max_new_tokens": 7})
    rows = table(["prompt", "completion"], *[(f"q {n}", "7" * 30) for n in range(20)])
    assert chosen(plan.check(given, rows)) == (7, "as given")
    with pytest.raises(TunerError, match="max_new_tokens"):
        given.with_settings({"evaluation.max_new_tokens": 2049})


def test_plain_text_has_nothing_to_measure_and_a_classifier_writes_nothing(tmp_path):
    base = tiny_model(tmp_path / "llama")
    text = table(["text"], *[(f"once upon {n}",) for n in range(20)])
    settings = {"model.name": str(base), "evaluation.max_new_tokens": "auto"}
    assert chosen(plan.check(small_recipe().with_settings(settings), text)) == (64, "there is no reference to measure")
    labeled = table(["text", "label"], *[(f"it is {n}", "good" if n % 2 else "bad") for n in range(20)])
    checked = plan.check(small_recipe().with_settings(settings), labeled)
    assert checked.base.task == "classification"
    assert "max_new_tokens" not in checked.plan["settings"]
    assert "end_tokens" not in checked.plan


def test_the_estimate_follows_the_choice(tmp_path):
    short, long = (planned([n] * 8, tmp_path, evaluation__rows=8).plan["forecast"] for n in (20, 200))
    a_token = token_seconds(shape_of(planned([20] * 8, tmp_path, evaluation__rows=8).base), 16)  # of base and adapter
    assert long["scoring"] - short["scoring"] == pytest.approx(180 * a_token, rel=0.01)


def test_scoring_and_card_follow_the_choice(tmp_path):
    settings = {"evaluation.max_new_tokens": "auto"}
    run = recorded(tmp_path, settings)
    run.write_json("plan.json", run.plan | {"settings": run.plan.get("settings", {}) | {"max_new_tokens": 41}})
    run = Run(run.path)
    assert answer_limit(run) == 41
    assert "max_new_tokens=41" in card.card(run, "alice/office")
    assert "up to 41 tokens" in card.card(run, "alice/office")
    assert answers.answer_limit is answer_limit


def test_a_run_of_an_earlier_version_keeps_the_figure_in_its_recipe(tmp_path):
    run = recorded(tmp_path, {"evaluation.max_new_tokens": 33})
    entries = json.loads((run.path / "plan.json").read_text())
    entries["settings"].pop("max_new_tokens", None)
    run.write_json("plan.json", entries)
    assert answer_limit(Run(run.path)) == 33


def test_the_shipped_recipes_keep_theirs():
    figures = {name: Recipe.load(name).evaluation.max_new_tokens for name in ("corporate", "support")}
    assert figures == {"corporate": 64, "support": 64}
