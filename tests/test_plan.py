"""A recipe and its rows before a run: steps, defaults, warnings, limits and the files that are written."""

import json
import re

import pytest
from conftest import plain, small_recipe
from tiny import tiny_model

from tuner import runs
from tuner.data import parse
from tuner.errors import TunerError
from tuner.planning import forecast, plan
from tuner.planning.method_costs import method_costs
from tuner.recipe import Recipe
from tuner.terminal import plan_text
from tuner.ui.plan_card import plan_card


@pytest.fixture(autouse=True)
def no_earlier_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "RUNS", tmp_path / "runs")


def table(count: int, words: str = "do task") -> parse.Table:
    rows = [{"prompt": f"{words} {i}", "completion": f"Please do task {i}."} for i in range(count)]
    return parse.Table("rows.csv", ["prompt", "completion"], rows)


def planned(rows: int | parse.Table = 40, **settings) -> dict:
    """The plan of the default recipe with these settings ("__" for the dot), on so many rows."""
    recipe = Recipe().with_settings({k.replace("__", "."): v for k, v in settings.items()})
    return plan.check(recipe, table(rows) if isinstance(rows, int) else rows).plan


def chosen(plan: dict, *settings: str) -> dict:
    """Each setting's value, which is also the one that training will take where training takes it."""
    values = {choice["setting"]: choice["value"] for choice in plan["chosen"]}
    assert plan["settings"].items() <= values.items()
    return {setting: values[setting] for setting in settings}


def reasons(plan: dict) -> dict[str, str]:
    return {choice["setting"]: choice["reason"] for choice in plan["chosen"]}


@pytest.fixture
def long_context(tmp_path, monkeypatch):
    """The base is a model with room for 4,096 tokens."""
    folder = tiny_model(tmp_path / "long")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096}))
    monkeypatch.setattr(plan, "fetch_model", lambda model, own_folder=None: folder)


# -- steps


@pytest.mark.parametrize(
    ("epochs", "steps", "passes"),
    [(1, 3, 1.0), (2, 6, 2.0), (1.4, 4, 1.33), (1.6, 5, 1.67), (0.01, 1, 0.33), (0.6, 2, 0.67)],
)
def test_epochs_are_rounded_to_the_nearest_step_and_to_at_least_one(epochs, steps, passes):
    done = planned(40, budget__epochs=epochs, training__batch_size=16)
    assert (done["rows"], done["heldout_rows"]) == (36, 4)
    assert done["steps_per_epoch"] == 3  # the last has 4 rows
    assert (done["steps"], done["epochs"], done["seconds"]) == (steps, passes, None)
    assert done["forecast"]["steps"] == steps


def test_steps_are_taken_as_given_and_seconds_say_nothing_of_them():
    done = planned(40, budget__steps=7, training__batch_size=16)
    assert (done["steps"], done["epochs"], done["seconds"]) == (7, 2.33, None)
    done = planned(40, budget__seconds=20)
    assert (done["steps"], done["epochs"], done["seconds"]) == (None, None, 20)


# -- choices


@pytest.mark.parametrize(("trained", "batch"), [(3, 1), (4, 1), (8, 2), (36, 9), (63, 15), (64, 16), (90, 16)])
def test_a_step_takes_a_quarter_of_the_rows_and_at_most_sixteen(trained, batch):
    done = planned(trained + 1, data__heldout=1)
    assert done["rows"] == trained
    assert chosen(done, "batch_size") == {"batch_size": batch}
    assert done["steps_per_epoch"] == -(-trained // batch)


def test_defaults_suit_the_model_and_what_is_given_is_taken():
    given = {"batch_size": 3, "max_length": 64, "learning_rate": 0.01, "rank": 3, "alpha": 5.0, "dropout": 0.1}
    parts = {"max_length": "data", "batch_size": "training", "learning_rate": "training"}
    usual = planned()
    asked = planned(**{f"{parts.get(name, 'method')}__{name}": value for name, value in given.items()})
    assert chosen(asked, *given) == given
    assert chosen(usual, *given) == {
        "batch_size": 9,
        "max_length": 512,  # the shipped model's context
        "learning_rate": 0.0025,
        "rank": 16,
        "alpha": 32,
        "dropout": 0,
    }
    # What was given is told apart from what was chosen.
    (as_given,) = {reasons(asked)[name] for name in given}
    assert as_given not in reasons(usual).values()


def test_a_method_has_its_own_learning_rate():
    rates = {name: planned(method__name=name)["settings"]["learning_rate"] for name in ("qlora", "ia3", "bitfit")}
    assert rates == {"qlora": 0.0025, "ia3": 0.012, "bitfit": 0.0075}


def test_a_long_context_is_not_filled_unless_asked(long_context):
    assert planned()["settings"]["max_length"] == 1024
    assert planned(data__max_length=3000)["settings"]["max_length"] == 3000


def use_family(folder, monkeypatch, family: str, **changes) -> None:
    """The base is a tiny model of this family, with changes to its configuration."""
    tiny_model(folder, family)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    monkeypatch.setattr(plan, "fetch_model", lambda model, own_folder=None: folder)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bart"])
def test_a_length_beyond_the_context_is_refused(tmp_path, monkeypatch, family):
    use_family(tmp_path, monkeypatch, family)
    assert planned(data__max_length=512)["settings"]["max_length"] == 512
    with pytest.raises(TunerError, match=r"^data\.max_length: 513 tokens do not fit .* 512\. Set it to at most 512"):
        planned(data__max_length=513)
    prompted = {"method__name": "prompt_tuning", "method__virtual_tokens": 12}
    assert planned(data__max_length=500, **prompted)["settings"]["max_length"] == 500
    with pytest.raises(TunerError, match=r"next to 12 virtual tokens\. Set it to at most 500"):
        planned(data__max_length=501, **prompted)


@pytest.mark.parametrize("changes", [{}, {"n_positions": 512}], ids=["positions left out", "positions given"])
def test_relative_positions_have_no_longest_row(tmp_path, monkeypatch, changes):
    use_family(tmp_path, monkeypatch, "t5", **changes)
    assert planned(data__max_length=5000)["settings"]["max_length"] == 5000


@pytest.mark.parametrize(
    ("words", "max_length", "advice"),
    [(100, 64, "to 512 to keep more of them: the model reads at most 512,"), (100, 512, "The model reads no more")],
)
def test_a_warning_recommends_no_more_than_the_context(words, max_length, advice):
    rows = table(40, "please do this task " * words)
    settings = {"budget__steps": 60, "data__max_length": max_length}
    (warning,) = planned(rows, **settings)["warnings"]
    assert advice in warning
    (warning,) = planned(table(40, "please do this task " * 15), budget__steps=60, data__max_length=64)["warnings"]
    assert "to keep them whole" in warning


def test_settings_reach_the_rows():
    usual, everything = planned(), planned(training__loss_on="all")
    assert usual["trained_tokens"] < usual["tokens"] == everything["tokens"] == everything["trained_tokens"]
    shown = planned(data__system="Be brief.")
    assert shown["tokens"] > usual["tokens"]
    assert shown["trained_tokens"] == usual["trained_tokens"]
    cut = planned(data__max_length=16)
    assert cut["tokens"] == 16 * 36
    assert cut["truncated_rows"] == 36


# -- warnings


def test_what_a_person_should_know_is_among_the_warnings():
    assert planned(budget__steps=60)["warnings"] == []
    (few,) = planned(budget__steps=59)["warnings"]
    assert "59 steps" in few
    assert planned(budget__seconds=20)["warnings"] == []
    (cut,) = planned(budget__steps=60, data__max_length=16)["warnings"]
    assert "16 tokens" in cut
    twice = table(40)
    twice = parse.Table("rows.csv", twice.columns, twice.rows * 2, notes=("Half of it was read.",))
    note, leaks = planned(twice, budget__steps=60, data__heldout=10)["warnings"]
    assert note == "Half of it was read."
    assert "of 10 held-out rows" in leaks


def test_one_of_a_thing_is_told_in_the_singular():
    done = planned(4, data__heldout=3, budget__steps=1)
    sentences = [*done["warnings"], plan_text(done), plain(plan_card(done, "run"))]
    for number, noun in (("1", "row"), ("1", "step"), ("1", "epoch")):
        assert any(f"{number} {noun}" in text for text in sentences)
    assert not re.search(r"(?<![\d.,])1(\.0)? (rows|steps|epochs|tokens|seconds)\b", " ".join(sentences))
    timed = planned(4, data__heldout=3, budget__seconds=90)
    assert "90 seconds" in plan_text(timed)


# -- a visitor's limits, and none at the terminal


@pytest.mark.parametrize(
    ("limit", "measured"),
    [("MAX_PARAMETERS", "model_parameters"), ("MAX_TOKENS", "tokens"), ("MAX_SECONDS", None)],
)
def test_a_visitors_run_is_held_to_each_limit_and_a_persons_own_is_not(monkeypatch, limit, measured):
    recipe = small_recipe()
    free = plan.check(recipe, table(40), local=False).plan
    most = free[measured] if measured else free["forecast"]["training"]
    monkeypatch.setattr(forecast, limit, most)
    assert plan.check(recipe, table(40), local=False)
    monkeypatch.setattr(forecast, limit, 0.9 * most)
    for deed in (plan.check, plan.prepare):
        with pytest.raises(TunerError) as caught:
            deed(recipe, table(40), local=False)
        assert len(caught.value.problems) == 1
    assert not runs.RUNS.exists()
    assert plan.check(recipe, table(40), local=True)


def test_all_limits_are_told_together(monkeypatch):
    monkeypatch.setattr(forecast, "MAX_TOKENS", 10)
    monkeypatch.setattr(forecast, "MAX_SECONDS", 0.1)
    with pytest.raises(TunerError) as caught:
        plan.check(small_recipe(), table(40), local=False)
    tokens, seconds = caught.value.problems
    assert "tokens" in tokens
    assert "seconds" in seconds


def test_a_visitors_recipe_names_no_file_and_no_folder_of_this_machine(tmp_path, monkeypatch):
    rows = tmp_path / "rows.csv"
    rows.write_text("prompt,completion\n" + "".join(f"do {i},Please do {i}.\n" for i in range(12)))
    assert plan.check(small_recipe(data__source="rows.csv"), base=tmp_path).plan["rows"] == 11  # from its own folder
    monkeypatch.chdir(tmp_path)
    for source in ("rows.csv", "./rows.csv", str(rows)):
        recipe = small_recipe(data__source=source)
        assert plan.check(recipe, base=tmp_path).plan["rows"] == 11
        for deed in (plan.check, plan.prepare):
            with pytest.raises(TunerError, match=f"'{source}'"):
                deed(recipe, base=tmp_path, local=False)
    tiny_model(tmp_path / "owner" / "model")
    for name in ("./owner/model", str(tmp_path / "owner" / "model"), "owner/model", "../examples/tiny-office"):
        with pytest.raises(TunerError):
            plan.check(small_recipe(model__name=name), table(12), local=False)


def test_a_visitors_limits_hold_for_the_costs_of_methods_too(tmp_path, monkeypatch):
    rows = tmp_path / "rows.csv"
    rows.write_text("prompt,completion\n" + "".join(f"do {i},Please do {i}.\n" for i in range(12)))
    mine = small_recipe(data__source=str(rows))
    assert next(method_costs(mine))["name"] == "lora"
    with pytest.raises(TunerError, match="can't be read here"):
        next(method_costs(mine, local=False))
    monkeypatch.setattr(forecast, "MAX_PARAMETERS", 1)
    assert next(method_costs(small_recipe(), table(12)))["trainable_parameters"]
    with pytest.raises(TunerError, match="billion parameters"):
        next(method_costs(small_recipe(), table(12), local=False))


# -- what is written


def test_a_prepared_run_holds_what_was_planned_and_asks_the_held_out_prompts(tmp_path):
    from datasets import load_from_disk

    recipe = small_recipe(data__system="Be brief.", data__heldout=5, data__max_rows=40)
    run = plan.prepare(recipe, table(40), path=tmp_path / "run")
    checked = plan.check(recipe, table(40))
    estimated = {"forecast"}  # from the memory that is free at the moment, among others
    assert {k: v for k, v in run.plan.items() if k not in estimated} == {
        k: v for k, v in checked.plan.items() if k not in estimated
    }
    assert run.recipe == recipe
    for name, tokenized in (("train", checked.train), ("heldout", checked.heldout)):
        assert load_from_disk(str(run.data / name)).to_list() == tokenized.rows
    assert (run.plan["rows"], run.plan["heldout_rows"], run.plan["revision"]) == (35, 5, None)
    asked = [json.loads(line) for line in (run.data / "heldout.jsonl").read_text().splitlines()]
    assert len(asked) == 5
    for row, tokens in zip(asked, checked.heldout.rows):
        system, user = row["messages"]
        assert system == {"role": "system", "content": "Be brief."}
        assert (user["role"], row["reference"]) == ("user", f"Please {user['content']}.")
        assert row["reference"] in checked.tokenizer.decode(tokens["input_ids"])


def test_what_the_disk_does_not_hold_is_refused_and_nothing_is_written(tmp_path, monkeypatch):
    needed = 50 * 2**20
    monkeypatch.setattr(plan, "free_disk", lambda path: needed)
    with pytest.raises(TunerError, match="disk"):
        plan.prepare(small_recipe(), table(40), path=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(plan, "free_disk", lambda path: needed + 2**30)
    assert plan.prepare(small_recipe(), table(40), path=tmp_path / "run").plan
