"""Questions with several right answers: all are kept, one is trained on, and the closest one is scored against."""

import json
import shutil
import time

import pytest
from conftest import plain
from test_tags import table

from tuner import runs
from tuner.data.encode import heldout_prompt
from tuner.errors import TunerError
from tuner.evaluation.answers import evaluate
from tuner.evaluation.score import score
from tuner.hub.card import card
from tuner.metrics import chosen
from tuner.planning import plan
from tuner.recipe import Recipe
from tuner.tasks import TASKS
from tuner.ui import result

CONTEXT = "The Denver Broncos beat the Panthers. Denver was glad."
QUESTION = {"question": "Who won?", "context": CONTEXT}
SEVERAL = ["The Denver Broncos", "Denver Broncos"]


@pytest.mark.parametrize(
    "answers",
    [
        {"text": [*SEVERAL, SEVERAL[0]], "answer_start": [0, 4, 0]},
        {"text": SEVERAL, "answer_start": [7]},
        {"text": SEVERAL},
        [{"text": SEVERAL[0], "answer_start": 0}, {"text": SEVERAL[1], "answer_start": 4}],
        json.dumps({"text": SEVERAL, "answer_start": [0, 4]}),
    ],
)
def test_all_right_answers_are_kept_and_the_first_is_trained_on(tmp_path, answers):
    (row,) = table(tmp_path, [QUESTION | {"answers": answers}, *[QUESTION | {"answers": {"text": ["Denver"]}}]])[:1]
    assert (row["answer"], row["start"], row["answers"]) == (SEVERAL[0], 0, SEVERAL)
    prompt = heldout_prompt(row)
    assert (prompt["reference"], prompt["references"]) == (SEVERAL[0], SEVERAL)


def test_the_first_answer_that_occurs_is_trained_on(tmp_path):
    answers = {"text": ["Broncos of Denver", "Denver"], "answer_start": [4, 38]}
    (row,) = table(tmp_path, [QUESTION | {"answers": answers}])
    assert (row["answer"], row["start"]) == ("Denver", 38)
    assert row["answers"] == ["Broncos of Denver", "Denver"]  # a person may have written what the text does not say
    with pytest.raises(TunerError, match="an answer that does not occur in its context"):
        table(tmp_path, [QUESTION | {"answers": {"text": ["Rome", "Paris"], "answer_start": [0, 1]}}])


@pytest.mark.parametrize("answers", [{"text": [], "answer_start": []}, {"text": ["Denver"], "answer_start": [4]}])
def test_one_answer_or_none_needs_no_list(tmp_path, answers):
    (row,) = table(tmp_path, [QUESTION | {"answers": answers}])
    assert heldout_prompt(row).keys() == {"messages", "reference"}
    assert heldout_prompt(row)["reference"] == "".join(answers["text"])


def test_more_answers_than_anybody_gives_are_refused_at_once(tmp_path):
    row = {"question": "Who?", "context": "a" * 200_000, "answers": {"text": ["a" * 500 + "b"] * 5_000}}
    began = time.process_time()
    with pytest.raises(TunerError, match=r'Row 1 of rows.jsonl has 5,000 answers in "answers". Keep at most 100'):
        table(tmp_path, [row])
    assert time.process_time() - began < 1


def test_a_run_keeps_all_right_answers_of_its_held_out_rows(tmp_path, no_estimates):
    rows = [QUESTION | {"answers": {"text": SEVERAL, "answer_start": [0, 4]}} for _ in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = Recipe.load("entities").with_settings({"data.source": "rows.jsonl", "budget.steps": 2})
    run = plan.prepare(recipe, base=tmp_path, path=tmp_path / "run")
    assert {(row["reference"], *row["references"]) for row in run.heldout()} == {(SEVERAL[0], *SEVERAL)}


def test_an_evaluation_takes_the_closest_right_answer_and_old_rows_have_one(finished, tmp_path):
    mine = runs.Run(shutil.copytree(finished.path, tmp_path / "mine"))
    (mine.path / "evaluation.json").unlink()
    mine.write_text("recipe.yaml", mine.recipe.with_settings({"evaluation.rows": 16}).to_yaml())
    mine = runs.Run(mine.path)
    messages = [{"role": "user", "content": "?"}]
    row = {"messages": messages, "reference": "one"}
    rows = [row, row | {"references": ["one", "two"]}] * 8
    mine.write_text("data/heldout.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    mine.write_json("answers.json", {f"{row}": {"base": "no", "adapter": "two"} for row in range(16)})
    list(evaluate(mine))
    scores = mine.read_json("evaluation.json")
    assert [(row["reference"], row["adapter_rougeL"]) for row in scores["examples"]] == [("one", 0), ("one", 1)] * 4
    assert scores["adapter"]["exact_match"] == 0.5


def test_page_and_card_tell_one_figure_of_exact_matches(finished, tmp_path):
    mine = runs.Run(shutil.copytree(finished.path, tmp_path / "mine"))
    answers = [{"base": "x", "adapter": "Paris"}] * 5 + [{"base": "x", "adapter": "a Paris."}] * 15
    scores = score(chosen("auto", TASKS["question_answering"]), ["Paris"] * 20, answers)
    for variant in ("base", "adapter"):
        scores[variant]["loss"] = 1.0
    mine.write_json(
        "evaluation.json", {key: value for key, value in scores.items() if key != "each"} | {"examples": []}
    )
    shown, text = plain(result.variants(scores) + result.other_metrics(scores)), card(runs.Run(mine.path))
    assert "exact matches" not in shown
    assert "exact match" in shown
    assert "answers equal to the reference" not in text
    assert "| exact match (95% interval; gain +1.000" in text
