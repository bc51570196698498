"""Scores of base and adapter on the same rows, and how certain they are.

Intervals are 95% percentile bootstraps over the rows. The interval of a gain is paired: a resample draws the same rows
for both, so rows that are hard for both don't blur the difference.
"""

from collections.abc import Sequence

import numpy as np

from tuner.metrics import Metric, exact_match

RESAMPLES = 2000
VARIANTS = ("base", "adapter")


def score(metrics: Sequence[Metric], references: list[str], answers: list[dict[str, str]]) -> dict:
    """Score the answers, {"base": ..., "adapter": ...} per row, by each metric; the first one decides.

    Returns metric, rows, base, adapter and gain of the first metric, the scores of single rows as "each", and the same
    of the other metrics in a list "other_metrics". A gain above 0 is an improvement, whichever way the metric points.
    """
    weights = resamples(len(references))
    first, *others = [_score(metric, references, answers, weights) for metric in metrics]
    for variant in VARIANTS:
        equal = [exact_match(r, a[variant]) for r, a in zip(references, answers, strict=True)]
        first[variant]["exact_match"] = _rounded(np.mean(equal))
    for other in others:
        del other["each"]
    return {"metric": first["metric"], "rows": len(references), **first, "other_metrics": others}


def _score(metric: Metric, references: list[str], answers: list[dict[str, str]], weights: np.ndarray) -> dict:
    totals, samples, result = {}, {}, {"metric": metric.name, "each": {}}
    for variant in VARIANTS:
        pairs = zip(references, answers, strict=True)
        statistics = np.array([metric.statistics(r, a[variant]) for r, a in pairs], float)
        totals[variant], samples[variant] = metric.score(statistics.sum(0)), metric.score(weights @ statistics)
        low, high = interval(samples[variant])
        name = metric.name
        result[variant] = {name: _rounded(totals[variant]), f"{name}_low": low, f"{name}_high": high}
        result["each"][variant] = [_rounded(value) for value in metric.score(statistics)]
    sign = 1 if metric.higher_is_better else -1
    low, high = interval(sign * (samples["adapter"] - samples["base"]))
    gain = _rounded(sign * (totals["adapter"] - totals["base"]))
    return {**result, "gain": {metric.name: gain, "low": low, "high": high}}


def resamples(rows: int) -> np.ndarray:
    """How often each row is drawn in each resample: (RESAMPLES, rows). Times the rows' statistics, it gives their sums
    in all resamples at once."""
    drawn = np.random.default_rng(0).integers(0, rows, (RESAMPLES, rows))
    drawn += np.arange(RESAMPLES)[:, None] * rows
    return np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape).astype(float)


def interval(samples: np.ndarray) -> tuple[float, float]:
    """The middle 95% of the resampled scores."""
    low, high = np.percentile(samples, [2.5, 97.5])
    return _rounded(low), _rounded(high)


def _rounded(value: float) -> float:
    return round(float(value), 4) + 0.0  # never -0.0, which would be shown as "-0.00"
