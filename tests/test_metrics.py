"""METRICS beside ROUGE: macro F1, exact match, several right answers, and which ones a task is scored by."""

import random
import shutil

import numpy as np
import pytest
from conftest import plain
from test_scoring import metric

from tuner import runs, terminal
from tuner.evaluation.score import score
from tuner.evaluation.verdict import judge
from tuner.hub.card import card
from tuner.metrics import METRICS, chosen
from tuner.tasks import TASKS
from tuner.ui import render


def scores(name: str, references: list, answers: list[str]) -> dict:
    """The adapter's scores by one metric; the base model says nothing."""
    return score([METRICS[name]], references, [{"base": "", "adapter": answer} for answer in answers])["adapter"]


def labels(seed: int, kinds: str, rows: int) -> tuple[list[str], list[str]]:
    """Labels and answers, some of which are wrong, and a few no label of any row."""
    draw = random.Random(seed)
    true = [draw.choice(kinds) for _ in range(rows)]
    return true, [label if draw.random() < 0.6 else draw.choice(kinds + "z") for label in true]


def macro_f1(true: list[str], given: list[str]) -> float:
    """By hand: the mean of the F1 of all labels that occur."""
    values = []
    for label in {*true, *given}:
        right = sum(a == b == label for a, b in zip(true, given))
        values.append(2 * right / (true.count(label) + given.count(label)))
    return sum(values) / len(values)


@pytest.mark.parametrize(
    ("seed", "kinds", "rows", "by_scikit_learn"),
    [
        (0, "abc", 40, 0.597619047619),
        (1, "abcdefgh", 60, 0.587270914807),
        (2, "ab", 15, 0.574358974359),
        (3, "abcdef", 7, 0.577777777778),
    ],
)
def test_macro_f1_is_that_of_scikit_learn(seed, kinds, rows, by_scikit_learn):
    """f1_score(..., average="macro") of scikit-learn 1.9.1."""
    true, given = labels(seed, kinds, rows)
    assert macro_f1(true, given) == pytest.approx(by_scikit_learn, abs=1e-12)
    assert scores("macro_f1", true, given)["macro_f1"] == pytest.approx(by_scikit_learn, abs=5e-5)


def test_macro_f1_of_a_resample_is_that_of_the_drawn_rows():
    true, given = labels(4, "abcdef", 12)
    table = METRICS["macro_f1"].table(true, given)
    draw = np.random.default_rng(0)
    for _ in range(50):
        rows = draw.integers(0, 12, 12)
        times = np.bincount(rows, minlength=12)
        expected = macro_f1([true[i] for i in rows], [given[i] for i in rows])
        assert float(METRICS["macro_f1"].score(times @ table)) == pytest.approx(expected)


def test_always_the_most_frequent_label_is_often_right_and_has_a_low_macro_f1():
    true = ["good"] * 90 + ["bad"] * 10
    always = score(
        chosen("auto", TASKS["classification"]), true, [{"base": "good", "adapter": f"{t}\n"} for t in true]
    )
    (other,) = always["other_metrics"]
    assert (always["base"]["accuracy"], always["adapter"]["accuracy"]) == (0.9, 1)
    assert (other["metric"], other["base"]["macro_f1"], other["adapter"]["macro_f1"]) == ("macro_f1", 0.4737, 1)
    assert other["base"]["macro_f1_low"] < 0.4737 < other["base"]["macro_f1_high"]
    assert 0.4 < other["gain"]["low"] < other["gain"]["macro_f1"] < other["gain"]["high"]


@pytest.mark.parametrize(
    ("rare", "answered", "fewest"),
    [(10, "bad", 10), (9, "bad", 9), (10, "none", 0)],  # one answer is a label that no held-out row has
)
def test_macro_f1_has_an_interval_only_if_each_label_has_as_many_rows_as_a_verdict_takes(
    rare, answered, fewest, finished, tmp_path
):
    true = ["good"] * 30 + ["bad"] * rare
    given = [{"base": "good", "adapter": label} for label in [*true[:-1], answered]]
    scored = score(chosen("auto", TASKS["classification"]), true, given)
    (other,) = scored["other_metrics"]
    assert other["fewest_rows"] == fewest
    assert {"low" in part["gain"] for part in (scored, other)} == {True, fewest == 10}
    assert ("macro_f1_low" in other["adapter"]) == (fewest == 10)
    count = {0: "none", 9: "9"}.get(fewest)
    said = f"Macro F1 has no interval: that takes 10 held-out rows of each label, and one has {count}."
    assert (said in judge(scored).text()) == (fewest < 10)
    assert "By macro F1" not in judge(scored).text()
    alone = score(chosen("macro_f1", TASKS["classification"]), true, given)
    headline = "No verdict: a label has too few held-out rows."
    assert (judge(alone).headline == headline) == (fewest < 10)
    assert (said in judge(alone).text()) == (fewest < 10)
    mine = runs.Run(shutil.copytree(finished.path, tmp_path / "mine"))
    for scores in (scored, alone):
        scores.pop("each", None)
        mine.write_json("evaluation.json", scores)
        read = mine.read_json("evaluation.json")
        assert read == scores
        shown = card(mine).partition("## Data")[0], terminal.verdict(read), plain(render.run_card(mine))
        for text in shown:
            assert ("Macro F1 has no interval" in text) == (fewest < 10)
        assert ("macro F1 (95% interval" in shown[0] or "F1, higher is better (95%" in shown[0]) == (fewest == 10)


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("generation", ["rougeL", "perplexity"]),
        ("seq2seq", ["rougeL", "perplexity"]),
        ("classification", ["accuracy", "macro_f1"]),
        ("token_classification", ["entity_f1"]),
        ("question_answering", ["answer_f1", "exact_match"]),
    ],
)
def test_a_task_is_scored_by_the_metrics_of_its_field(task, names):
    assert [metric.name for metric in chosen("auto", TASKS[task])] == names
    assert [metric.name for metric in chosen(names[-1], TASKS[task])] == names[-1:]  # as the recipe says, and no more


@pytest.mark.parametrize(
    ("references", "answer", "f1", "exact"),
    [
        ("The Tower", "tower!", 1, 1),  # SQuAD's script drops case, punctuation, articles and blanks
        ("the  tower", "A tower ", 1, 1),
        ("Tower", "towers", 0, 0),
        (["Denver Broncos", "the Broncos"], "Broncos", 1, 1),
        (["Denver Broncos", "the Broncos"], "Denver", 2 / 3, 0),
        (["1889", "in 1889", "year 1889"], "in year 1889", 0.8, 0),
        (["Paris"], "Paris", 1, 1),
        ("", "", 1, 1),  # a question without an answer
        ("", "Paris", 0, 0),
        ("Paris", "", 0, 0),
    ],
)
def test_an_answer_is_compared_with_the_right_answer_that_it_is_closest_to(references, answer, f1, exact):
    assert scores("answer_f1", [references], [answer])["answer_f1"] == pytest.approx(f1, abs=1e-4)
    assert scores("exact_match", [references], [answer])["exact_match"] == exact


def test_questions_with_and_without_answers_are_scored_together():
    references = [["Paris", "in Paris"], "", "", "Ada"]
    answers = [{"base": "x", "adapter": a} for a in ("paris", "", "no", "Ada Lovelace")]
    both = score(chosen("auto", TASKS["question_answering"]), references, answers)
    assert both["adapter"]["answer_f1"] == pytest.approx((1 + 1 + 0 + 2 / 3) / 4, abs=1e-4)
    assert both["other_metrics"][0]["adapter"]["exact_match"] == 0.5
    assert "exact_match" not in both["adapter"]  # which would be another figure of the same name


def test_answers_to_other_rows_are_compared_with_all_right_answers():
    references = [[f"in {name}", name] for name in "ABCDEFGHIJKLMNOP"]
    both = score(
        chosen("auto", TASKS["question_answering"]), references, [{"base": "", "adapter": r[1]} for r in references]
    )
    assert both["adapter"]["answer_f1"] == 1
    assert both["other_rows"]["answer_f1"] == 0 < both["other_rows"]["low"]


def test_equal_answers_are_counted_against_all_right_answers():
    assert scores("rougeL", [["one", "two"], "one"], ["two ", "two"])["exact_match"] == 0.5


def test_where_less_is_better_the_closest_right_answer_has_the_least():
    errors = metric("errors", lambda reference, answer: (float(reference != answer), 1.0), higher_is_better=False)
    assert errors.table([["one", "two"], ["one", "two"]], ["two", "three"]).tolist() == [[0, 1], [1, 1]]


@pytest.mark.parametrize("name", [name for name, scored in METRICS.items() if not scored.from_losses])
def test_of_several_right_answers_the_one_counts_that_scores_best(name):
    scored = METRICS[name]
    references = ["PER: Ada [1-1]", "LOC: Paris [4-4]"]
    several = scored.table([references, references], ["LOC: Paris [4-4]", "x"])
    single = scored.table([references[1], references[0]], ["LOC: Paris [4-4]", "x"])
    assert scored.score(several) == pytest.approx(scored.score(single))
    assert float(scored.score(several[0])) == 1
