"""Metrics against counts by hand, and intervals that say as much as the rows do."""

import numpy as np
import pytest

from tuner import tasks
from tuner.evaluation import metrics


def mean_of(values: np.ndarray) -> np.ndarray:
    """Values as pairs whose ratio is their mean."""
    return np.stack([values, np.ones_like(values)], 1)


def said(*answers: tuple[str, str]) -> list[dict[str, str]]:
    """What base and adapter answered, row by row."""
    return [{"base": base, "adapter": adapter} for base, adapter in answers]


@pytest.mark.parametrize(
    ("reference", "answer", "score"),
    [
        ("the cat sat", "the cat sat", 1.0),
        ("the cat sat on the mat", "the cat", 2 * 1 * (2 / 6) / (1 + 2 / 6)),
        ("a b c d", "d c b a", 0.25),
        ("yes", "no", 0.0),
        ("", "", 0.0),
        ("Привет мир", "привет мир", 1.0),
    ],
)
def test_rouge_l_is_the_f_measure_of_the_longest_common_subsequence(reference, answer, score):
    assert metrics.rouge_l(reference, answer) == pytest.approx(score)
    assert metrics.PAIRS["rougeL"](reference, answer) == pytest.approx((score, 1))


@pytest.mark.parametrize(
    ("reference", "answer", "score"),
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
def test_answer_f1_counts_shared_words_without_articles_and_punctuation(reference, answer, score):
    assert metrics.answer_f1(reference, answer) == pytest.approx(score)


@pytest.mark.parametrize(
    ("reference", "answer", "pair"),
    [
        ("PER: Ada [1-1]\nLOC: Paris [4-4]", "PER: Ada [1-1]\nLOC: Paris [4-4]", (4, 4)),
        ("PER: Ada [1-1]\nLOC: Paris [4-4]", "PER: Ada [1-1]", (2, 3)),
        ("PER: Ada [1-1]", "ORG: Ada [1-1]", (0, 2)),  # the kind is wrong
        ("PER: Ada [1-1]", "PER: Ada [2-2]", (0, 2)),  # the place is
        ("PER: Ada Lovelace [1-2]", "PER: Ada [1-1]\nPER: Lovelace [2-2]", (0, 3)),
        ("", "PER: Ada [1-1]", (0, 1)),
        ("PER: Ada [1-1]", "", (0, 1)),
        ("", "", (0, 0)),
    ],
)
def test_an_entity_counts_where_kind_and_place_are_right(reference, answer, pair):
    assert metrics.entity_pair(reference, answer) == pair


def test_entity_f1_is_taken_over_all_entities_and_not_over_rows():
    references = ["PER: A [1-1]\nPER: B [3-3]\nLOC: C [5-5]", "", "ORG: D [2-2]", ""]
    adapter = ["PER: A [1-1]\nPER: B [3-3]\nLOC: C [6-6]", "", "", "PER: E [1-1]"]
    found = metrics.score("entity_f1", references, said(*(("", a) for a in adapter)))
    # Of four true ones two are found, and two that are none: precision 2/4, recall 2/4.
    assert found["adapter"]["entity_f1"] == 0.5
    assert found["base"]["entity_f1"] == 0
    assert found["gain"]["entity_f1"] == 0.5
    assert found["each"]["adapter"] == [pytest.approx(2 * 2 / 6, abs=1e-4), 1.0, 0.0, 0.0]
    assert found["adapter"]["exact_match"] == 0.25


def test_nothing_to_find_and_nothing_found_is_a_full_score():
    found = metrics.score("entity_f1", ["", ""], said(("", "PER: A [1-1]"), ("", "")))
    assert found["base"] == {"entity_f1": 1, "entity_f1_low": 1, "entity_f1_high": 1, "exact_match": 1}
    assert found["adapter"]["entity_f1"] == 0


def test_accuracy_is_the_share_of_rows_that_are_right():
    found = metrics.score(
        "accuracy",
        ["good", "bad", "good", "bad"],
        said(("good", "good"), ("good", " bad\n"), ("bad", "good"), ("Bad", "good")),
    )
    assert (found["metric"], found["rows"]) == ("accuracy", 4)
    assert found["base"]["accuracy"] == found["base"]["exact_match"] == 0.25  # a capital is another label
    assert found["adapter"]["accuracy"] == 0.75
    assert found["gain"]["accuracy"] == 0.5
    assert found["each"] == {"base": [1, 0, 0, 0], "adapter": [1, 1, 1, 0]}


def test_every_task_has_a_metric_that_is_scored_and_told():
    for task in tasks.TASKS.values():
        assert tasks.METRICS[task.metric].title
        found = metrics.score(task.metric, ["a thing"], said(("another", "a thing")))
        assert found["base"][task.metric] < found["adapter"][task.metric] == 1
    assert metrics.PAIRS.keys() == tasks.METRICS.keys()


def test_scores_of_the_first_version_are_rouge():
    assert tasks.metric_of({"rows": 3}).name == "rougeL"
    assert tasks.metric_of({"metric": "accuracy"}).title == "accuracy"


def test_the_interval_covers_the_mean_and_narrows_with_rows():
    draw = np.random.default_rng(1)
    few, many = draw.random(10), draw.random(1000)
    for values in (few, many):
        low, high = metrics.interval(mean_of(values))
        assert low < values.mean() < high
    assert np.diff(metrics.interval(mean_of(many))) < np.diff(metrics.interval(mean_of(few))) / 3


def test_the_interval_holds_the_true_mean_about_as_often_as_it_says():
    draw = np.random.default_rng(0)
    hits = sum(low <= 0.5 <= high for low, high in (metrics.interval(mean_of(draw.random(60))) for _ in range(200)))
    assert 0.90 <= hits / 200 <= 0.99


def test_the_interval_is_as_wide_as_95_percent_of_a_normal_means():
    """Of many rows the bootstrap's is the textbook's: 1.96 standard errors to each side."""
    values = np.random.default_rng(4).random(800)
    low, high = metrics.interval(mean_of(values))
    error = values.std() / 800**0.5
    assert (values.mean() - low) / error == pytest.approx(1.96, rel=0.06)
    assert (high - values.mean()) / error == pytest.approx(1.96, rel=0.06)


def test_the_interval_of_a_gain_is_as_wide_as_the_rows_differences_are():
    draw = np.random.default_rng(5)
    base = draw.random(800)
    adapter = base + 0.1 + 0.05 * draw.standard_normal(800)
    low, high = metrics.interval(mean_of(adapter), mean_of(base))
    gain, error = (adapter - base).mean(), (adapter - base).std() / 800**0.5
    assert (gain - low) / error == pytest.approx(1.96, rel=0.06)
    assert (high - gain) / error == pytest.approx(1.96, rel=0.06)


def test_base_and_adapter_keep_their_own_figures():
    found = metrics.score("rougeL", ["a b", "c d"], said(("a b", "x"), ("c d", "c d")))
    assert (found["base"]["rougeL"], found["base"]["exact_match"]) == (1, 1)
    assert (found["adapter"]["rougeL"], found["adapter"]["exact_match"]) == (0.5, 0.5)
    assert found["gain"]["rougeL"] == -0.5
    assert found["gain"]["low"] == -1
    assert found["gain"]["high"] == 0


def test_the_interval_of_a_ratio_covers_it_where_rows_weigh_differently():
    draw = np.random.default_rng(2)
    wholes = draw.integers(0, 9, 200).astype(float)
    pairs = np.stack([np.floor(wholes * draw.random(200)), wholes], 1)
    low, high = metrics.interval(pairs)
    assert low < pairs[:, 0].sum() / pairs[:, 1].sum() < high
    assert metrics.ratio(pairs) == pairs[:, 0].sum() / pairs[:, 1].sum()


def test_the_interval_of_one_row_or_of_rows_all_alike_is_a_point():
    assert metrics.interval(mean_of(np.array([0.7]))) == (0.7, 0.7)
    assert metrics.interval(mean_of(np.full(50, 0.25))) == (0.25, 0.25)


def test_a_gain_is_paired_so_what_rows_share_does_not_blur_it():
    """Rows of very different difficulty, each a little better after training: the gain is sure, the scores are not."""
    base = np.random.default_rng(3).random(40) * 0.8
    adapter = base + 0.1
    low, high = metrics.interval(mean_of(adapter), mean_of(base))
    assert (low, high) == pytest.approx((0.1, 0.1), abs=1e-4)
    assert np.diff(metrics.interval(mean_of(base))) > 0.1


def test_a_gain_is_told_with_its_interval_and_may_be_a_loss():
    references = ["yes"] * 30
    worse = metrics.score("accuracy", references, said(*[("yes", "no")] * 20, *[("yes", "yes")] * 10))
    low, high = worse["gain"]["low"], worse["gain"]["high"]
    assert worse["gain"]["accuracy"] == pytest.approx(-2 / 3, abs=1e-4)
    assert low < worse["gain"]["accuracy"] < high < 0
    same = metrics.score("accuracy", references, said(*[("yes", "yes")] * 30))
    assert same["gain"] == {"accuracy": 0, "low": 0, "high": 0}


def test_the_same_answers_get_the_same_figures_again():
    references, answers = ["a b", "x y", "z"], said(("a b c", "a c"), ("x", "x y"), ("", "z"))
    assert metrics.score("rougeL", references, answers) == metrics.score("rougeL", references, answers)
