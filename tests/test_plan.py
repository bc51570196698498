"""A recipe and its rows before a run: steps, defaults, warnings, limits and the files that are written."""

import json
import re

import pytest
from conftest import plain, small_recipe
from tiny import tiny_model

from tuner import runs
from tuner.data import parse
from tuner.data.chat import render_prompt, stop_ids
from tuner.errors import TunerError
from tuner.models.fetch import check_size
from tuner.planning import base_check, forecast, plan
from tuner.planning.method_costs import method_costs
from tuner.recipe import Recipe
from tuner.terminal import plan_text
from tuner.ui.plan_card import plan_card


@pytest.fixture(autouse=True)
def no_earlier_runs(tmp_path, monkeypatch):
    """Nor an estimate of memory, which takes most of the time to plan and has tests of its own."""
    monkeypatch.setattr(runs, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(forecast, "estimate_memory", lambda *args: {"activations": 1, "logits": 1, "total": 2})


ENOUGH = {"budget__steps": 60, "training__batch_size": 4}  # for 40 rows, and not too much


def table(count: int, words: str = "do task") -> parse.Table:
    rows = [{"prompt": f"{words} {i}", "completion": f"Please do task {i}."} for i in range(count)]
    return parse.Table("rows.csv", ["prompt", "completion"], rows)


def planned(rows: int | parse.Table = 40, **settings) -> dict:
    """The plan of the default recipe with these settings ("__" for the dot), on so many rows, a tenth held out.

    A warning of few held-out rows, which has a test of its own, is left out.
    """
    settings = {k.replace("__", "."): v for k, v in settings.items()}
    recipe = Recipe().with_settings({"data.heldout": 0.1} | settings)
    done = plan.check(recipe, table(rows) if isinstance(rows, int) else rows).plan
    return done | {"warnings": [warning for warning in done["warnings"] if "too few to tell" not in warning]}


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
    monkeypatch.setattr(plan, "fetch_model", lambda *asked: folder)


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
    assert rates == {"qlora": 0.0025, "ia3": 0.035, "bitfit": 0.0075}


def test_a_long_context_is_not_filled_unless_asked(long_context):
    assert planned()["settings"]["max_length"] == 1024
    assert planned(data__max_length=3000)["settings"]["max_length"] == 3000


def use_family(folder, monkeypatch, family: str, **changes) -> None:
    """The base is a tiny model of this family, with changes to its configuration."""
    tiny_model(folder, family)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    monkeypatch.setattr(plan, "fetch_model", lambda *asked: folder)


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
    settings = {"data__max_length": max_length}
    (warning,) = planned(rows, **ENOUGH, **settings)["warnings"]
    assert advice in warning
    (warning,) = planned(table(40, "please do this task " * 15), **ENOUGH, data__max_length=64)["warnings"]
    assert "to keep them whole" in warning


def test_a_warning_recommends_no_more_than_virtual_tokens_leave_and_anything_where_nothing_is_bounded(
    tmp_path, monkeypatch
):
    rows = table(40, "please do this task " * 100)
    prompted = {"method__name": "prompt_tuning", "method__virtual_tokens": 12}
    (warning,) = planned(rows, **ENOUGH, data__max_length=64, **prompted)["warnings"]
    assert "Set data.max_length to 500 to keep more of them: the model reads at most 500," in warning
    use_family(tmp_path, monkeypatch, "t5", n_positions=512)
    (warning,) = planned(rows, **ENOUGH, data__max_length=600)["warnings"]
    assert re.search(r"Set data.max_length to [\d,]{4,} to keep them whole", warning)


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
    assert planned(**ENOUGH)["warnings"] == []
    (few,) = planned(budget__steps=29)["warnings"]
    assert "29 steps" in few
    assert planned(400, budget__seconds=20)["warnings"] == []
    (cut,) = planned(**ENOUGH, data__max_length=16)["warnings"]
    assert "16 tokens" in cut
    twice = table(40)
    twice = parse.Table("rows.csv", twice.columns, twice.rows * 2, notes=("Half of it was read.",))
    note, leaks = planned(twice, **ENOUGH, data__heldout=10)["warnings"]
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
    assert plan.check(small_recipe(data__source="rows.csv"), base=tmp_path).plan["rows"] == 10  # from its own folder
    monkeypatch.chdir(tmp_path)
    for source in ("rows.csv", "./rows.csv", str(rows)):
        recipe = small_recipe(data__source=source)
        assert plan.check(recipe, base=tmp_path).plan["rows"] == 10
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
    # What is asked was rendered while that could be ended, of those rows that are scored.
    assert [row.get("text") for row in asked] == [
        render_prompt(row["messages"], checked.tokenizer) for row in asked[:4]
    ] + [None]
    padding = checked.tokenizer.pad_token_id  # which this model names as an end of answers, too
    assert run.plan["end_tokens"] == [*stop_ids(checked.tokenizer), padding]


def test_a_run_is_written_among_the_others_unless_a_folder_is_given(tmp_path):
    recipe = small_recipe()
    assert plan.prepare(recipe, table(12)).path.parent == runs.RUNS
    assert plan.prepare(recipe, table(12), root=tmp_path / "mine").path.parent == tmp_path / "mine"
    assert plan.prepare(recipe, table(12), root=tmp_path / "mine", path=tmp_path / "own").path == tmp_path / "own"


def test_what_the_disk_does_not_hold_is_refused_and_nothing_is_written(tmp_path, monkeypatch):
    needed = 50 * 2**20
    monkeypatch.setattr(plan, "free_disk", lambda path: needed)
    with pytest.raises(TunerError, match="disk"):
        plan.prepare(small_recipe(), table(40), path=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(plan, "free_disk", lambda path: needed + 2**30)
    assert plan.prepare(small_recipe(), table(40), path=tmp_path / "run").plan


# -- each choice, each reason and each figure of a plan


def why(plan: dict) -> dict[str, tuple]:
    """Each setting's value and the reason for it."""
    assert len({choice["setting"] for choice in plan["chosen"]}) == len(plan["chosen"])
    return {choice["setting"]: (choice["value"], choice["reason"]) for choice in plan["chosen"]}


RATE = (
    "LoRA's rate at this model's width, a power law fitted in 'LoRA Without Regret'; the exponent of the width is the "
)
RATE += "one fitted for Llama (tinker-cookbook)"


def test_every_choice_is_told_with_its_reason():
    done = planned(40, method__rank=5, data__heldout=3, seed=11, model__dtype="bfloat16")
    assert why(done) == {
        "learning_rate": (0.0025, RATE),
        "batch_size": (9, "there are only 37 rows"),
        "max_length": (512, "the model's context"),
        "rank": (5, "as given"),
        "alpha": (32, "LoRA's default"),
        "dropout": (0.0, "LoRA's default"),
        "target_modules": ("all-linear", "LoRA's default"),
        "dtype": ("bfloat16", "as given"),
        "max_new_tokens": (16, "95% of the references have at most 10 tokens, and 16 are the fewest"),
        "examples in the prompt": (8, "they show what is wanted, and are still cheap to read"),
        "steps": (60, "three epochs are only 15 steps, and fewer than 60 teach little"),
        "loss_every": (6, "about 10 held-out losses"),
        "keep": ("last", "3 held-out rows can't choose the best weights"),
        "patience": (0, "the last weights are kept, so all steps are done"),
        "format": ("prompt_completion", done["chosen"][-3]["reason"]),
        "task": ("text generation", "inferred from the rows (prompt_completion) and the model"),
        "held-out rows": (3, "3 of 40 rows were drawn with the seed (11): there is no split to hold out."),
    }
    assert "prompt" in done["chosen"][-3]["reason"]
    assert done["settings"] == {name: why(done)[name][0] for name in list(why(done))[:9]}
    given = {"training__learning_rate": 0.5, "training__batch_size": 7, "data__max_length": 99, "task": "generation"}
    told = why(planned(40, **given))
    assert [told[name] for name in ("learning_rate", "batch_size", "max_length", "task")] == [
        (0.5, "as given"), (7, "as given"), (99, "as given"), ("text generation", "as given"),
    ]  # fmt: skip


def test_the_reason_for_a_batch_size_depends_on_the_rows():
    reasons = {
        trained: why(planned(trained + extra, data__heldout=extra))["batch_size"]
        for trained, extra in ((1, 3), (2, 2), (63, 2), (64, 2))
    }
    assert reasons == {
        1: (1, "there is only 1 row"),
        2: (1, "there are only 2 rows"),
        63: (15, "there are only 63 rows"),
        64: (16, "small batches suit adapters in short runs"),
    }


@pytest.mark.parametrize(
    ("context", "settings", "length", "reason"),
    [
        (1024, {}, 1024, "the model's context"),
        (1025, {}, 1024, "long enough for most rows, and affordable"),
        (1043, {"method__name": "prefix_tuning"}, 1023, "the model's context, less the virtual tokens"),
        (1045, {"method__name": "prefix_tuning"}, 1024, "long enough for most rows, and affordable"),
        (99, {"method__name": "p_tuning", "method__virtual_tokens": 9}, 90,
         "the model's context, less the virtual tokens"),
        (99, {"method__name": "llama_adapter", "model__quantization": "none"}, 99, "the model's context"),
    ],
)  # fmt: skip
def test_the_longest_row_is_the_context_or_what_is_affordable(
    tmp_path, monkeypatch, context, settings, length, reason
):
    use_family(tmp_path, monkeypatch, "llama", max_position_embeddings=context)
    assert why(planned(8, **settings))["max_length"] == (length, reason)
    with pytest.raises(TunerError) as refused:
        planned(8, data__max_length=context + 1000, **settings)
    virtual = context - length
    beside = f" next to {virtual} virtual tokens" if settings and length < 99 else ""
    if context < 1024:
        assert refused.value.problems == (
            f"data.max_length: {context + 1000:,} tokens do not fit the model's context of {context:,}{beside}. Set "
            f"it to at most {length:,}, or leave it out.",
        )


def labeled(labels: int) -> parse.Table:
    """Twelve texts with so many labels."""
    rows = [{"text": f"text number {i}", "label": f"kind {i % labels:02}"} for i in range(12)]
    return parse.Table("rows.csv", ["text", "label"], rows)


@pytest.mark.parametrize("labels", [3, 8, 9, 12])
def test_labels_of_all_rows_are_learned_and_the_first_eight_are_told(labels):
    reader = {"model__name": "tiny-reader", "model__quantization": "none", "data__heldout": 5}
    done = planned(labeled(labels), **reader)
    names = [f"kind {i:02}" for i in range(labels)]
    assert (done["task"], done["labels"]) == ("classification", names)
    listed = ", ".join(names[:8]) + " ..." * (labels > 8)
    (format_name, _), (_, reason) = why(done)["format"], why(done)["task"]
    assert reason == f"inferred from the rows ({format_name}) and the model, with the labels {listed}"


@pytest.mark.parametrize(
    ("task", "rows", "problem"),
    [
        ("classification", table(12), "text classification learns from text with a label, but these rows are "
         "conversations (data.format prompt_completion)"),
        ("generation", labeled(3), "text generation learns from conversations or plain text, but these rows are text "
         "with a label (data.format text_label)"),
    ],
)  # fmt: skip
def test_a_task_that_the_rows_are_not_for_is_refused(task, rows, problem):
    with pytest.raises(TunerError) as refused:
        planned(rows, task=task)
    assert refused.value.problems == (
        f"task: {problem}. Leave task out, or map the columns by hand (data.format, data.columns).",
    )


def test_few_steps_are_told_with_their_figures():
    (few,) = planned(40, budget__epochs=2, training__batch_size=5)["warnings"]
    advice = "That teaches little: give more rows, more steps, or smaller batches."
    assert few == f"36 rows in batches of 5 make 8 steps per epoch, and this run has 16 steps. {advice}"
    advice = "That teaches little: give more rows or smaller batches."  # more steps are more than ten epochs
    (few,) = planned(40, budget__epochs=5, training__batch_size=16)["warnings"]
    assert few == f"36 rows in batches of 16 make 3 steps per epoch, and this run has 15 steps. {advice}"
    (few,) = planned(4, data__heldout=3, budget__steps=1)["warnings"]
    assert few == f"1 row in batches of 1 makes 1 step per epoch, and this run has 1 step. {advice}"
    few, many = planned(40, budget__steps=59, training__batch_size=16)["warnings"]
    assert few == f"36 rows in batches of 16 make 3 steps per epoch, and this run has 59 steps. {advice}"
    assert many.startswith("59 steps are 19.7 epochs: the model sees each row 20 times")
    assert many.endswith("Give more rows.")
    long = table(40, "please do this task " * 9)
    long = parse.Table("rows.csv", long.columns, long.rows * 2, notes=("Half of it was read.",))
    warnings = planned(long, budget__steps=5, data__heldout=10, data__max_length=24)["warnings"]
    for warning, words in zip(warnings, ("Half of it", "held-out rows", "longer than 24", "this run"), strict=True):
        assert words in warning


def test_a_smaller_batch_that_fits_is_what_everything_is_planned_for(monkeypatch):
    def memory(base, recipe, settings, length, columns) -> dict:
        size = settings["batch_size"]
        return {"activations": 40 * size, "logits": 10 * size, "total": 150 + 50 * size}

    monkeypatch.setattr(forecast, "estimate_memory", memory)
    monkeypatch.setattr(forecast, "available_memory", lambda: (150 + 50 * 7) / forecast.USABLE + 1)
    done = planned(40, budget__epochs=2)
    assert (done["settings"]["batch_size"], done["steps_per_epoch"], done["steps"]) == (4, 9, 18)
    assert why(done)["batch_size"] == (4, "as many as fit in the device's memory")
    assert (done["forecast"]["memory"]["total"], done["forecast"]["steps"]) == (350, 18)
    monkeypatch.setattr(forecast, "available_memory", lambda: 199 / forecast.USABLE)
    with pytest.raises(TunerError, match=r"of memory .* Choose shorter rows"):
        planned(40)


def test_a_model_of_the_hub_is_planned_with_its_revision_and_an_own_folder_with_its_path(tmp_path, monkeypatch):
    tiny_model(tmp_path / "mine" / "0a1b2c")
    rows = table(12)
    own = plan.check(small_recipe(model__name="./mine/0a1b2c"), rows, tmp_path).plan
    assert (own["revision"], own["model_folder"]) == (None, str(tmp_path / "mine" / "0a1b2c"))
    monkeypatch.setattr(plan, "fetch_model", lambda *asked: tmp_path / "mine" / "0a1b2c")
    fetched = plan.check(small_recipe(model__name="somebody/model"), rows, tmp_path).plan
    assert fetched["revision"] == "0a1b2c"
    assert "model_folder" not in fetched
    assert fetched["model_parameters"] == own["model_parameters"] > 10_000


# -- problems, all together


def test_all_that_a_run_lacks_is_told_together_in_one_order(monkeypatch):
    monkeypatch.setattr(forecast, "available_memory", lambda: 1)
    monkeypatch.setattr(
        forecast, "estimate_memory", lambda *args: dict.fromkeys(("activations", "logits", "total"), 8)
    )
    monkeypatch.setattr(forecast, "MAX_TOKENS", 100)
    monkeypatch.setattr(plan, "free_disk", lambda path: 3 * 2**20)
    recipe = small_recipe(budget__seconds=0.25, training__batch_size=4)
    starts = [
        "tiny-office needs about",
        "budget.seconds: 0.25 s is too short",
        "This run needs about",
        "The rows have",
    ]
    for local in (True, False):
        with pytest.raises(TunerError) as refused:
            plan.check(recipe, table(40), local=local)
        for problem, start in zip(refused.value.problems, starts[: 3 if local else 4], strict=True):
            assert problem.startswith(start)


def test_problems_of_metrics_rows_size_and_method_are_told_together_even_without_rows(monkeypatch):
    monkeypatch.setattr(forecast, "MAX_PARAMETERS", 10)
    settings = {"evaluation__metrics": ["cider", "accuracy"], "method__name": "full", "method__rank": "auto"}
    recipe = small_recipe(data__source="nope.csv", **settings)
    parts = ["metrics: there is no 'cider'", "'nope.csv'", "tiny-office has 0.0 billion"]
    parts += ["metrics: accuracy can't score text generation", "model.quantization: Full fine-tuning"]
    with pytest.raises(TunerError) as refused:
        plan.check(recipe, local=False)
    for problem, part in zip(refused.value.problems, parts, strict=True):
        assert part in problem
    # Without rows a model that was not made to generate has no task yet, and its method can't be judged.
    with pytest.raises(TunerError) as refused:
        plan.check(small_recipe(model__name="tiny-reader", data__source="nope.csv", **settings), local=True)
    assert len(refused.value.problems) == 2
    # Nor has one of classes without rows that name them.
    with pytest.raises(TunerError) as refused:
        plan.check(recipe.with_settings({"task": "classification"}), local=True)
    assert len(refused.value.problems) == 2
    nowhere = small_recipe(model__name="./nowhere", evaluation__metrics="cider", method__name="lorra")
    with pytest.raises(TunerError) as refused:
        plan.check(nowhere, table(3))
    method, metric, model, rows = refused.value.problems
    assert (method[:11], "cider" in metric, "nowhere" in model) == ("method.name", True, True)
    assert "only 3 rows" in rows


def test_a_visitors_model_is_measured_against_the_limit_in_billions():
    with pytest.raises(TunerError) as refused:
        check_size("somebody/large", 12_345_000_000, forecast.MAX_PARAMETERS)
    assert refused.value.problems == (
        "somebody/large has 12.3 billion parameters, and this page allows at most 9 billion. Choose a smaller model, "
        "or run Tuner on your own machine.",
    )
    check_size("somebody/large", 9_000_000_000, forecast.MAX_PARAMETERS)


def test_weights_are_held_against_the_configuration_unless_they_are_packed(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(base_check, "check_fit", lambda *args: asked.append(args))
    use_family(tmp_path / "plain", monkeypatch, "llama")
    planned(8, model__name="somebody/plain")
    ((described, stored, name),) = asked
    assert sum(described.values()) == sum(stored.values()) > 10_000
    assert name == "somebody/plain"
    packed = {
        "quantization_config": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "quant_method": "bitsandbytes"}
    }
    use_family(tmp_path / "packed", monkeypatch, "llama", **packed)
    with pytest.raises(TunerError, match="none of them is quantized"):
        planned(8, model__name="somebody/packed")
    assert len(asked) == 1


def test_the_disk_must_hold_adapter_checkpoints_and_rows(tmp_path, monkeypatch):
    root, asked = tmp_path / "not" / "yet", []
    facts = {"trainable_parameters": 3_000_000, "tokens": 2_500_000}
    # A float32 for each weight of the adapter, and three of each in both checkpoints; 16 bytes for a token; 50 MB.
    needed = 3_000_000 * 28 + 2_500_000 * 16 + 50 * 2**20

    def free(path) -> int:
        asked.append(path)
        return free_now

    monkeypatch.setattr(plan, "free_disk", free)
    free_now = needed
    plan._check_disk(facts, root, True)
    assert asked[0] == root
    free_now = needed - 30 * 2**20
    with pytest.raises(TunerError) as refused:
        plan._check_disk(facts, root, True)
    assert refused.value.problems == (
        "This run needs about 168 MB of disk space, and 138 MB are free. Delete old runs, or set TUNER_RUNS to a "
        "folder on another disk.",
    )
    free_now = needed - 1
    with pytest.raises(TunerError):
        plan._check_disk(facts, root, True)
