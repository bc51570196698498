"""The form: an input for each setting, the recipe that is read from them, and the inputs that a recipe fills."""

import gradio as gr
import pytest
from conftest import plain

from tuner import recipe
from tuner.data.formats import FORMATS
from tuner.errors import TunerError
from tuner.methods.registry import METHODS
from tuner.recipe import Recipe
from tuner.ui import actions, fields, form

ROWS = "ask,reply,note\n" + "".join(f"hey {i},Hello {i}.,x\n" for i in range(8))
SKIP = gr.skip()
OFTEN = [
    "model.name", "model.quantization", "data.config", "data.split", "data.format", "data.system",
    "data.heldout_split", "data.heldout", "data.header", "data.encoding", "data.empty",
    "data.max_rows", "data.seed", "data.max_length", "method.name", "name",
]  # fmt: skip


@pytest.fixture(scope="module")
def built():
    """The form as the page starts with it."""
    with gr.Blocks():
        return form.build(Recipe())


@pytest.fixture
def data(built) -> dict:
    """What the form's inputs hold."""
    return {component: component.value for component in built.inputs}


def by_path(built, updates: list) -> dict:
    """The updates of `fill` by the setting's path, and by the name of the form's other inputs."""
    roles = [f"role {number}" for number in range(len(built.roles))]
    names = [*built.settings, "where", "example", "hub", "kind", "amount", *roles, "parts"]
    return dict(zip(names, updates, strict=True))


def test_every_setting_has_one_input_named_and_filled_as_the_recipe_says(built):
    parts = ("model", "data", "method", "training", "evaluation")
    every = {path for part in parts for path in fields.paths(part)} | {"name", "task", "seed"}
    assert set(built.settings) == every - {"data.source", "data.columns"}
    assert list(built.settings)[: len(OFTEN)] == OFTEN
    assert len(built.inputs) == len(set(built.inputs)) == len(built.settings) + len(built.roles) + 8
    assert len(built.roles) == max(len(f.readers) for f in FORMATS.values())
    for path, component in built.settings.items():
        if path not in ("model.name", "model.quantization", "method.name"):
            assert component.label == fields.schema(path)["title"].capitalize()
            assert component.info.startswith(fields.schema(path)["description"])


@pytest.mark.parametrize(
    ("path", "kind", "said"),
    [
        ("data.format", gr.Dropdown, ["auto", *FORMATS]),
        ("training.scheduler", gr.Dropdown, ["linear", "cosine", "constant"]),
        ("training.warmup_steps", gr.Number, ""),
        ("data.heldout", gr.Textbox, ""),  # a share or a number of rows
        ("evaluation.rows", gr.Number, "(1 to 2000)"),
        ("seed", gr.Number, ""),  # a bound that nobody types is not mentioned
        ("method.rank", gr.Textbox, "(1 to 1024)"),
        ("method.alpha", gr.Textbox, ""),
        ("data.max_length", gr.Textbox, "(8 or more)"),
        ("data.max_rows", gr.Textbox, ""),
        ("training.learning_rate", gr.Textbox, "(0 to 1)"),
        ("name", gr.Textbox, ""),
    ],
)
def test_a_setting_gets_an_input_of_its_kind_with_its_bounds(path, kind, said):
    component = fields.component(path, Recipe(), min_width=77)
    assert type(component) is kind
    assert component.min_width == 77
    if isinstance(said, list):
        assert [value for _, value in component.choices] == said
    else:
        assert component.info == f"{fields.schema(path)['description']} {said}".strip()
    if kind is gr.Textbox:
        assert component.placeholder == ("none" if path in ("name", "data.max_rows") else "auto")
    if path == "data.format":
        assert component.allow_custom_value


@pytest.mark.parametrize(
    ("path", "typed", "setting"),
    [
        ("seed", 7.0, 7),
        ("data.heldout", " 0.5", "0.5"),
        ("training.warmup_steps", 0, 0),
        ("name", "  my run ", "my run"),
        ("name", "   ", None),
        ("name", "", None),
        ("method.rank", None, None),
        ("data.columns", {}, None),
        ("data.columns", {"prompt": "a"}, {"prompt": "a"}),
        ("method.target_modules", "q_proj, v_proj,", ["q_proj", "v_proj"]),
        ("method.target_modules", "q_proj", ["q_proj"]),
        ("method.target_modules", "all-linear", "all-linear"),
        ("method.target_modules", " auto ", "auto"),
        ("model.name", "a,b", "a,b"),
    ],
)
def test_what_is_typed_is_the_setting_and_what_is_empty_is_left_out(path, typed, setting):
    part, _, leaf = path.rpartition(".")
    settings = fields.to_settings({path: typed})
    if setting is None:
        assert settings == {}
    else:
        read = (settings[part] if part else settings)[leaf]
        assert (read, type(read)) == (setting, type(setting))


def test_a_setting_is_shown_as_it_would_be_typed():
    settings = {"method": {"target_modules": ["q", "v"], "rank": 8}, "data": {"heldout": 5}, "training": {}}
    shown = Recipe.parse(settings)
    expected = {
        "method.target_modules": "q, v",
        "method.rank": "8",
        "method.alpha": "",
        "data.heldout": "5",
        "data.split": "",
        "name": "",
        "seed": 0,
        "training.scheduler": "linear",
        "model.dtype": "auto",
    }
    assert {path: fields.to_input(path, shown) for path in expected} == expected


@pytest.mark.parametrize("method", METHODS)
def test_only_the_settings_that_the_method_uses_are_shown_and_count(built, method):
    explained, *updates = form.show_method(built, method)
    assert plain(explained).strip().startswith(METHODS[method].explanation[:20])
    outputs = form.method_outputs(built)
    assert outputs[0] is built.explained
    shown = {
        path
        for path, component in built.settings.items()
        if component in outputs and updates[outputs.index(component) - 1]["visible"]
    }
    used = {f"method.{leaf}" for leaf in METHODS[method].settings} & set(built.settings)
    assert shown == used | ({"method.start_from"} if METHODS[method].continues else set())
    assert form.applies("method.name", method)
    assert form.applies("training.learning_rate", method)
    assert form.applies("seed", method)


def test_settings_of_another_method_are_left_out_of_the_recipe(built, data):
    data |= {built.settings["method.rank"]: "9", built.settings["method.virtual_tokens"]: "4"}
    assert form.read(built, data)[0].method == recipe.Method(name="lora", rank=9)
    data[built.settings["method.name"]] = "prompt_tuning"
    assert form.read(built, data)[0].method == recipe.Method(name="prompt_tuning", virtual_tokens=4)
    data[built.settings["method.name"]] = "unknown"  # which checking reports, with all settings
    assert form.applies("method.rank", "unknown")


@pytest.mark.parametrize(("kind", "amount"), [("steps", 40), ("epochs", 1.5), ("seconds", 90)])
def test_the_budget_is_the_amount_of_the_chosen_kind_alone(built, data, kind, amount):
    read, _ = form.read(built, data | {built.kind: kind, built.amount: amount})
    assert read.budget == recipe.Budget(**{kind: amount})
    assert form.amount_looks(kind)["info"] == recipe.Budget.model_fields[kind].description


def test_a_budget_that_tuner_chooses_has_no_amount(built, data):
    read, _ = form.read(built, data | {built.kind: "auto", built.amount: 40})
    assert read.budget == recipe.Budget()
    assert not form.amount_looks("auto")["visible"]
    updates = by_path(built, form.fill(built, recipe.Recipe()))
    assert (updates["kind"]["value"], updates["amount"]["value"], updates["amount"]["visible"]) == (
        "auto",
        None,
        False,
    )


def test_rows_of_ones_own_get_a_budget_of_their_own():
    for where in ("file", "paste", "hub"):
        kind, amount = form.suit_budget(where)
        assert (kind["value"], amount["visible"]) == ("auto", False)
    assert form.suit_budget("example") == [SKIP, SKIP]


def test_rows_come_from_the_chosen_source_and_from_no_other(built, data, tmp_path):
    (tmp_path / "table.csv").write_text(ROWS)
    data |= {built.pasted: ROWS.replace("note", "pasted"), built.file: str(tmp_path / "table.csv")}
    data |= {built.hub: "owner/rows", built.example: "reviews.jsonl", built.settings["data.config"]: "en"}
    columns = {}
    for where, source in (
        ("example", "reviews.jsonl"),
        ("file", "table.csv"),
        ("paste", "pasted rows"),
        ("hub", "owner/rows"),
    ):
        read, rows = form.read(built, data | {built.where: where})
        assert (read.data.source, read.data.config) == (source, "en" if where in ("hub", "file") else None)
        columns[where] = rows and actions.columns(rows)
    own = {"file": ["ask", "reply", "note"], "paste": ["ask", "reply", "pasted"]}
    assert columns == {"example": None, "hub": None, **own}
    for number, (_, where) in enumerate(form.SOURCES):
        *chosen, parts = [update["visible"] for update in form.show_source(where)]
        assert (chosen, parts) == ([i == number for i in range(4)], where in ("file", "hub"))


def test_missing_rows_and_wrong_settings_are_told_together(built, data):
    data[built.settings["evaluation.rows"]] = 0
    wrong = "evaluation.rows"
    for where, said in (
        ("file", "There is no file of rows yet. Upload one (.csv, .tsv, .json, .jsonl, .ndjson, .conll, "),
        ("hub", "No dataset is named. Enter its name on the Hub (owner/name), or choose the included example."),
        ("paste", ""),
    ):
        for empty in (None, "", "  ") if where == "hub" else (None,):
            given = data | {built.where: where, built.file: None, built.hub: empty, built.pasted: empty}
            with pytest.raises(TunerError) as caught:
                form.read(built, given)
            first, second = caught.value.problems
            assert wrong in first
            assert second.startswith(said)
    with pytest.raises(TunerError) as caught:
        form.read(built, data)
    assert len(caught.value.problems) == 1


def test_a_format_of_the_wrong_type_is_told_with_the_other_problems(built, data):
    data |= {built.settings["data.format"]: ["text"]}  # from a program; the page can't send it
    with pytest.raises(TunerError, match=r"data\.format"):
        form.read(built, data)


def problem_with(built, data) -> str:
    with pytest.raises(TunerError) as caught:
        actions.check(*form.read(built, data))
    return str(caught.value)


def test_a_limit_on_rows_holds_for_a_file_and_for_pasted_rows(built, data, tmp_path, monkeypatch):
    monkeypatch.setattr("tuner.data.table.MAX_ROWS", 4)
    (tmp_path / "table.csv").write_text(ROWS)
    data |= {built.pasted: ROWS, built.file: str(tmp_path / "table.csv"), built.settings["data.max_rows"]: "4"}
    for where in ("file", "paste"):
        assert "Map them" in problem_with(built, data | {built.where: where})  # for which the rows were read
        assert "4 rows" in problem_with(built, data | {built.where: where, built.settings["data.max_rows"]: ""})


def test_the_columns_of_a_format_are_chosen_among_those_of_the_rows(built, data):
    data |= {built.where: "paste", built.pasted: ROWS}
    *hidden, _ = form.show_columns(built, data)
    assert [(update["visible"], update["value"]) for update in hidden] == [(False, None)] * len(built.roles)
    data[built.settings["data.format"]] = "prompt_completion"
    roles = list(FORMATS["prompt_completion"].readers)
    *shown, parts = form.show_columns(built, data)
    assert parts == ["prompt_completion", *roles]
    assert [update["visible"] for update in shown] == [True] * len(roles) + [False] * (len(built.roles) - len(roles))
    for update, role in zip(shown, roles):
        assert (update["label"], update["choices"]) == (f"Column of the {role}", ["ask", "reply", "note"])
        assert (update["value"], update["allow_custom_value"]) == (None, True)  # a text with several may be typed
    example = form.show_columns(built, data | {built.where: "example", built.example: "reviews.jsonl"})
    assert example[0]["choices"] == ["text", "label"]
    for where in ("hub", "file"):  # whose columns are not known
        unknown = form.show_columns(built, data | {built.where: where, built.hub: "owner/rows"})
        assert (unknown[0]["choices"], unknown[0]["allow_custom_value"]) == ([], True)


def test_the_chosen_columns_belong_to_the_parts_of_the_format_in_their_order(built, data):
    roles = list(FORMATS["prompt_completion"].readers)
    chosen = dict(zip(built.roles, ["ask", "reply", "note"]))
    data |= {built.where: "paste", built.pasted: ROWS} | chosen
    assert form.read(built, data)[0].data.columns == {}
    data[built.settings["data.format"]] = "prompt_completion"
    assert form.read(built, data)[0].data.columns == dict(zip(roles, ["ask", "reply", "note"]))
    data[built.roles[0]] = None
    assert form.read(built, data)[0].data.columns == {roles[1]: "reply", roles[2]: "note"}


@pytest.mark.parametrize(
    ("name", "base", "precision", "word"),
    [
        ("corporate.jsonl", "tiny-office", "nf4", "casual messages"),
        ("support.jsonl", "tiny-summarizer", "none", "summaries"),
        ("reviews.jsonl", "tiny-reader", "none", "sentiment"),
        ("entities.jsonl", "tiny-reader", "none", "people"),
    ],
)
def test_an_example_brings_the_base_that_suits_it(built, name, base, precision, word):
    description, chosen, quantization = form.show_example(name)
    assert (chosen, quantization) == (base, precision)
    assert word in description["info"]
    assert base in dict(map(reversed, form.BASES))
    assert name in [value for _, value in built.example.choices]
    assert form.show_example("another.jsonl") == [gr.update(info=""), SKIP, SKIP]


def test_the_form_starts_with_the_recipe_it_is_given():
    rows = {"source": "reviews.jsonl", "config": "en", "split": "dev", "format": "text_label", "system": "Be brief."}
    start = Recipe.parse(
        {
            "name": "mine",
            "model": {"name": "tiny-reader", "quantization": "int8"},
            "data": rows,
            "budget": {"epochs": 3},
            "method": {"name": "ia3"},
        }
    )
    with gr.Blocks():
        built = form.build(start)
    assert (built.kind.value, built.amount.value, built.amount.label) == ("epochs", 3, "Epochs")
    assert built.amount.info == form.amount_looks("epochs")["info"]
    assert (built.example.value, built.example.info) == ("reviews.jsonl", form.EXAMPLES["reviews.jsonl"][0])
    values = {"name": "mine", "model.name": "tiny-reader", "model.quantization": "int8", "method.name": "ia3"}
    values |= {f"data.{leaf}": value for leaf, value in rows.items() if leaf != "source"}
    assert {path: built.settings[path].value for path in values} == values
    assert 'selected" data-method="ia3' in built.methods.value
    assert plain(built.explained.value).strip().startswith(METHODS["ia3"].explanation[:20])
    assert [value for _, value in built.kind.choices] == ["auto", "steps", "epochs", "seconds"]
    assert built.where.value == "example"
    hidden = {path for path, component in built.settings.items() if component.visible is False}
    assert hidden == set(fields.paths("method")) - {"method.name", "method.start_from"}


@pytest.mark.parametrize(
    ("source", "where", "example", "hub"),
    [
        ("reviews.jsonl", "example", "reviews.jsonl", None),
        ("owner/rows", "hub", None, "owner/rows"),
        ("mine.csv", None, None, None),  # uploaded, and to be uploaded again
    ],
)
def test_a_recipe_fills_the_inputs_and_the_source_of_its_rows(built, source, where, example, hub):
    settings = {"data": {"source": source, "max_rows": 5}, "budget": {"seconds": 90}, "method": {"rank": 3}, "seed": 4}
    outputs = form.fill_outputs(built)
    others = [built.where, built.example, built.hub, built.kind, built.amount, *built.roles, built.parts]
    assert outputs == [*built.settings.values(), *others]
    updates = by_path(built, form.fill(built, Recipe.parse(settings)))
    values = {"data.max_rows": "5", "method.rank": "3", "seed": 4, "name": "", "model.name": "tiny-office"}
    assert {path: updates[path]["value"] for path in values} == values
    for name, value in (("where", where), ("example", example), ("hub", hub)):
        assert updates[name] == (gr.update(value=value) if value else SKIP)
    assert updates["kind"] == gr.update(value="seconds")
    amount = updates["amount"]
    assert (amount["value"], amount["label"], amount["info"]) == (90, "Seconds", form.amount_looks("seconds")["info"])
