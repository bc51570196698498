"""chrF and BLEU, counted and scored by sacrebleu: reading this module imports neither it nor numpy.

Both are scores of a corpus, functions of how many n-grams answers and references share. So the counts of each row are
kept, and their sums scored. sacrebleu's figures are divided by 100, as all scores here are at most 1.
"""

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from sacrebleu.metrics.base import Metric

MOST_CHARACTERS = 50_000  # of a text; an answer has at most 2,048 tokens, but a stranger's reference may have millions


@cache
def _chrf() -> "Metric":
    from sacrebleu.metrics import CHRF

    return CHRF()


@cache
def _bleu(of_rows: bool = False) -> "Metric":
    """BLEU; of single rows without the n-grams for which an answer is too short, as sacrebleu advises."""
    from sacrebleu.metrics import BLEU

    return BLEU(force=True, effective_order=of_rows)


def chrf_counts(references: list[str], answer: str) -> tuple[float, ...]:
    """For one to six characters the n-grams of the answer, of the reference that fits it best, and of both."""
    return _counts(_chrf(), references, answer)


def bleu_counts(references: list[str], answer: str) -> tuple[float, ...]:
    """The words of the answer and of the reference closest in length, and for one to four words the right n-grams
    and all of the answer."""
    from sacrebleu.tokenizers import tokenizer_13a, tokenizer_re

    counts = _counts(_bleu(), references, answer)
    for tokenizer in (tokenizer_13a.Tokenizer13a, tokenizer_re.TokenizerRegexp):
        tokenizer.__call__.cache_clear()  # it would keep 65,536 texts
    return counts


def _counts(metric: "Metric", references: list[str], answer: str) -> tuple[float, ...]:
    given = [[text[:MOST_CHARACTERS]] for text in references]
    # What sacrebleu sums over a corpus it has no public name for.
    (counts,) = metric._extract_corpus_statistics([answer[:MOST_CHARACTERS]], given)
    return tuple(map(float, counts))


def chrf(sums: "np.ndarray") -> "np.ndarray":
    """chrF from sums of shape (..., 18)."""
    return _scores(_chrf(), sums)


def bleu(sums: "np.ndarray") -> "np.ndarray":
    """BLEU from sums of shape (..., 10)."""
    return _scores(_bleu(), sums)


def bleu_of_rows(table: "np.ndarray") -> "np.ndarray":
    """BLEU of each row by itself."""
    return _scores(_bleu(of_rows=True), table)


def _scores(metric: "Metric", sums: "np.ndarray") -> "np.ndarray":
    import numpy as np

    def score(counts: "np.ndarray") -> float:
        return min(1.0, metric._compute_score_from_stats(list(counts)).score / 100)

    return np.apply_along_axis(score, -1, sums)
