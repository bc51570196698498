"""Metrics of a row, and what they come to over rows with their uncertainty.

A metric gives each row a pair (part, whole); the score of many rows is the sum of parts over the sum of wholes. For a
mean the whole is 1; for an F1 over entities the pair is (2 x found, found + true). Intervals are 95% percentile
bootstraps over the rows, and a gain's is paired: one resampling draws the same rows of both.
"""

import re
import string
from collections import Counter
from collections.abc import Callable

import numpy as np

RESAMPLES = 2000


def rouge_l(reference: str, answer: str) -> float:
    """ROUGE-L F-measure, 0 to 1, over words in any script: Lin's longest common subsequence
    (https://aclanthology.org/W04-1013) as computed by Google's `rouge_score`."""
    from rouge_score import rouge_scorer

    return rouge_scorer.RougeScorer(["rougeL"], tokenizer=_Words()).score(reference, answer)["rougeL"].fmeasure


class _Words:
    """rouge_score's own tokenizer drops everything that is not a-z or 0-9, and with it most of the world's writing."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"\w+", text.lower())


def entity_pair(reference: str, answer: str) -> tuple[float, float]:
    """Entities that are right in kind and place, twice, and all that there are in both."""
    true, found = (set(filter(None, text.split("\n"))) for text in (reference, answer))
    return 2.0 * len(true & found), float(len(true) + len(found))


def answer_f1(reference: str, answer: str) -> float:
    """Words shared by two short answers, as SQuAD counts them (https://arxiv.org/abs/1606.05250): without case,
    punctuation and articles."""
    true, found = (_plain_words(text) for text in (reference, answer))
    if not true or not found:
        return float(true == found)
    shared = sum((Counter(true) & Counter(found)).values())
    return 2 * shared / (len(true) + len(found))


def _plain_words(text: str) -> list[str]:
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def _is_equal(reference: str, answer: str) -> float:
    return float(reference.strip() == answer.strip())


PAIRS: dict[str, Callable[[str, str], tuple[float, float]]] = {
    "rougeL": lambda reference, answer: (rouge_l(reference, answer), 1.0),
    "accuracy": lambda reference, answer: (_is_equal(reference, answer), 1.0),
    "entity_f1": entity_pair,
    "answer_f1": lambda reference, answer: (answer_f1(reference, answer), 1.0),
}


def score(metric: str, references: list[str], answers: list[dict[str, str]]) -> dict:
    """What base and adapter score on the rows: {"metric", "rows", "base": {...}, "adapter": {...}, "gain": {...}}, and
    each row's own scores under "each"."""
    pairs = {
        v: np.array([PAIRS[metric](r, a[v]) for r, a in zip(references, answers, strict=True)])
        for v in ("base", "adapter")
    }
    result: dict = {"metric": metric, "rows": len(references)}
    for variant, values in pairs.items():
        low, high = interval(values)
        exact = np.mean([_is_equal(r, a[variant]) for r, a in zip(references, answers, strict=True)])
        result[variant] = {
            metric: round(ratio(values), 4),
            f"{metric}_low": low,
            f"{metric}_high": high,
            "exact_match": round(float(exact), 4),
        }
    gain = ratio(pairs["adapter"]) - ratio(pairs["base"])
    low, high = interval(pairs["adapter"], pairs["base"])
    result["gain"] = {metric: round(gain, 4), "low": low, "high": high}
    result["each"] = {
        v: [round(ratio(values[i : i + 1]), 4) for i in range(len(values))] for v, values in pairs.items()
    }
    return result


def ratio(pairs: np.ndarray) -> float:
    """Sum of parts over sum of wholes, of pairs (rows x 2); 1 where there was nothing to find and nothing found."""
    part, whole = pairs.sum(0)
    return float(part / whole) if whole else 1.0


def interval(pairs: np.ndarray, less: np.ndarray | None = None) -> tuple[float, float]:
    """The 95% percentile bootstrap interval of the ratio, or of its difference to that of the same rows in `less`."""
    drawn = np.random.default_rng(0).integers(0, len(pairs), (RESAMPLES, len(pairs)))
    ratios = _ratios(pairs, drawn) - (0.0 if less is None else _ratios(less, drawn))
    low, high = np.percentile(ratios, [2.5, 97.5])
    return round(float(low), 4), round(float(high), 4)


def _ratios(pairs: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    part, whole = (pairs[:, i][drawn].sum(1) for i in (0, 1))
    return np.divide(part, whole, out=np.ones_like(part), where=whole > 0)
