"""Names, rows, answers, addresses and errors from outside are shown by the page as text, and never as markup."""

import dataclasses
import shutil
from html import escape

import pytest
from conftest import small_recipe

from tuner import recipe, runs
from tuner.hub.card import card
from tuner.methods.registry import METHODS
from tuner.methods.spec import KINDS
from tuner.ui import chooser, elements, plan_card, render, result, train_tab
from tuner.ui.progress import Progress

MARKUP = """<img src=x onerror="alert('x')">&"""
FACTS = {
    "steps": 10, "steps_per_epoch": 5, "rows": 40, "heldout_rows": 4, "seconds": None, "epochs": 2.0, "tokens": 900,
    "trained_tokens": 300, "trainable_parameters": 10, "model_parameters": 100, "settings": {"batch_size": 8},
    "warnings": [], "chosen": [],
}  # fmt: skip
PREVIEW = {"rows": [], "warning": "", "format": "", "longest": 9, "max_length": 64, "histogram": [(0, 9, 2)]}
EXAMPLE = {"prompt": "", "base": "", "adapter": "", "reference": ""}
RUN = {"run": "id", "name": "", "status": "finished", "model": "m", "data": "d", "method": "lora", "scores": None}
CHOICE = {"setting": "rank", "value": 4, "reason": "usual"}
TOLD = {"problems": [MARKUP]}

DRAWN = {
    "a problem": lambda: elements.problems([MARKUP]),
    "one problem of two": lambda: elements.problems(["", MARKUP]),
    "a box's title": lambda: elements.problems([""], MARKUP),
    "a note": lambda: elements.note(MARKUP),
    "what is being done": lambda: elements.busy(MARKUP),
    "a reference": lambda: render.reference(MARKUP),
    "a plan's name": lambda: plan_card.plan_card(FACTS, MARKUP),
    "a plan's warning": lambda: plan_card.plan_card(FACTS | {"warnings": [MARKUP]}, ""),
    **{
        f"a chosen setting's {part}": lambda part=part: plan_card.chosen_settings(
            {"chosen": [CHOICE | {part: MARKUP}]}
        )
        for part in CHOICE
    },
    "one value of several": lambda: plan_card.chosen_settings({"chosen": [CHOICE | {"value": ["q_proj", MARKUP]}]}),
    **{
        f"an example's {part}": lambda part=part: result.before_and_after([EXAMPLE | {part: MARKUP}])
        for part in EXAMPLE
    },
    "a preview's format": lambda: render.preview(PREVIEW | {"format": MARKUP}),
    "a preview's warning": lambda: render.preview(PREVIEW | {"warning": MARKUP}),
    "a token": lambda: render.preview(PREVIEW | {"rows": [[{"text": MARKUP, "trained": True, "special": False}]]}),
    **{
        f"a listed run's {part}": lambda part=part: render.runs_list([RUN | {part: MARKUP}], "", "")
        for part in ("run", "name", "model", "data", "method")
    },
    "why a method can't be used": lambda: chooser.html({"lora": TOLD}, "lora"),
}


def is_escaped(html: str) -> bool:
    """Whether the markup is there, and as text; a quote outside of an attribute may stand as it is."""
    told = html.replace("&quot;", '"').replace("&#x27;", "'")
    return escape(MARKUP, quote=False) in told and "<img" not in html and MARKUP not in html


@pytest.mark.parametrize("what", DRAWN)
def test_markup_from_outside_is_shown_as_text(what):
    assert is_escaped(DRAWN[what]())


def test_an_address_can_not_leave_its_attribute():
    html = render.push_link(f"https://huggingface.co/a/{MARKUP}")
    assert is_escaped(html)
    assert '"alert' not in html
    row = render.runs_list([RUN | {"run": MARKUP}], "", "")
    assert '"alert' not in row


@pytest.mark.parametrize("field", ["title", "explanation", "trains"])
def test_a_methods_own_words_are_text_too(field, monkeypatch):
    row = METHODS["lora"]
    assert row.kind in KINDS
    monkeypatch.setitem(METHODS, "lora", dataclasses.replace(row, **{field: MARKUP}))
    if field != "trains":
        assert is_escaped(chooser.html({}, ""))
    if field != "title":
        assert is_escaped(chooser.explanation("lora"))


SOURCES = {
    "name": {"name": MARKUP},
    "model": {"name": None, "model.name": MARKUP},
    "rows": {"name": None, "data.source": MARKUP},
}


@pytest.mark.parametrize("source", SOURCES)
def test_a_runs_recipe_is_text_on_its_card_before_and_after_its_end(source, finished, tmp_path):
    run = runs.Run(shutil.copytree(finished.path, tmp_path / "run"))
    run.write_text("recipe.yaml", run.recipe.with_settings(SOURCES[source]).to_yaml())
    for phase in ("finished", "failed"):
        assert is_escaped(
            render.run_card(run, Progress(phase, last=run.last_event("step"), losses=[(1, 2.0), (2, 1.0)]))
        )


def test_an_errors_text_and_a_recipes_error_are_text_on_the_card(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "RUNS", tmp_path)
    run = runs.create(small_recipe(), path=tmp_path / "run")
    run.append({"event": "error", "problems": [MARKUP]})
    assert is_escaped(render.run_card(run))
    assert is_escaped(train_tab.panel("run")[0])
    assert is_escaped(train_tab.panel(MARKUP)[0])  # there is no run of this name, and it says so


def test_a_plans_reasons_and_warnings_neither_open_a_tag_nor_a_row_on_the_model_card(finished, tmp_path, monkeypatch):
    run = runs.Run(shutil.copytree(finished.path, tmp_path / "run"))
    monkeypatch.setattr(recipe, "EXAMPLES", tmp_path)
    mark = "<script>x</script>`\n# y|z"
    names = ("held-out rows", "format", "learning_rate")
    chosen = [{"setting": name, "value": mark, "reason": mark} for name in names]
    run.write_json("plan.json", run.plan | {"warnings": [mark], "chosen": chosen})
    settings = {"data.source": mark, "training.learning_rate": "auto", "data.system": mark}
    run.write_text("recipe.yaml", run.recipe.with_settings(settings).to_yaml())
    text = card(run, "alice/x").partition("\n---\n")[2]
    assert "&lt;script>" in text
    assert "<script>" not in text
    assert "\n# y" not in text
    rows = [line for line in text.partition("## Settings")[2].splitlines() if line.startswith("| ")]
    assert all(line.replace("\\|", "").count("|") == 4 for line in rows)
