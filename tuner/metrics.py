"""METRICS: one row per metric. Reading the table imports neither numpy nor torch.

A metric turns one reference and one answer into a few numbers, its statistics; a score is a function of their sums
over the rows. A mean keeps (value, 1), an F1 over entities (2 x correct, true + predicted), a corpus-wide metric such
as BLEU its counts of n-grams. So every metric is scored and resampled in the same way (score.py).
"""

import re
import string
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tuner.errors import TunerError
from tuner.tasks import TASKS, TaskRow

if TYPE_CHECKING:
    import numpy as np


def ratio(sums: "np.ndarray") -> "np.ndarray":
    """Parts over wholes, from sums of shape (..., 2); 1 if there was nothing to find and nothing was found."""
    import numpy as np

    part, whole = sums[..., 0], sums[..., 1]
    return np.divide(part, whole, out=np.ones_like(part), where=whole > 0)


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
    statistics: Callable[[str, str], tuple[float, ...]]  # (reference, answer) -> as many numbers for every row
    score: Callable[["np.ndarray"], "np.ndarray"] = ratio  # sums (..., numbers) -> scores (...)
    higher_is_better: bool = True

    @property
    def direction(self) -> str:
        """Which way is better, in words."""
        return "higher is better" if self.higher_is_better else "lower is better"


def rouge_l(reference: str, answer: str) -> float:
    """ROUGE-L F-measure, 0 to 1, over words in any script: Lin's longest common subsequence
    (https://aclanthology.org/W04-1013) as computed by Google's `rouge_score`."""
    from rouge_score import rouge_scorer

    return rouge_scorer.RougeScorer(["rougeL"], tokenizer=_Words()).score(reference, answer)["rougeL"].fmeasure


class _Words:
    """rouge_score's own tokenizer drops everything but a-z and 0-9, and with it most of the world's writing."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"\w+", text.lower())


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


def exact_match(reference: str, answer: str) -> float:
    """1 if the answer equals the reference apart from whitespace around it, else 0."""
    return float(reference.strip() == answer.strip())


TEXT = tuple(task.name for task in TASKS.values() if not task.has_labels)  # tasks whose answers are free text
METRICS = {
    metric.name: metric
    for metric in [
        Metric(
            name="rougeL",
            title="ROUGE-L",
            explanation="the overlap of its answers with the reference; 1 is word for word",
            hub="rouge",
            package="rouge_score",
            tasks=TEXT,
            statistics=mean_of(rouge_l),
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
    """The metrics that a recipe names, of which the first decides; the task's own for "auto". Raises TunerError."""
    if problems := [*unknown(requested), *unfit(requested, task)]:
        raise TunerError(*problems)
    return [METRICS[name] for name in dict.fromkeys(_names(requested) or [task.metric])]


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
