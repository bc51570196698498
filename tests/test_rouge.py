"""ROUGE: equal to rouge_score's for English prose, and right where rouge_score drops what was written."""

import json
import random
import sys
import time
from itertools import pairwise

import pytest
from conftest import ROOT
from rouge_score.rouge_scorer import RougeScorer

from tuner.metrics import METRICS
from tuner.rouge import MOST_WORDS

sys.path.append(str(ROOT / "benchmarks"))

import rouge as benchmark

KINDS = ["rouge1", "rouge2", "rougeL", "rougeLsum"]


def value(kind: str, reference: str, answer: str) -> float:
    """What a metric gives a single answer."""
    total, rows = METRICS[kind].statistics(reference, answer)
    assert rows == 1
    return total


def summaries(name: str) -> list[list[str]]:
    """The texts of each row of an example."""
    lines = (ROOT / "examples" / name).read_text(encoding="utf-8").splitlines()
    return [[str(text) for text in json.loads(line).values()] for line in lines]


def prose() -> list[tuple[str, str]]:
    """English references and answers: of one row, of neighbors, with several sentences each on its line."""
    pairs = []
    for name in ("support.jsonl", "corporate.jsonl"):
        rows = summaries(name)[:40]
        for (long, short, *_), (_, other, *_) in pairwise(rows):
            pairs += [(short, other), (short, long), (long.replace(". ", ".\n"), other.replace(". ", ".\n"))]
    ours = (
        "I'll be there at 9:00 PM, won't I?\nThe well-known T-shirt costs $12.50, 10% less: a tie worth $13.99.",
        "i ll be there at 9 pm, won t you? The T-shirt (well known) costs 12 dollars 50, 10 percent less.",
        "#Person1# pays 20,000 RMB; it's \"fine\" -- and/or 'not' [so] fine... e-mail me@example.com & Co._ltd",
        "#Person2# paid 20 000 RMB and finds it fine. Email me at example.com",
    )
    return pairs + [(one, other) for one in ours for other in ours]


@pytest.mark.parametrize("kind", KINDS)
def test_english_prose_gets_the_figures_of_rouge_score(kind):
    scorer = RougeScorer([kind])
    figures = [(scorer.score(a, b)[kind].fmeasure, value(kind, a, b)) for a, b in prose()]
    assert len({round(theirs, 6) for theirs, _ in figures}) > 50
    assert max(abs(theirs - ours) for theirs, ours in figures) < 1e-9


@pytest.mark.long
@pytest.mark.parametrize("method", benchmark.METHODS)
def test_a_summarizer_that_was_trained_gets_the_figures_of_rouge_score(tmp_path, no_estimates, method):
    rows = (ROOT / "examples/support.jsonl").read_text(encoding="utf-8").splitlines()[:24]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    table, scores = benchmark.figures(str(tmp_path / "rows.jsonl"), method, steps=8, heldout=6, folder=tmp_path)
    assert table.keys() == {"base", "few_shot", "few_shot_similar", "adapter"} == {*table} & scores.keys()
    for ours, theirs in [pair for figures in table.values() for pair in figures]:
        assert ours == pytest.approx(theirs, abs=5e-5)
    assert all(0.05 < theirs < 1 for kind in (0, 1, 3) for theirs in table["adapter"][kind][1:])


@pytest.mark.parametrize("kind", KINDS)
def test_repeated_words_in_any_order_get_the_figures_of_rouge_score(kind):
    """Where several longest subsequences are as long, the same one is chosen: it counts in the sum of sentences."""
    draw, scorer = random.Random(1), RougeScorer([kind])

    def text() -> str:
        return "".join(draw.choice("abcd") + draw.choice("   \n") for _ in range(draw.randint(2, 30)))

    for _ in range(300):
        reference, answer = text(), text()
        expected = 1 if reference.split() == answer.split() else scorer.score(reference, answer)[kind].fmeasure
        assert value(kind, reference, answer) == pytest.approx(expected, abs=1e-9), (reference, answer)


@pytest.mark.parametrize(
    ("reference", "answer", "expected"),
    [
        ("今天天气很好。", "今天天气很坏。", 5 / 6),  # a character is a word
        ("我爱 Python 编程", "我愛Python編程", 3 / 5),
        ("ラーメンを食べた", "ラーメンを飲んだ", 2 * 5 / (8 + 8)),
        ("々ー", "々一", 0.5),
        ("ฉันรักแมว", "ฉันรักหมา", 2 * 5 / (7 + 7)),
        ("ຂ້ອຍຮັກເຈົ້າ", "ຂ້ອຍ", 2 * 3 / (8 + 3)),
        ("ខ្ញុំស្រឡាញ់", "ខ្ញុំ", 2 * 1 / (4 + 1)),
        ("မြန်မာ", "မြန်", 2 * 2 / (3 + 2)),
        ("나는 고양이를 좋아해", "나는 개를 좋아해", 2 / 3),  # Korean is written with spaces
        ("कि", "की", 0.0),
        ("कि", "कि", 1.0),
        ("שָׁלוֹם", "שלום", 0.0),
        ("می‌خواهم", "می‌خواهم", 1.0),
        ("cafe\u0301 noir", "café NOIR", 1.0),
        ("Die STRASSE", "die straße", 1.0),
        ("İstanbul", "i̇stanbul", 1.0),
        ("Ελλάς", "ελλάσ", 1.0),
    ],
)
def test_words_of_every_script_count(reference, answer, expected):
    assert value("rougeL", reference, answer) == pytest.approx(expected)
    assert value("rouge1", reference, answer) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("reference", "answer", "expected"),
    [
        ("-5", "5", 0.0),
        ("-5", "-5", 1.0),
        ("-5", "\u22125", 1.0),
        ("It is -5 degrees", "It is 5 degrees", 0.75),
        ("-$5", "$5", 0.0),
        ("-$5", "-5", 1.0),
        ("it is --5", "it is 5", 1.0),  # a dash
        ("-.5", ".5", 0.0),
        (".5", "5", 0.0),
        ("-0.5", "0.5", 0.5),
        ("3.5", "35", 0.0),
        ("3.5", "3.5", 1.0),
        ("1990-95", "1990 to 95", 0.8),  # a hyphen between two numbers is no sign
        ("x-5", "x 5", 1.0),
        ("(a) -5", "(a) 5", 0.5),
        ("wait...5 min", "wait 5 min", 1.0),
        ("+", "+", 1.0),
        ("+", "-", 0.0),
        ("5 + 3", "5 - 3", 0.8),
        ("a <= b", "a < b", 2 / 3),
        ("a != b", "a = b", 2 / 3),
        ("3 * 4", "3 / 4", 2 / 3),
        ("(3 + 1) ^ 2", "(3 + 1) * 2", 0.8),
        ("and / or, 24/7", "and or 24 7", 1.0),  # as in rouge_score
        ("a → b", "a ← b", 2 / 3),
        ("€5", "$5", 2 / 3),
        ("$5", "5", 1.0),  # as in rouge_score
        ("👍", "👎", 0.0),
        ("👍🏽", "👍🏿", 0.0),
        ("🇩🇪", "🇫🇷", 0.0),
        ("ok 👍", "ok", 2 / 3),
        ("H₂O", "H₂O", 1.0),
        ("x²", "x2", 0.0),
    ],
)
def test_signs_numbers_and_symbols_count(reference, answer, expected):
    assert value("rougeL", reference, answer) == pytest.approx(expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["", "...", "…", "👍", "+", "-", "?!", "yes", "42", "好", " a\nb ", "&", "\u0301"])
def test_an_answer_that_equals_its_reference_gets_a_full_score(kind, text):
    assert value(kind, text, text) == value(kind, text, f"{text}\n") == 1


@pytest.mark.parametrize("kind", KINDS)
def test_one_word_that_is_right_needs_no_second_one(kind):
    assert value(kind, "Yes.", "yes") == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("reference", "answer"), [("...", "?"), ("", "."), ("yes", ""), ("", "yes"), ("?", "yes")])
def test_an_answer_that_shares_no_word_with_another_reference_gets_nothing(kind, reference, answer):
    assert value(kind, reference, answer) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_reference_of_a_megabyte_is_scored_in_a_moment(kind):
    hostile = ["a " * 150_000, "a" * 300_000, "一" * 300_000, "👨\u200d" * 100_000, "-." * 150_000]
    hostile += ["a" + "\u0301\u0316" * 100_000]  # which normalization would put in order, in quadratic time
    answer = "a b -5 一 👍 " * 100
    began = time.process_time()
    for reference in hostile:
        value(kind, reference, answer)
    assert time.process_time() - began < 4


@pytest.mark.parametrize("kind", KINDS)
def test_of_a_text_without_end_the_beginning_is_scored(kind):
    assert value(kind, "a " * (MOST_WORDS + 1000) + "b " * 1000, "a " * MOST_WORDS) == 1


def test_lines_without_end_are_scored_in_seconds_and_so_are_answers_of_as_many():
    began = time.process_time()
    value("rougeLsum", "a b\n" * 200_000, "b a\n" * 2_000)
    assert time.process_time() - began < 6
