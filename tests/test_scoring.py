"""Metrics against counts by hand, and intervals as wide as the rows warrant."""

import math
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
from conftest import ROOT

from tuner import metrics, tasks
from tuner.evaluation.score import score
from tuner.metrics import METRICS, TEXT, Metric
from tuner.rouge import rouge_l


def metric(name: str, statistics, **facts) -> Metric:
    """A metric that a test adds to the table."""
    usual = {"title": name.capitalize(), "explanation": "as the test says", "hub": name, "package": "nobody"}
    return Metric(name=name, tasks=TEXT, statistics=statistics, **usual | facts)


def word_counts(reference: str, answer: str) -> tuple[float, float, float]:
    """Shared, true and predicted words."""
    true, predicted = Counter(reference.split()), Counter(answer.split())
    return float((true & predicted).total()), float(true.total()), float(predicted.total())


def precision_times_recall(sums: np.ndarray) -> np.ndarray:
    return sums[..., 0] ** 2 / np.maximum(1, sums[..., 1] * sums[..., 2])


VALUE = metric("value", lambda reference, answer: (float(answer or 0), 1.0))
WEIGHTED = metric("weighted", lambda reference, answer: (float(answer), float(reference)))
OVERLAP = metric("overlap", word_counts, score=precision_times_recall)


def pairs(*answers: tuple[str, str]) -> list[dict[str, str]]:
    """The answers of base and adapter, row by row."""
    return [{"base": base, "adapter": adapter} for base, adapter in answers]


def scored(name: str, references: list[str], answers: list[dict[str, str]]) -> dict:
    return score([METRICS[name]], references, answers)


def values(adapter: np.ndarray, base: np.ndarray | None = None) -> dict:
    """The scores of rows whose values are known."""
    base = np.zeros_like(adapter) if base is None else base
    return score([VALUE], [""] * len(adapter), pairs(*zip(map(repr, base.tolist()), map(repr, adapter.tolist()))))


def interval(adapter: np.ndarray) -> tuple[float, float]:
    scores = values(adapter)["adapter"]
    return scores["value_low"], scores["value_high"]


def gain(adapter: np.ndarray, base: np.ndarray) -> tuple[float, float]:
    scores = values(adapter, base)["gain"]
    return scores["low"], scores["high"]


@pytest.mark.parametrize(
    ("reference", "answer", "expected"),
    [
        ("the cat sat", "the cat sat", 1.0),
        ("the cat sat on the mat", "the cat", 2 * 1 * (2 / 6) / (1 + 2 / 6)),
        ("a b c d", "d c b a", 0.25),
        ("yes", "no", 0.0),
        ("", "", 1.0),
        ("Привет мир", "привет мир", 1.0),
    ],
)
def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence(reference, answer, expected):
    assert rouge_l(reference, answer) == pytest.approx(expected)
    assert METRICS["rougeL"].statistics(reference, answer) == pytest.approx((expected, 1))


@pytest.mark.parametrize(
    ("reference", "answer", "expected"),
    [
        ("the tower", "Tower", 1.0),  # an article and a capital are nothing
        ("Paris, France!", "paris france", 1.0),
        ("An Officer and a Gentleman", "officer and gentleman", 1.0),
        ("in the year 1889", "1889", 2 * 1 / (3 + 1)),
        ("red red blue", "red blue blue", 2 * 2 / 6),  # a word counts as often as both have it
        ("theatre", "the atre", 0.0),  # an article is a word, not a part of one
        ("Paris", "London", 0.0),
        ("Paris", "", 0.0),
        ("", "Paris", 0.0),
        ("", "", 1.0),  # no answer, and none given
        ("the", "a", 1.0),  # nothing is left of either
    ],
)
def test_answer_f1_counts_shared_words_without_articles_and_punctuation(reference, answer, expected):
    assert metrics.answer_f1(reference, answer) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("reference", "answer", "counts"),
    [
        ("PER: Ada [1-1]\nLOC: Paris [4-4]", "PER: Ada [1-1]\nLOC: Paris [4-4]", (4, 4)),
        ("PER: Ada [1-1]\nLOC: Paris [4-4]", "PER: Ada [1-1]", (2, 3)),
        ("PER: Ada [1-1]", "ORG: Ada [1-1]", (0, 2)),  # the kind is wrong
        ("PER: Ada [1-1]", "PER: Ada [2-2]", (0, 2)),  # the place is
        ("PER: Ada Lovelace [1-2]", "PER: Ada [1-1]\nPER: Lovelace [2-2]", (0, 3)),
        ("", "PER: Ada [1-1]", (0, 1)),
        ("PER: Ada [1-1]", "", (0, 1)),
        ("", "", (0, 0)),
        ("PER: Ada [1-1]", "PER: Ada [1-1]\nPER: Ada [1-1]", (2, 2)),  # the same one twice
    ],
)
def test_an_entity_counts_where_kind_and_place_are_right(reference, answer, counts):
    assert metrics.entity_counts(reference, answer) == counts


def test_entity_f1_is_taken_over_all_entities_and_not_over_rows():
    references = ["PER: A [1-1]\nPER: B [3-3]\nLOC: C [5-5]", "", "ORG: D [2-2]", ""]
    adapter = ["PER: A [1-1]\nPER: B [3-3]\nLOC: C [6-6]", "", "", "PER: E [1-1]"]
    scores = scored("entity_f1", references, pairs(*(("", a) for a in adapter)))
    # Of four true ones two are found, and two that are none: precision 2/4, recall 2/4.
    assert scores["adapter"]["entity_f1"] == 0.5
    assert scores["base"]["entity_f1"] == 0
    assert scores["gain"]["entity_f1"] == 0.5
    assert scores["each"]["entity_f1"]["adapter"] == [pytest.approx(2 * 2 / 6, abs=1e-4), 1.0, 0.0, 0.0]
    assert scores["adapter"]["exact_match"] == 0.25


def test_nothing_to_find_and_nothing_found_is_a_full_score():
    scores = scored("entity_f1", ["", ""], pairs(("", "PER: A [1-1]"), ("", "")))
    assert scores["base"] == {"entity_f1": 1, "exact_match": 1}
    assert scores["adapter"]["entity_f1"] == 0


@pytest.mark.parametrize("rows", [1, 3, 9, 10])
def test_fewer_than_ten_rows_get_no_intervals(rows):
    scores = score([METRICS["rougeL"], METRICS["answer_f1"]], ["x y"] * rows, pairs(*[("x", "x y")] * rows))
    for part in (scores, *scores["other_metrics"]):
        bounds = {key for key in (*part["base"], *part["adapter"], *part["gain"]) if "low" in key or "high" in key}
        assert bool(bounds) == (rows == 10)
        assert part["gain"][part["metric"]] == pytest.approx(1 / 3, abs=1e-4)


def test_accuracy_is_the_share_of_rows_that_are_right():
    scores = scored(
        "accuracy",
        ["good\n", "bad", "good", "bad"],
        pairs(("good", "good"), ("good", " bad\n"), ("bad", "good"), ("Bad", "good")),
    )
    assert (scores["metric"], scores["rows"]) == ("accuracy", 4)
    assert scores["base"]["accuracy"] == scores["base"]["exact_match"] == 0.25  # a capital is another label
    assert scores["adapter"]["accuracy"] == 0.75
    assert scores["gain"]["accuracy"] == 0.5
    assert scores["each"] == {"accuracy": {"base": [1, 0, 0, 0], "adapter": [1, 1, 1, 0]}}


def test_a_value_per_row_is_of_the_reference_and_then_of_the_answer():
    statistics = metrics.mean_of(lambda reference, answer: len(reference) + len(answer) / 10)
    assert statistics("four", "to") == (pytest.approx(4.2), 1.0)


def test_every_task_has_a_metric_that_fits_it():
    for task in tasks.TASKS.values():
        assert task.name in METRICS[task.metric].tasks
        scores = scored(task.metric, ["a thing"], pairs(("another", "a thing")))
        assert scores["base"][task.metric] < scores["adapter"][task.metric] == 1


def test_the_interval_covers_the_mean_and_narrows_with_rows():
    draw = np.random.default_rng(1)
    few, many = draw.random(10), draw.random(1000)
    for sample in (few, many):
        low, high = interval(sample)
        assert low < sample.mean() < high
    assert np.diff(interval(many)) < np.diff(interval(few)) / 3


def test_the_interval_holds_the_true_mean_about_as_often_as_it_says():
    draw = np.random.default_rng(0)
    hits = sum(low <= 0.5 <= high for low, high in (interval(draw.random(60)) for _ in range(200)))
    assert 0.90 <= hits / 200 <= 0.99


def test_the_interval_is_as_wide_as_95_percent_of_a_normal_means():
    """Of many rows it is the textbook's: 1.96 standard errors to each side."""
    sample = np.random.default_rng(4).random(800)
    low, high = interval(sample)
    error = sample.std() / 800**0.5
    assert (sample.mean() - low) / error == pytest.approx(1.96, rel=0.06)
    assert (high - sample.mean()) / error == pytest.approx(1.96, rel=0.06)


def test_the_interval_of_a_gain_is_as_wide_as_the_rows_differences_are():
    draw = np.random.default_rng(5)
    base = draw.random(800)
    adapter = base + 0.1 + 0.05 * draw.standard_normal(800)
    low, high = gain(adapter, base)
    difference, error = (adapter - base).mean(), (adapter - base).std() / 800**0.5
    assert (difference - low) / error == pytest.approx(1.96, rel=0.06)
    assert (high - difference) / error == pytest.approx(1.96, rel=0.06)


def test_base_and_adapter_keep_their_own_figures():
    scores = scored("rougeL", ["a b", "c d"] * 8, pairs(("a b", "x"), ("c d", "c d")) * 8)
    assert (scores["base"]["rougeL"], scores["base"]["exact_match"]) == (1, 1)
    assert (scores["adapter"]["rougeL"], scores["adapter"]["exact_match"]) == (0.5, 0.5)
    assert scores["base"]["rougeL_low"] > scores["adapter"]["rougeL_high"]
    assert scores["gain"]["rougeL"] == -0.5
    assert -1 < scores["gain"]["low"] < -0.5 < scores["gain"]["high"] < 0


def test_the_interval_of_a_ratio_covers_it_where_rows_weigh_differently():
    draw = np.random.default_rng(2)
    wholes = draw.integers(0, 9, 200).astype(float)
    parts = np.floor(wholes * draw.random(200))
    scores = score([WEIGHTED], list(map(repr, wholes.tolist())), pairs(*[(p, p) for p in map(repr, parts.tolist())]))
    own = scores["adapter"]
    assert own["weighted_low"] < parts.sum() / wholes.sum() < own["weighted_high"]
    assert own["weighted"] == pytest.approx(parts.sum() / wholes.sum(), abs=1e-4)


def test_a_gain_is_paired_so_what_rows_share_does_not_blur_it():
    """Rows of very different difficulty, each about as much better: the gain is sure, and the scores are not."""
    draw = np.random.default_rng(3)
    base = draw.random(40) * 0.8
    assert gain(base + 0.1 + 0.01 * draw.standard_normal(40), base) == pytest.approx((0.1, 0.1), abs=0.01)
    assert np.diff(interval(base)) > 0.1


def test_a_gain_is_told_with_its_interval_and_may_be_a_loss():
    references = ["yes"] * 30
    worse = scored("accuracy", references, pairs(*[("yes", "no")] * 20, *[("yes", "yes")] * 10))
    low, high = worse["gain"]["low"], worse["gain"]["high"]
    assert worse["gain"]["accuracy"] == pytest.approx(-2 / 3, abs=1e-4)
    assert low < worse["gain"]["accuracy"] < high < 0
    same = scored("accuracy", references, pairs(*[("yes", "yes")] * 30))
    assert same["gain"]["accuracy"] == 0
    assert -0.15 < same["gain"]["low"] == -same["gain"]["high"] < 0  # that no row differs is not that none would


def test_the_same_answers_get_the_same_figures_again():
    references, answers = ["a b", "x y", "z"], pairs(("a b c", "a c"), ("x", "x y"), ("", "z"))
    assert scored("rougeL", references, answers) == scored("rougeL", references, answers)


def test_a_corpus_wide_metric_is_scored_by_the_sums_of_its_statistics():
    draw = np.random.default_rng(6)

    def text() -> str:
        return " ".join(draw.choice(list("abcdefgh"), draw.integers(1, 12)))

    references = [text() for _ in range(60)]
    answers = pairs(*((text(), reference) for reference in references))
    scores = score([OVERLAP], references, answers)
    counts = np.array([word_counts(r, a["base"]) for r, a in zip(references, answers, strict=True)])

    def by_hand(rows: np.ndarray) -> float:
        shared, true, predicted = counts[rows].sum(0)
        return shared**2 / (true * predicted)

    everything = by_hand(np.arange(60))
    assert scores["base"]["overlap"] == pytest.approx(everything, abs=1e-4)
    assert scores["base"]["overlap"] != pytest.approx(
        np.mean(scores["each"]["overlap"]["base"]), abs=0.01
    )  # no mean of rows
    samples = [by_hand(draw.integers(0, 60, 60)) for _ in range(4000)]
    low, high = np.percentile(samples, [2.5, 97.5])  # of a bootstrap, which holds for so many rows
    assert scores["base"]["overlap_low"] == pytest.approx(low, abs=0.02)
    assert scores["base"]["overlap_high"] == pytest.approx(high, abs=0.02)
    assert scores["adapter"]["overlap"] == 1
    assert scores["gain"]["overlap"] == pytest.approx(1 - everything, abs=2e-4)
    assert scores["gain"]["low"] == pytest.approx(1 - high, abs=0.02)


def test_further_metrics_stand_beside_the_first_in_the_same_shape():
    references, answers = ["a b", "c d", "e"], pairs(("a b", "x"), ("c", "c d"), ("", "e"))
    both = score([METRICS["rougeL"], METRICS["answer_f1"]], references, answers)
    (other,) = both.pop("other_metrics")
    alone = scored("answer_f1", references, answers)
    assert other == {key: alone[key] for key in ("metric", "gain", "pairs")} | {
        v: {k: value for k, value in alone[v].items() if k != "exact_match"} for v in ("base", "adapter")
    }
    assert both.pop("each")["answer_f1"] == alone["each"]["answer_f1"]
    left = ("other_metrics", "each")
    assert both == {k: v for k, v in scored("rougeL", references, answers).items() if k not in left}


def test_two_thousand_rows_with_many_statistics_take_seconds_at_most():
    many = metric(
        "many", lambda reference, answer: tuple(float(len(answer) + i) for i in range(18)), score=lambda s: s[..., 0]
    )
    texts = [str(i) for i in range(2000)]
    began = time.process_time()
    score([many], texts, pairs(*zip(texts, texts)))
    assert time.process_time() - began < 5


def test_a_gain_of_nothing_has_no_minus_sign():
    scores = values(np.array([0.3, 0.2, 0.1]), np.array([0.1, 0.2, 0.3]))  # whose sums differ by the last bit
    assert math.copysign(1, scores["gain"]["value"]) == 1


def test_reading_the_names_of_metrics_imports_nothing_heavy():
    code = (
        "import sys; from tuner import metrics; from tuner.evaluation import verdict; list(metrics.METRICS)\n"
        "print([m for m in ('numpy', 'torch', 'regex') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_scoring_the_same_answers_again_gives_the_same_intervals():
    rng = np.random.default_rng(5)
    base, adapter = rng.random(30), rng.random(30)
    assert values(adapter, base) == values(adapter, base)
