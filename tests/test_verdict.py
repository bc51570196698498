"""One verdict for all readers, whichever way a metric points; every metric that a recipe names is shown."""

import io
import json
import shutil

import pytest
from conftest import in_order, plain, small_recipe
from rich.console import Console
from test_scoring import OVERLAP, metric, pairs

from tuner import metrics, runs, terminal
from tuner.errors import TunerError
from tuner.evaluation.answers import evaluate
from tuner.evaluation.score import score
from tuner.evaluation.verdict import judge
from tuner.hub.card import card
from tuner.metrics import METRICS, Metric
from tuner.planning import plan
from tuner.ui import fields, render

ERRORS = metric("errors", lambda reference, answer: (float(reference != answer), 1.0), higher_is_better=False)


def scored_by(metric: Metric, monkeypatch, *answers: tuple[str, str]) -> dict:
    """The scores of answers to "yes" by a metric that is in the table."""
    monkeypatch.setitem(METRICS, metric.name, metric)
    return score([metric], ["yes"] * len(answers), pairs(*answers))


def test_scores_of_the_first_version_are_rouge():
    assert metrics.metric_of({"rows": 3}).name == "rougeL"
    assert metrics.metric_of({"metric": "accuracy"}).title == "accuracy"


def test_fewer_errors_are_an_improvement(monkeypatch):
    better = scored_by(ERRORS, monkeypatch, *[("no", "yes")] * 20, *[("yes", "yes")] * 10)
    assert (better["base"]["errors"], better["adapter"]["errors"]) == (pytest.approx(2 / 3, abs=1e-4), 0)
    assert better["gain"]["errors"] == pytest.approx(2 / 3, abs=1e-4)
    assert 0 < better["gain"]["low"] < better["gain"]["errors"] < better["gain"]["high"]
    assert judge(better).kind == "good"
    assert "It helped" in terminal.verdict(better)
    assert in_order(terminal.verdict(better), "0.67", "0.00", "lower is better", "+0.67")
    worse = scored_by(ERRORS, monkeypatch, *[("yes", "no")] * 20, *[("yes", "yes")] * 10)
    assert worse["gain"]["high"] < 0
    assert judge(worse).kind == "bad"
    assert "It made things worse" in render.verdict(worse)
    assert judge(scored_by(ERRORS, monkeypatch, ("no", "no"), ("yes", "yes"))).kind == "unsure"


def test_the_method_with_the_fewest_errors_comes_first_in_a_comparison(monkeypatch):
    monkeypatch.setitem(METRICS, "errors", ERRORS)
    method = {"metric": "errors", "base": 0.9, "low": 0, "high": 1, "loss": 1.0, "steps": 3, "seconds": 1.0}
    method |= {"adapter_bytes": 2**20, "trainable_parameters": 100}
    rows = [method | {"title": title, "score": score} for title, score in (("IA3", 0.3), ("LoRA", 0.2), ("BOFT", 0.4))]
    drawn = io.StringIO()
    Console(file=drawn, width=140).print(terminal.comparison(rows))
    assert in_order(drawn.getvalue(), "lower is better", "LoRA", "IA3", "BOFT")


def test_more_errors_than_the_bars_can_show_still_fit_in_them(monkeypatch):
    rate = metric("rate", lambda reference, answer: (float(len(answer)), 1.0), higher_is_better=False)
    html = render.score_bars(scored_by(rate, monkeypatch, ("12345", "1234")))
    assert 'width:100.0%"></i>' in html
    assert 'width:80.0%"></i>' in html


def test_a_recipe_names_its_metrics_and_check_refuses_what_does_not_exist_or_does_not_fit():
    for named in ("auto", "answer_f1", ["rougeL", "answer_f1"]):
        assert plan.check(small_recipe(evaluation__metrics=named)).plan
    with pytest.raises(TunerError, match=r"there is no 'magic'. Use: rougeL, .*answer_f1"):
        plan.check(small_recipe(evaluation__metrics=["rougeL", "magic"]))
    with pytest.raises(TunerError, match=r"accuracy can't score text generation. Use auto, or: rougeL, answer_f1"):
        plan.check(small_recipe(evaluation__metrics=["accuracy", "rougeL"]))
    with pytest.raises(TunerError) as refusal:
        plan.check(small_recipe(evaluation__metrics="magic", method__name="magic", data__source="nope.csv"))
    assert len(refusal.value.problems) == 3  # together with the other problems


def test_the_page_takes_several_metrics_with_commas_between_them():
    typed = fields.to_settings({"evaluation.metrics": " rougeL, answer_f1"})
    recipe = small_recipe().with_settings({"evaluation.metrics": typed["evaluation"]["metrics"]})
    assert recipe.evaluation.metrics == ["rougeL", "answer_f1"]
    assert fields.to_input("evaluation.metrics", recipe) == "rougeL, answer_f1"
    assert fields.to_input("evaluation.metrics", small_recipe()) == ""


def test_page_terminal_and_card_show_every_metric_that_a_recipe_names(finished, tmp_path, monkeypatch):
    monkeypatch.setitem(METRICS, "overlap", OVERLAP)
    monkeypatch.setitem(METRICS, "errors", ERRORS)
    mine = runs.Run(shutil.copytree(finished.path, tmp_path / "mine"))
    (mine.path / "evaluation.json").unlink()
    named = {"evaluation.metrics": ["overlap", "rougeL", "errors"]}
    mine.write_text("recipe.yaml", mine.recipe.with_settings(named).to_yaml())
    mine = runs.Run(mine.path)
    list(evaluate(mine))
    scores, before = mine.read_json("evaluation.json"), finished.read_json("evaluation.json")
    assert scores["metric"] == "overlap"
    assert {"overlap", "overlap_low", "overlap_high", "exact_match", "loss"} == set(scores["adapter"])
    assert [other["metric"] for other in scores["other_metrics"]] == ["rougeL", "errors"]
    rouge = scores["other_metrics"][0]
    assert rouge["adapter"]["rougeL"] == before["adapter"]["rougeL"]
    assert rouge["gain"] == before["gain"]
    shown = f"{rouge['base']['rougeL']:.2f}", f"{rouge['adapter']['rougeL']:.2f}", f"{rouge['gain']['rougeL']:+.2f}"
    for text in (terminal.verdict(scores), plain(render.run_card(mine))):
        assert in_order(text, judge(scores).headline, f"{scores['adapter']['overlap']:.2f}", "ROUGE-L", *shown)
        assert in_order(text, *shown, "Errors", "lower is better")
    text = card(mine)
    assert in_order(text, "Overlap, higher is better", f"{scores['base']['overlap']:.3f}", "ROUGE-L", "Errors")
    assert in_order(text, "ROUGE-L", f"{rouge['gain']['rougeL']:+.3f}", f"{rouge['base']['rougeL']:.3f}", "Errors")
    assert judge(scores).headline in text


def test_the_prompt_of_a_scored_row_is_its_last_question(finished, tmp_path):
    mine = runs.Run(shutil.copytree(finished.path, tmp_path / "mine"))
    (mine.path / "evaluation.json").unlink()
    roles = ("system", "user", "assistant", "user")
    turns = [[{"role": role, "content": f"{role} {i} of {row}"} for i, role in enumerate(roles)] for row in range(4)]
    rows = [{"messages": messages, "reference": "x"} for messages in turns]
    mine.write_text("data/heldout.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    mine.write_json("answers.json", {f"{row}": {"base": "b", "adapter": f"{row}"} for row in range(4)})
    list(evaluate(mine))
    examples = mine.read_json("evaluation.json")["examples"]
    assert [(e["prompt"], e["adapter"]) for e in examples] == [(f"user 3 of {row}", f"{row}") for row in range(4)]


@pytest.mark.parametrize(
    ("low", "high", "headline"),
    [(0.1, 0.2, "It helped."), (-0.1, 0.2, "No clear difference."), (-0.2, -0.1, "It made things worse.")],
)
def test_card_page_and_terminal_give_one_verdict(low, high, headline, finished, tmp_path):
    mine = runs.Run(shutil.copytree(finished.path, tmp_path / "mine"))
    gain = {"rougeL": (low + high) / 2, "low": low, "high": high}
    scores = mine.read_json("evaluation.json") | {"gain": gain, "rows": 40}
    mine.write_json("evaluation.json", scores)
    for text in (terminal.verdict(scores), plain(render.verdict(scores)), plain(render.run_card(mine)), card(mine)):
        assert headline in text
        assert text.count("It helped.") + text.count("No clear") + text.count("It made") == 1


def test_a_firm_verdict_takes_five_rows(monkeypatch):
    answers = [("no", "yes")] * 5
    scores = [scored_by(ERRORS, monkeypatch, *answers[:rows]) for rows in (4, 5)]
    assert [judge(score).kind for score in scores] == ["unsure", "good"]
    assert judge(scores[0]).headline == "Too few rows to tell."
