"""How sure it is that one trained candidate is better than another, on rows that both answered.

Three kinds of luck are allowed for.

- Which rows were held out: the paired interval of `evaluation/score.py`, from the rows' influences on both scores.
- The seed of a training. With several seeds, it is what their scores vary by: Student's interval with the pooled
  standard deviation of all candidates. Candidates that were trained once say nothing about it: there a standard
  deviation of SEED_SPREAD of the scale is allowed for, since that is what the shipped models have (`docs/notes.md`).
  The two parts are put together in quadrature (MOVER: Zou and Donner 2008, https://doi.org/10.1002/sim.3095), since
  the first is not symmetric.
- Several comparisons. Of k candidates, k (k - 1) / 2 pairs are compared, and the best of them is only known by the
  same scores. All intervals are those of Bonferroni: they hold together in 95% of cases, so whatever is said of the
  first, the second or any other pair is wrong in at most 5% of experiments.

So a method that is compared with itself gets "no clear difference" in at least 95% of experiments: the tests simulate
it, and train it.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from tuner.evaluation.score import EQUAL, influence, interval
from tuner.metrics import Metric

SEED_SPREAD = 0.025  # of the scale: the standard deviation of a score over seeds, if it is not known
MANY = 10**9  # degrees of freedom of what is taken as known
LEVEL = 0.05  # share of experiments in which an interval may be wrong


class Scored(NamedTuple):
    """The score of one run's answers, how far each row moves it, and each row's own score."""

    score: float
    influences: np.ndarray
    each: np.ndarray


class Seeds(NamedTuple):
    """How far the scores of a candidate's seeds vary, and the degrees of freedom of that figure."""

    variance: float
    freedom: int


class Estimate(NamedTuple):
    """A score or a gain with its 95% interval, None without enough rows."""

    value: float
    low: float | None = None
    high: float | None = None


def scored(metric: Metric, references: list[str | list[str]], answers: list[str]) -> Scored:
    """Score one run's answers."""
    statistics = metric.table(references, answers)
    return Scored(float(metric.score(statistics.sum(0))), influence(metric, statistics), metric.of_rows(statistics))


def seeds_of(candidates: Iterable[Sequence[Scored]]) -> Seeds | None:
    """How far seeds go, from all candidates that were trained more than once; None if none was."""
    several = [[run.score for run in runs] for runs in candidates if len(runs) > 1]
    freedom = sum(len(scores) - 1 for scores in several)
    return (
        Seeds(sum(float(np.var(scores)) * len(scores) for scores in several) / freedom, freedom) if several else None
    )


def mean(
    runs: Sequence[Scored], scale: tuple[float, float], seeds: Seeds | None = None, *, has_interval: bool = True
) -> Estimate:
    """The mean score of a candidate's seeds. One run's interval is of its rows alone."""
    value = float(np.mean([run.score for run in runs]))
    if not has_interval:
        return Estimate(value)
    low, high = interval(value, np.mean([run.influences for run in runs], axis=0), *scale)
    half = _half_of_seeds(seeds, 1 / len(runs)) if seeds and len(runs) > 1 else 0.0
    return _bounded(value, np.hypot(value - low, half), np.hypot(high - value, half), *scale)


def gain(
    one: Sequence[Scored],
    other: Sequence[Scored],
    metric: Metric,
    scale: tuple[float, float],
    seeds: Seeds | None = None,
    pairs: int = 1,
    *,
    is_trained: bool = True,
    has_interval: bool = True,
) -> Estimate:
    """How much better a candidate's seeds are than another's, above 0 whichever way the metric points.

    The interval is one of so many `pairs` that hold together. Without `is_trained`, the other is no training but the
    base model, which no seed changes.
    """
    sign = 1 if metric.higher_is_better else -1
    value = sign * float(np.mean([run.score for run in one]) - np.mean([run.score for run in other]))
    if not has_interval:
        return Estimate(value)
    bounds = scale[0] - scale[1], scale[1] - scale[0]
    influences = np.mean([run.influences for run in one], axis=0) - np.mean([run.influences for run in other], axis=0)
    low, high = interval(value, sign * influences, *bounds, chances=pairs)
    if is_trained and not seeds:
        seeds = Seeds((SEED_SPREAD * bounds[1]) ** 2, MANY)
    half = _half_of_seeds(seeds, 1 / len(one) + is_trained / len(other), pairs) if seeds else 0.0
    return _bounded(value, np.hypot(value - low, half), np.hypot(high - value, half), *bounds)


def scale_of(runs: Iterable[Scored]) -> tuple[float, float]:
    """The lowest and the highest score that there can be: a rate of errors may be above 1."""
    values = np.concatenate([run.each for run in runs])
    return min(0.0, values.min()), max(1.0, values.max())


def spread(runs: Sequence[Scored]) -> float | None:
    """The standard deviation of the seeds' scores; None of one alone."""
    return float(np.std([run.score for run in runs], ddof=1)) if len(runs) > 1 else None


def wins(one: Sequence[Scored], other: Sequence[Scored], metric: Metric) -> dict[str, int]:
    """On how many rows the first is better, worse and equal, by the mean of its seeds."""
    sign = 1 if metric.higher_is_better else -1
    better = sign * (np.mean([run.each for run in one], axis=0) - np.mean([run.each for run in other], axis=0))
    won, lost = (int((way * better > EQUAL).sum()) for way in (1, -1))
    return {"wins": won, "losses": lost, "ties": len(better) - won - lost}


def _half_of_seeds(seeds: Seeds, shares: float, pairs: int = 1) -> float:
    """Half of Student's interval of a mean over seeds, or of the difference of two."""
    from scipy.special import stdtrit  # exact for few degrees of freedom, which `quantile` is not

    return float(stdtrit(seeds.freedom, 1 - LEVEL / 2 / pairs)) * (seeds.variance * shares) ** 0.5


def _bounded(value: float, below: float, above: float, bottom: float, top: float) -> Estimate:
    return Estimate(value, max(bottom, float(value - below)), min(top, float(value + above)))
