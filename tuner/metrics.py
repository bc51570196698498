"""METRICS: one row per metric. Reading the table imports neither numpy nor torch.

A metric turns one reference and one answer into a few numbers, its statistics; a score is a function of their sums
over the rows. A mean keeps (value, 1), an F1 over entities (2 x correct, true + predicted), a mean over labels such
numbers for each label, a corpus-wide metric such as BLEU its counts of n-grams. So every metric is scored and
resampled in the same way (score.py).
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tuner import ngrams, rouge
from tuner.errors import TunerError
from tuner.tasks import TASKS, TaskRow

if TYPE_CHECKING:
    import numpy as np

FEWEST_ROWS = 10  # held-out rows that a verdict takes: with fewer, one row more or less turns it

MOST_NATS = 50.0  # per label; a model that has come apart has any number, of which the exponential is infinite


def ratio(sums: "np.ndarray") -> "np.ndarray":
    """Parts over wholes, from sums of shape (..., 2); 1 if there was nothing to find and nothing was found."""
    import numpy as np

    part, whole = sums[..., 0], sums[..., 1]
    return np.divide(part, whole, out=np.ones_like(part), where=whole > 0)


def macro_ratio(sums: "np.ndarray") -> "np.ndarray":
    """The mean of the ratios of all labels that occur, from sums of shape (..., 2 x labels)."""
    import numpy as np

    parts, wholes = (sums[..., i::2] for i in range(2))
    return (parts / np.maximum(wholes, 1)).sum(-1) / np.maximum((wholes > 0).sum(-1), 1)


def perplexity(sums: "np.ndarray") -> "np.ndarray":
    """The exponential of nats per label, from sums of shape (..., 2)."""
    import numpy as np

    return np.exp(np.minimum(sums[..., 0] / np.maximum(sums[..., 1], 1), MOST_NATS))


def mean_of(value: Callable[[str, str], float]) -> Callable[[str, str], tuple[float, float]]:
    """The statistics of a metric that is the mean of a value per row."""
    return lambda reference, answer: (value(reference, answer), 1.0)


@dataclass(frozen=True)
class Metric:
    """How answers are scored."""

    name: str
    title: str
    explanation: str  # what it measures and what a score of 1 means, in a few words
    hub: str  # the Hub's name for it
    package: str  # computes the same figures
    tasks: tuple[str, ...]  # the names of the tasks whose answers it can score
    # (reference, answer) -> as many numbers for every row, or two for each label in it
    statistics: Callable[..., tuple[float, ...] | dict[str, tuple[float, float]]]
    score: Callable[["np.ndarray"], "np.ndarray"] = ratio  # sums (..., numbers) -> scores (...)
    higher_is_better: bool = True
    by_label: bool = False  # a mean over labels: what a rare one lacks is seldom seen, so each takes FEWEST_ROWS rows
    from_losses: bool = False  # of rows' nats and labels instead of references and answers
    score_of_row: Callable[["np.ndarray"], "np.ndarray"] | None = None  # of single rows, if not as `score` has it
    reads_several: bool = False  # `statistics` takes a list of references

    @property
    def direction(self) -> str:
        """Which way is better, in words."""
        return "higher is better" if self.higher_is_better else "lower is better"

    def of_rows(self, table: "np.ndarray") -> "np.ndarray":
        """The score of each row."""
        return (self.score_of_row or self.score)(table)

    def table(self, references: Sequence[str | list[str]], answers: Sequence[str]) -> "np.ndarray":
        """The statistics of each row: (rows, numbers). Of several right answers the one counts that scores best."""
        import numpy as np

        rows = [self._row(reference, answer) for reference, answer in zip(references, answers, strict=True)]
        if rows and isinstance(rows[0], dict):
            labels = sorted(set().union(*rows))
            rows = [[number for label in labels for number in row.get(label, (0.0, 0.0))] for row in rows]
        return np.array(rows, float)

    def _row(self, reference: str | list[str], answer: str) -> tuple[float, ...] | dict[str, tuple[float, float]]:
        if self.reads_several:
            return self.statistics([reference] if isinstance(reference, str) else reference, answer)
        return self.statistics(reference, answer) if isinstance(reference, str) else self._closest(reference, answer)

    def _closest(self, references: list[str], answer: str) -> tuple[float, ...] | dict[str, tuple[float, float]]:
        """The statistics of an answer and the reference that it scores best with, as SQuAD's script takes it."""
        sign = 1 if self.higher_is_better else -1
        values = [sign * float(self.score(self.table([reference], [answer])[0])) for reference in references]
        return self.statistics(references[values.index(max(values))], answer)


def entity_counts(reference: str, answer: str) -> tuple[float, float]:
    """Twice the number of entities with the right kind and place, and the number of true and predicted ones."""
    true, predicted = (set(filter(None, text.split("\n"))) for text in (reference, answer))
    return 2.0 * len(true & predicted), float(len(true) + len(predicted))


def answer_f1(reference: str, answer: str) -> float:
    """Words shared by two short answers as SQuAD counts them (https://arxiv.org/abs/1606.05250): case, punctuation and
    articles are ignored."""
    true, predicted = (_plain_words(text) for text in (reference, answer))
    if not true or not predicted:
        return float(true == predicted)
    shared = sum((Counter(true) & Counter(predicted)).values())
    return 2 * shared / (len(true) + len(predicted))


def _plain_words(text: str) -> list[str]:
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def same_answer(reference: str, answer: str) -> float:
    """1 if nothing differs but what `answer_f1` ignores, else 0: SQuAD's exact match."""
    return float(_plain_words(reference) == _plain_words(answer))


def exact_match(reference: str, answer: str) -> float:
    """1 if the answer equals the reference apart from whitespace around it, else 0."""
    return float(reference.strip() == answer.strip())


def label_counts(reference: str, answer: str) -> dict[str, tuple[float, float]]:
    """For each of the two labels twice how often both have it, and how often each has it."""
    true, given = reference.strip(), answer.strip()
    return {true: (2.0, 2.0)} if true == given else {true: (0.0, 1.0), given: (0.0, 1.0)}


WRITTEN = tuple(task.name for task in TASKS.values() if task.generates)  # tasks whose answers are written by tokens
TEXT = tuple(task.name for task in TASKS.values() if not task.has_labels)  # tasks whose answers are free text


def _rouge(name: str, what: str, full: str, value: Callable[[str, str], float]) -> Metric:
    return Metric(
        name=name,
        title=f"ROUGE-{name.removeprefix('rouge')}",
        explanation=f"{what} that its answers share with the reference, not whether they are true; 1 is {full}",
        hub="rouge",
        package="rouge_score, but over words of every script",
        tasks=TEXT,
        statistics=mean_of(value),
    )


METRICS = {
    metric.name: metric
    for metric in [
        _rouge("rougeL", "the wording", "word for word", rouge.rouge_l),
        _rouge("rouge1", "the words", "all of them and no others", rouge.rouge_n(1)),
        _rouge("rouge2", "the pairs of neighboring words", "all of them and no others", rouge.rouge_n(2)),
        _rouge("rougeLsum", "the wording, line by line,", "word for word", rouge.rouge_lsum),
        Metric(
            name="chrf",
            title="chrF",
            explanation="the runs of up to six characters that its answers share with the reference; 1 is all of them",
            hub="chrf",
            package="sacrebleu, divided by 100",
            tasks=TEXT,
            statistics=ngrams.chrf_counts,
            score=ngrams.chrf,
            reads_several=True,
        ),
        Metric(
            name="bleu",
            title="BLEU",
            explanation="the runs of up to four words that its answers share with the reference; 1 is word for word",
            hub="bleu",
            package="sacrebleu, divided by 100",
            tasks=TEXT,
            statistics=ngrams.bleu_counts,
            score=ngrams.bleu,
            score_of_row=ngrams.bleu_of_rows,
            reads_several=True,
        ),
        Metric(
            name="accuracy",
            title="accuracy",
            explanation="the share of texts that got the right label",
            hub="accuracy",
            package="scikit-learn",
            tasks=("classification",),
            statistics=mean_of(exact_match),
        ),
        Metric(
            name="macro_f1",
            title="macro F1",
            explanation="the mean over the labels, so that rare ones count as much as frequent ones; 1 is all right",
            hub="f1",
            package="scikit-learn",
            tasks=("classification",),
            statistics=label_counts,
            score=macro_ratio,
            by_label=True,
        ),
        Metric(
            name="entity_f1",
            title="entity F1",
            explanation="predicted entities against the true ones; 1 is all of them and no others",
            hub="f1",
            package="seqeval",
            tasks=("token_classification",),
            statistics=entity_counts,
        ),
        Metric(
            name="answer_f1",
            title="answer F1",
            explanation="the words shared with the right answer; 1 is all of them and no others",
            hub="f1",
            package="SQuAD's evaluation script",
            tasks=TEXT,
            statistics=mean_of(answer_f1),
        ),
        Metric(
            name="exact_match",
            title="exact match",
            explanation="the share of answers that are right but for case, punctuation and articles",
            hub="exact_match",
            package="SQuAD's evaluation script",
            tasks=TEXT,
            statistics=mean_of(same_answer),
        ),
        Metric(
            name="perplexity",
            title="perplexity",
            explanation="how many tokens it finds equally likely at each token of the right answers; 1 is certainty",
            hub="perplexity",
            package="PyTorch: the exponential of the cross-entropy",
            tasks=WRITTEN,
            statistics=mean_of(exact_match),
            score=perplexity,
            higher_is_better=False,
            from_losses=True,
        ),
    ]
}


def metric_of(scores: dict) -> Metric:
    """The metric of an evaluation; runs of the first version don't name it. Raises TunerError if it is unknown."""
    name = scores.get("metric", "rougeL")
    if name not in METRICS:
        raise TunerError(
            f"This run was scored by '{name}', a metric that this version of Tuner lacks. Update Tuner, or delete "
            "evaluation.json in the run's folder and score it again by another metric."
        )
    return METRICS[name]


def chosen(requested: str | list[str], task: TaskRow) -> list[Metric]:
    """The metrics that a recipe names, of which the first decides; those of the task for "auto". Raises TunerError."""
    if problems := [*unknown(requested), *unfit(requested, task)]:
        raise TunerError(*problems)
    return [METRICS[name] for name in dict.fromkeys(_names(requested) or [task.metric, *task.other_metrics])]


def unknown(requested: str | list[str]) -> list[str]:
    """A sentence about names that no metric has, or nothing."""
    names = [name for name in _names(requested) if name not in METRICS]
    return [f"evaluation.metrics: there is no '{', '.join(names)}'. Use: {', '.join(METRICS)}."] if names else []


def unfit(requested: str | list[str], task: TaskRow) -> list[str]:
    """A sentence about metrics that can't score the task, or nothing."""
    names = [name for name in _names(requested) if name in METRICS and task.name not in METRICS[name].tasks]
    if not names:
        return []
    fitting = ", ".join(metric.name for metric in METRICS.values() if task.name in metric.tasks)
    return [f"evaluation.metrics: {', '.join(names)} can't score {task.title}. Use auto, or: {fitting}."]


def _names(requested: str | list[str]) -> list[str]:
    return [] if requested == "auto" else [requested] if isinstance(requested, str) else requested
