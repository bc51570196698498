"""Each metric has the figure of the package that others use for it, to 1e-9, on the shipped rows."""

import json
import random
import re
import string
from collections import Counter
from statistics import mean

import pytest
import sacrebleu
from conftest import ROOT
from rouge_score.rouge_scorer import RougeScorer
from seqeval.metrics import f1_score as seqeval_f1
from sklearn.metrics import accuracy_score, f1_score

from tuner.data.tags import entities
from tuner.metrics import METRICS


def rows(name: str) -> list[dict]:
    return [json.loads(line) for line in (ROOT / "examples" / name).read_text(encoding="utf-8").splitlines()]


def worsened(text: str, draw: random.Random) -> str:
    """A text that lacks words, has others twice or in capitals, and is sometimes empty."""
    words = [word for word in text.split() for _ in range(draw.choice((0, 1, 1, 1, 1, 2)))]
    return " ".join(word.upper() if draw.random() < 0.1 else word for word in words) * (draw.random() < 0.95)


def prose() -> tuple[list[str], list[list[str]], list[str]]:
    """References, the same with a second right answer for each, and answers."""
    draw = random.Random(0)
    right = [row["completion"] for row in rows("corporate.jsonl")[:60]]
    right += [row[key] for row in rows("support.jsonl")[:40] for key in ("summary", "dialogue")]
    return right, [[text, worsened(text, draw) or "none"] for text in right], [worsened(text, draw) for text in right]


def total(name: str, references: list, answers: list[str]) -> float:
    metric = METRICS[name]
    return float(metric.score(metric.table(references, answers).sum(0)))


@pytest.mark.parametrize(("name", "theirs"), [("chrf", sacrebleu.CHRF()), ("bleu", sacrebleu.BLEU())])
def test_chrf_and_bleu_are_those_of_sacrebleu(name, theirs):
    right, several, answers = prose()
    assert "" in answers
    one = theirs.corpus_score(answers, [right]).score / 100
    assert total(name, right, answers) == pytest.approx(one, abs=1e-9)
    assert total(name, several, answers) == pytest.approx(
        theirs.corpus_score(answers, [list(texts) for texts in zip(*several)]).score / 100, abs=1e-9
    )
    assert 0.2 < one < 0.9
    for text in ("", "word"):
        given = [*answers, text], [*right, ""]
        expected = theirs.corpus_score(given[0], [given[1]]).score / 100
        assert total(name, given[1], given[0]) == pytest.approx(expected, abs=1e-9)
    assert total(name, right, right) == 1


def test_bleu_of_a_single_row_is_sacrebleus_of_a_sentence():
    right, _, answers = prose()
    metric, theirs = METRICS["bleu"], sacrebleu.BLEU(effective_order=True)
    each = metric.of_rows(metric.table(right, answers))
    expected = [theirs.sentence_score(answer, [text]).score / 100 for text, answer in zip(right, answers, strict=True)]
    assert each == pytest.approx(expected, abs=1e-9)
    assert metric.of_rows(metric.table(["Yes."], ["Yes."]))[0] == 1  # which has no four words


def test_texts_are_not_kept_by_sacrebleu():
    METRICS["bleu"].table(["a secret"], ["another secret"])
    from sacrebleu.tokenizers import tokenizer_13a, tokenizer_re

    for tokenizer in (tokenizer_13a.Tokenizer13a, tokenizer_re.TokenizerRegexp):
        assert tokenizer.__call__.cache_info().currsize == 0


@pytest.mark.parametrize("kind", ["rouge1", "rouge2", "rougeL", "rougeLsum"])
def test_rouge_is_that_of_rouge_score_with_one_right_answer_and_with_several(kind):
    right, several, answers = prose()
    scorer = RougeScorer([kind])
    assert total(kind, right, answers) == pytest.approx(
        mean(scorer.score(text, answer)[kind].fmeasure for text, answer in zip(right, answers)), abs=1e-9
    )
    assert total(kind, several, answers) == pytest.approx(
        mean(scorer.score_multi(texts, answer)[kind].fmeasure for texts, answer in zip(several, answers)), abs=1e-9
    )


def test_accuracy_and_macro_f1_are_those_of_scikit_learn():
    draw = random.Random(1)
    true = [row["label"] for row in rows("reviews.jsonl")]
    given = [label if draw.random() < 0.7 else draw.choice([*true, "neither"]) for label in true]
    assert total("accuracy", true, given) == pytest.approx(accuracy_score(true, given), abs=1e-9)
    assert total("macro_f1", true, given) == pytest.approx(f1_score(true, given, average="macro"), abs=1e-9)


def test_entity_f1_is_that_of_seqeval():
    draw, shown = random.Random(2), rows("entities.jsonl")
    true = [row["tags"] for row in shown]
    kinds = sorted({tag for tags in true for tag in tags})
    given = [[tag if draw.random() < 0.85 else draw.choice(kinds) for tag in tags] for tags in true]
    texts = [
        ["\n".join(entities(row["tokens"], tags)) for row, tags in zip(shown, tagged, strict=True)]
        for tagged in (true, given)
    ]
    assert 0.2 < seqeval_f1(true, given) < 0.9
    assert total("entity_f1", *texts) == pytest.approx(seqeval_f1(true, given), abs=1e-9)


def squad(text: str) -> str:
    """normalize_answer of SQuAD's evaluation script, version 1.1."""
    text = "".join(letter for letter in text.lower() if letter not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def squad_f1(reference: str, answer: str) -> float:
    """compute_f1 of version 2.0, which has questions without an answer."""
    true, given = squad(reference).split(), squad(answer).split()
    if not true or not given:
        return float(true == given)
    same = sum((Counter(true) & Counter(given)).values())
    precision, recall = same / len(given), same / len(true)
    return 2 * precision * recall / (precision + recall) if same else 0.0


def test_exact_match_and_f1_are_those_of_squads_script():
    right, several, answers = prose()
    right, several, answers = [*right, "", ""], [*several, [""], ["", "the"]], [*answers, "", "Paris"]
    answers[:20] = [f"The {text}".replace(".", "!") for text in right[:20]]
    exact = [float(squad(text) == squad(answer)) for text, answer in zip(right, answers, strict=True)]
    assert 0.02 < mean(exact) < 0.9
    assert total("exact_match", right, answers) == pytest.approx(mean(exact), abs=1e-9)
    f1 = [squad_f1(text, answer) for text, answer in zip(right, answers, strict=True)]
    assert total("answer_f1", right, answers) == pytest.approx(mean(f1), abs=1e-9)
    best = [max(squad_f1(text, answer) for text in texts) for texts, answer in zip(several, answers, strict=True)]
    assert total("answer_f1", several, answers) == pytest.approx(mean(best), abs=1e-9)
