"""What the terminal shows: each sentence with its figures, each table with its columns, and the progress bars."""

import logging
import os
import warnings
from functools import partial
from pathlib import Path

import pytest
from recorded import PLAN, SCORES
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from tuner import terminal
from tuner.evaluation.verdict import judge
from tuner.methods.registry import METHODS
from tuner.planning import forecast

PLANNED = PLAN | {
    "chosen": [
        {"setting": "rank", "value": 7, "reason": "the default"},
        {"setting": "dtype", "value": "float32", "reason": "exact"},
    ],
    "warnings": ["Mind the rows.", "And the steps."],
}  # fmt: skip
BUDGETS = {
    "2,900 steps (2.5 epochs)": {},
    "1 step (1 epoch)": {"steps": 1, "epochs": 1.0},
    "45 seconds": {"steps": None, "epochs": None, "seconds": 45.0},
    "1 second": {"steps": None, "epochs": None, "seconds": 1},
    "0 seconds": {"steps": None, "epochs": None, "seconds": None},
}


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_plan_is_a_line_for_each_of_its_facts(budget):
    lines = [
        "1,234 rows to train on, 1,137 held out",
        "56,789 tokens per epoch, 23,456 of them learned from",
        f"1,450 steps per epoch; the budget is {budget}",
        "75,776 of 3,410,176 parameters are trained",
        "rank: 7 (the default)",
        "dtype: float32 (exact)",
        "Warning: Mind the rows.",
        "Warning: And the steps.",
    ]
    assert terminal.plan_text(PLANNED | BUDGETS[budget]).splitlines() == lines
    memory = {"weights": 2**30, "total": 3 * 2**30}
    estimate = {"training": 60, "scoring": 5, "measured": True, "steps": 4, "memory": memory, "available": 2**33}
    sentences = forecast.sentences(estimate)
    assert len(sentences) == 2
    told = terminal.plan_text(PLANNED | BUDGETS[budget] | {"forecast": estimate}).splitlines()
    assert told == [*lines[:4], *sentences, *lines[4:]]


@pytest.fixture
def no_bars_of_libraries(monkeypatch):
    """Progress bars are off unless one is asked for, as TQDM_DISABLE has it where tqdm is imported later."""
    monkeypatch.setattr("tqdm.tqdm", partial(tqdm, disable=True))


def step(number: int, loss: float, speed: float) -> dict:
    return {"event": "step", "step": number, "steps": 90, "loss": loss, "tokens_per_second": speed}


@pytest.mark.usefixtures("no_bars_of_libraries")
def test_the_bar_of_training_follows_the_steps_from_where_it_resumes(capsys):
    show = terminal.Progress()
    show({"event": "start", "step": 20, "steps": 80})
    bar = show.bar
    assert (bar.n, bar.initial, bar.total, bar.unit, bar.disable) == (20, 20, 80, "step", False)
    show(step(21, 2.34567, 1234.56))
    assert bar.postfix == "loss=2.346, tokens/s=1235"
    show({"event": "schedule", "steps": 90})
    show({"event": "heldout", "step": 21, "loss": 0.0})
    show(step(24, 1.23456, 876.5))
    assert (bar.n, bar.total) == (24, 90)
    assert bar.postfix == "loss=1.235, tokens/s=876, held-out=0.000"
    show({"event": "heldout", "step": 24, "loss": 0.98765})
    for event in ("checkpoint", "starting", "evaluation", "unscored"):  # with nothing to show, nor to close
        show({"event": event, "step": 25})
    show(step(25, 1.0, 9.0))
    assert not bar.disable
    show({"event": "end", "step": 25, "reason": "stopped"})
    assert bar.disable  # closed
    last = capsys.readouterr().err.splitlines()[-1]
    assert "25/90" in last
    assert last.endswith("loss=1.000, tokens/s=9, held-out=0.988]")
    assert show.scoring is None


@pytest.mark.usefixtures("no_bars_of_libraries")
@pytest.mark.parametrize("end", ["evaluation", "unscored"])
def test_the_bar_of_scoring_follows_the_rows_from_where_it_was_left(end, capsys):
    show = terminal.Progress()
    show({"event": "evaluating", "row": 0, "rows": 0})  # no prompts, whose losses are all that is measured
    assert show.scoring is None
    show({"event": "evaluating", "row": 3, "rows": 9})
    bar = show.scoring
    assert (bar.n, bar.initial, bar.total, bar.unit) == (3, 3, 9, "answer")
    show({"event": "answered", "row": 5})
    show({"event": "evaluating", "row": 5, "rows": 9})  # the next batch, not another bar
    show({"event": "answered", "row": 8})
    assert (show.scoring, bar.n, bar.disable) == (bar, 8, False)
    show({"event": end})
    assert bar.disable
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("held-out rows: ")
    assert "8/9" in last
    assert show.bar is None


def test_the_verdict_of_the_terminal_has_a_line_for_each_further_metric():
    judged = judge(SCORES)
    assert terminal.verdict(SCORES) == (
        f"It helped. {judged.text()}\n"
        "answer F1: base 0.21 (0.20 to 0.22), adapter 0.56 (0.54 to 0.57), gain +0.34 (+0.33 to +0.36)"
    )
    assert terminal.verdict(SCORES | {"other_metrics": []}) == f"It helped. {judged.text()}"
    assert terminal.verdict(None) == (
        "Not scored: the run stopped before its end. To score what it has learned so far, use `tuner evaluate`."
    )


def test_the_merge_check_says_where_the_model_is_and_what_each_share_means():
    check = {"tokens": 123, "top1_agreement": 0.98765, "top1_agreement_quantized": 0.8767}
    assert terminal.merge_check(Path("a/merged"), check) == (
        "The merged model is in a/merged. On 123 held-out tokens, its most likely token is that of the adapter on the "
        "16-bit base model for 98.8%, and that of the adapter on the base model as trained for 87.7%."
    )


def test_a_run_is_listed_with_its_scores_or_with_its_problems():
    facts = {"model": "tiny-office", "data": "corporate.jsonl", "method": "lora", "problems": []}
    scored = {"metric": "rougeL", "scores": {"base": 0.234, "adapter": 0.876}}
    unscored = {"metric": None, "scores": None}
    nothing = dict.fromkeys(("model", "data", "method", "metric", "scores"))
    rows = [
        {"id": "one", "status": "finished", **facts, **scored},
        {"id": "second", "status": "interrupted", **facts, **unscored},
        {"id": "three", "status": "damaged", **nothing, "problems": ["Its plan is gone.", "Its recipe, too."]},
    ]
    assert terminal.runs_text(rows).splitlines() == [
        "one  finished     lora on tiny-office, corporate.jsonl  ROUGE-L 0.23 -> 0.88",
        "second  interrupted  lora on tiny-office, corporate.jsonl",
        "three  damaged      Its plan is gone. Its recipe, too.",
    ]
    assert terminal.runs_text([]) == "No runs yet. Try: tuner train corporate"


def test_answers_are_shown_as_they_are_beside_their_variants(capsys):
    stream = [{"base": "", "adapter": "Dear"}, {"base": "[red]no[/]", "adapter": "Dear Sir,"}]
    assert list(terminal.shown(iter(stream))) == stream
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines[-2:] == [["base", "[red]no[/]"], ["adapter", "Dear", "Sir,"]]


def cells(table: Table) -> list[tuple[str, ...]]:
    """A table's rows as they were added."""
    return list(zip(*(column.cells for column in table.columns), strict=True))


def test_the_table_of_methods_has_every_method_with_its_facts_under_its_kind():
    table = terminal.methods()
    assert [column.header for column in table.columns] == [
        "name", "method", "what it trains", "on 4-bit", "merges", "tasks"
    ]  # fmt: skip
    by_kind, kind = {}, None
    for name, *facts in cells(table):
        if name.startswith("[bold]"):
            kind = name.removeprefix("[bold]")
            assert kind not in by_kind
        by_kind.setdefault(kind, {}).update({} if name.startswith("[bold]") else {name: facts})
    kinds = list(dict.fromkeys(row.kind for row in METHODS.values() if not row.more))
    assert list(by_kind) == [*kinds, "more"]
    for kind, listed in by_kind.items():
        rows = [row for row in METHODS.values() if (row.more if kind == "more" else row.kind == kind and not row.more)]
        assert list(listed) == [row.name for row in rows]
        assert [facts[:2] for facts in listed.values()] == [[row.title, row.trains] for row in rows]
    facts = {name: facts[2:] for listed in by_kind.values() for name, facts in listed.items()}
    assert facts["lora"] == ["yes", "yes", "all"]
    assert facts["full"] == facts["unilora"] == facts["vera"] == ["no", "yes", "all"]
    assert facts["bottleneck"] == ["yes", "no", "all"]
    assert facts["prompt_tuning"] == ["yes", "no", "generation, seq2seq"]
    assert facts["llama_adapter"] == ["no", "no", "generation"]


@pytest.mark.parametrize(("is_terminal", "width"), [(False, 119), (True, 57)])
def test_a_table_is_as_wide_as_the_terminal_and_119_columns_without_one(is_terminal, width, monkeypatch, capsys):
    if is_terminal:
        monkeypatch.setenv("COLUMNS", "57")
        monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    table = Table("word")
    table.add_row("x" * 300)
    terminal.print_table(table)
    assert {cell_len(Text.from_ansi(line).plain) for line in capsys.readouterr().out.splitlines()} == {width}


SILENCED = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}


@pytest.mark.parametrize("debug", ["", "1"])
def test_the_libraries_are_silent_unless_one_looks_for_an_error(debug, monkeypatch):
    ours, theirs = logging.getLogger("tuner"), logging.getLogger("bitsandbytes")
    monkeypatch.setattr(ours, "handlers", [])
    monkeypatch.setattr(theirs, "level", logging.WARNING)
    for name in SILENCED:
        monkeypatch.setenv(name, "as it was")
    monkeypatch.setenv("TUNER_DEBUG", debug)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        terminal.silence_libraries()
        for category in (FutureWarning, UserWarning):
            warnings.warn("advice", category, stacklevel=1)
    expected = dict.fromkeys(SILENCED, "as it was") if debug else SILENCED
    assert {name: os.environ[name] for name in SILENCED} == expected
    assert [warning.category for warning in shown] == [FutureWarning, UserWarning][not debug :]
    assert theirs.level == (logging.WARNING if debug else logging.ERROR)
    assert [type(handler) for handler in ours.handlers] == ([] if debug else [logging.NullHandler])
