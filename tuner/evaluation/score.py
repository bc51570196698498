"""Scores of base and adapter on the same rows, and how certain they are.

An interval is Wilson's (1927, https://doi.org/10.1080/01621459.1927.10502953), which stays within the scale and holds
near its ends. Wilson's counts successes in n tries. Here n is the effective sample size: that with the score's own
variance, as in surveys (Korn and Graubard 1998, Survey Methodology 24, 193-201). The variance is the jackknife's, so
one interval serves a mean, a ratio and any other function of sums. The critical value is Student's, further out on the
side to which the rows are skewed (Cornish and Fisher 1938). A gain gets the same interval on the scale from -1 to 1,
from the differences between each row's influence on both scores: rows that are hard for both don't blur it.
A loss has no upper end: see `unbounded`. A perplexity's interval is its loss's, raised to a power, and its gain is
the share by which it is lower, since the difference of two perplexities has no interval that holds.
An adapter has one chance to look better than the base model by luck, examples in the prompt two, at random and by
likeness. So their two intervals over the base are so wide that both hold 95% of the time. Where all four are equal,
"tune" or "prompt" is then advised in up to 5.0% of draws, and in up to 6.5% without that.
How often the intervals hold: `coverage.py` and `coverage_rivals.py` in `benchmarks`, with figures in `RESULTS.md`.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from math import exp, inf
from statistics import NormalDist

import numpy as np

from tuner.evaluation.advice import PROMPTS
from tuner.metrics import FEWEST_ROWS, METRICS, MOST_NATS, Metric, ratio

VARIANTS = ("base", "few_shot", "few_shot_similar", "adapter")  # each is compared with those before it
SHIFTS = 2  # other rows that each answer is compared with
EQUAL = 1e-12  # variances and differences below are rounding errors
MILD = 1e-6  # skew that needs no correction
NATS = replace(METRICS["perplexity"], score=ratio)
Losses = dict[str, tuple[Sequence[float], Sequence[int]]]  # by variant: nats and labels of each row
Tables = dict[str, np.ndarray]  # by variant: the statistics of each row


def score(
    metrics: Sequence[Metric],
    references: list[str | list[str]],
    answers: list[dict[str, str]],
    losses: Losses | None = None,
) -> dict:
    """Score the answers, {variant: answer} per row, by each metric; the first one decides.

    All rows have the same of the VARIANTS. A reference is the right answer, or a list of several. Perplexity is that
    of `losses`; it is left out where they lack base or adapter, and decides alone if there are no answers.

    Returns metric, rows, the scores of each variant, "gain", "pairs", the scores of single rows as "each" (by metric
    and variant), and the same of the other metrics in a list "other_metrics". "pairs" has each variant over those
    before it, and "gain" is adapter over base; above 0 is an improvement, whichever way the metric points. "wins" are
    the rows on which the one is better, "losses" those on which the other is.
    A metric has "rows" of its own if it has losses of more or fewer rows than there are answers.
    Fewer than FEWEST_ROWS rows get no intervals, nor does a mean over labels if a label has fewer: "fewest_rows" says
    how many the rarest one has. "other_rows" has the adapter's score if its answers are compared with
    other rows' references, and the interval of how much better they fit their own, and "other_rows_of_prompts" the
    same of examples in the prompt. Both are left out where the references are too much alike to tell.
    "empty_references" is there if all of them are empty, and "best" if a metric gives less than 1 to right answers.
    """
    losses = losses or {}
    parts, each = [], {}
    for metric in metrics if answers else [METRICS["perplexity"]]:
        if tables := _tables(metric, references, answers, losses):
            each[metric.name] = {variant: metric.of_rows(rows) for variant, rows in tables.items()}
            part = figures_of(metric, tables, each[metric.name], _fewest_rows(metric, references, answers))
            part |= {"rows": len(tables["base"])} if len(tables["base"]) != len(answers) else {}
            parts.append(part | ({} if metric.from_losses else _best(metric, references)))
    first, *others = parts
    if answers:
        first |= _other_rows(next(m for m in metrics if m.name == first["metric"]), references, answers)
        first |= {} if any(map(any, references)) else {"empty_references": True}
    for variant in answers[0].keys() & {*VARIANTS} if answers and METRICS["exact_match"] not in metrics else ():
        equal = METRICS["accuracy"].table(references, [answer[variant] for answer in answers])[:, 0]
        first[variant]["exact_match"] = _rounded(np.mean(equal))
    for variant, (nats, labels) in losses.items():
        first[variant]["loss"] = round(sum(nats) / max(1, sum(labels)), 5)
    rows = {name: {v: [_rounded(value) for value in values[v]] for v in values} for name, values in each.items()}
    return {"rows": len(answers), **first, "each": rows, "other_metrics": others}


def _tables(
    metric: Metric, references: list[str | list[str]], answers: list[dict[str, str]], losses: Losses
) -> Tables:
    """The statistics of all variants; none if they take losses that are not known."""
    if not metric.from_losses:
        return {v: metric.table(references, [answer[v] for answer in answers]) for v in VARIANTS if v in answers[0]}
    known = {"base", "adapter"} <= losses.keys()
    return {v: from_losses(*losses[v]) for v in VARIANTS if v in losses} if known else {}


def figures_of(metric: Metric, tables: Tables, each: dict[str, np.ndarray], fewest: int | None) -> dict:
    """The figures of one metric: of each variant, and of each pair of them."""
    name, rows = metric.name, len(tables["base"])
    totals = {variant: float(metric.score(table.sum(0))) for variant, table in tables.items()}
    figures: dict = {"metric": name} | {variant: {name: _rounded(total)} for variant, total in totals.items()}
    is_enough = min(rows, rows if fewest is None else fewest) >= FEWEST_ROWS
    scale = _scale(each) if is_enough else (0.0, 1.0)
    for variant, table in tables.items() if is_enough else ():
        low, high = score_interval(metric, table, scale)
        figures[variant] |= {f"{name}_low": low, f"{name}_high": high}
    pairs, sign = [], 1 if metric.higher_is_better else -1
    for one, other in ((v, w) for i, v in enumerate(tables) for w in [*tables][:i]):
        better = sign * (each[one] - each[other])
        gain = 1 - totals[one] / totals[other] if metric.from_losses else sign * (totals[one] - totals[other])
        pair = {"of": one, "over": other, name: _rounded(gain)}
        if is_enough:
            chances = sum(v in tables for v in PROMPTS) if one in PROMPTS and other == "base" else 1
            pair["low"], pair["high"] = gain_interval(metric, tables[one], tables[other], scale, chances)
        wins, defeats = (int((way * better > EQUAL).sum()) for way in (1, -1))
        pairs.append(pair | {"wins": wins, "losses": defeats, "ties": rows - wins - defeats})
    gain = {key: value for key, value in pairs[-len(tables) + 1].items() if key not in ("of", "over")}
    return figures | {"gain": gain, "pairs": pairs} | ({} if fewest is None else {"fewest_rows": fewest})


def _scale(each: dict[str, np.ndarray]) -> tuple[float, float]:
    """The least and the most that a score can be: a rate of errors may be above 1."""
    values = np.concatenate(list(each.values()))
    return min(0.0, values.min()), max(1.0, values.max())


def score_interval(metric: Metric, table: np.ndarray, scale: tuple[float, float]) -> tuple[float, float]:
    """The interval of a variant's score."""
    if not metric.from_losses:
        return interval(float(metric.score(table.sum(0))), influence(metric, table), *scale)
    low, high = unbounded(float(ratio(table.sum(0))), influence(NATS, table), effective_rows(table))
    return _rounded(exp(max(0.0, low))), _rounded(exp(min(high, MOST_NATS)))


def gain_interval(
    metric: Metric, one: np.ndarray, other: np.ndarray, scale: tuple[float, float], chances: int
) -> tuple[float, float]:
    """The interval of how much better the one is than the other."""
    sign = 1 if metric.higher_is_better else -1
    inner = NATS if metric.from_losses else metric
    gain = sign * (float(inner.score(one.sum(0))) - float(inner.score(other.sum(0))))
    moves = sign * (influence(inner, one) - influence(inner, other))
    if metric.from_losses:
        low, high = unbounded(gain, moves, effective_rows(one), chances)
        return _rounded(1 - exp(min(-low, MOST_NATS))), _rounded(1 - exp(min(-high, MOST_NATS)))
    width = scale[1] - scale[0]
    return interval(gain, moves, -width, width, chances)


def from_losses(nats: Sequence[float], labels: Sequence[int]) -> np.ndarray:
    """The statistics of rows whose losses are known; a loss that is no number is as bad as can be."""
    counts = np.array(labels, float)
    return np.stack([np.nan_to_num(np.array(nats, float), nan=inf, posinf=inf).clip(0, MOST_NATS * counts), counts], 1)


def effective_rows(table: np.ndarray) -> float:
    """How many rows of equal length tell as much (Kish 1965): long ones weigh more in a mean over tokens."""
    labels = table[:, 1]
    return labels.sum() ** 2 / max(1.0, (labels**2).sum())


def _fewest_rows(metric: Metric, references: list[str], answers: list[dict[str, str]]) -> int | None:
    """How many rows have the rarest label; 0 if an answer is a label that none has. Only means over labels need it."""
    if not metric.by_label:
        return None
    rows = Counter(reference.strip() for reference in references)
    given = {answer[variant].strip() for answer in answers for variant in VARIANTS if variant in answer}
    return min(rows[label] for label in given | rows.keys())


def _best(metric: Metric, references: list[str | list[str]]) -> dict:
    """What right answers score, if it is less than 1, as BLEU gives to those that are all shorter than four words."""
    right = [reference if isinstance(reference, str) else reference[0] for reference in references]
    if not metric.higher_is_better or not any(right):
        return {}
    best = _rounded(metric.score(metric.table(references, right).sum(0)))
    return {"best": best} if best < 1 else {}


def _other_rows(metric: Metric, references: list[str | list[str]], answers: list[dict[str, str]]) -> dict:
    right = [reference if isinstance(reference, str) else reference[0] for reference in references]
    if metric.from_losses or len(references) < FEWEST_ROWS or _fit_of_own(metric, references, right)["low"] <= 0:
        return {}
    fits = {
        v: _fit_of_own(metric, references, [answer[v] for answer in answers]) for v in VARIANTS[1:] if v in answers[0]
    }
    return {"other_rows": fits.pop("adapter")} | ({"other_rows_of_prompts": fits} if fits else {})


def _fit_of_own(metric: Metric, references: list[str | list[str]], answers: list[str]) -> dict:
    """The score of answers to other rows, and the interval of how much better they fit their own."""
    rows, sign = len(references), 1 if metric.higher_is_better else -1
    own = metric.table(references, answers)
    shifted = [reference for shift in range(1, SHIFTS + 1) for reference in references[shift:] + references[:shift]]
    others = metric.table(shifted, answers * SHIFTS).reshape(SHIFTS, rows, -1).mean(0)
    score = float(metric.score(others.sum(0)))
    better = sign * (float(metric.score(own.sum(0))) - score)
    low, high = interval(better, sign * (influence(metric, own) - influence(metric, others)), -1.0, 1.0)
    return {metric.name: _rounded(score), "low": low, "high": high}


def influence(metric: Metric, statistics: np.ndarray) -> np.ndarray:
    """How far each row moves the score, from the scores without it: of a mean, its distance from the mean."""
    without = metric.score(statistics.sum(0) - statistics)
    return (len(statistics) - 1) * (without.mean() - without)


def interval(score: float, influences: np.ndarray, bottom: float, top: float, chances: int = 1) -> tuple[float, float]:
    """The 95% interval of a score between `bottom` and `top`, from the rows' influences, which sum to 0.

    So many such intervals hold together 95% of the time (Bonferroni 1936) if there are several `chances`.
    """
    rows, width = len(influences), top - bottom
    critical = quantile(rows - 1, chances)
    share = (score - bottom) / width
    variance = (influences**2).sum() / (rows * (rows - 1)) / width**2
    if variance < EQUAL or not 0 < share < 1:
        # Rows that are all alike: as many others may be missing as if all were right, or all wrong.
        unseen = critical**2 / (rows + critical**2)
        return _rounded(score - unseen * (score - bottom)), _rounded(score + unseen * (top - score))
    size = share * (1 - share) / variance
    skew = (influences**3).mean() / (influences**2).mean() ** 1.5
    # Wilson's formula has the skew of right and wrong rows, for which the size is their number, already.
    shift = skew * (critical**2 - 1) / (6 * rows**0.5) * max(0.0, 1 - (rows - 1) / size)
    low = _wilson(share, size, -critical + min(0.0, shift))
    high = _wilson(share, size, critical + max(0.0, shift))
    return _rounded(bottom + width * low), _rounded(bottom + width * high)


def unbounded(score: float, influences: np.ndarray, size: float, chances: int = 1) -> tuple[float, float]:
    """The 95% interval of a score on no scale, such as a loss, whose rows tell as much as `size` equal ones.

    Student's t with Hall's correction for skewed rows (1992, https://doi.org/10.1111/j.2517-6161.1992.tb01872.x),
    and never closer in than without it.
    """
    rows, squares = len(influences), (influences**2).mean()
    critical, error = quantile(max(4.0, size - 1), chances), (squares / (rows - 1)) ** 0.5
    skew = (influences**3).mean() / squares**1.5 / rows**0.5 if squares > EQUAL else 0.0
    if abs(skew) < MILD:
        return score - error * critical, score + error * critical
    low, high = (3 / skew * (np.cbrt(1 + skew * (z - skew / 6)) - 1) for z in (-critical, critical))
    return score - error * max(critical, high), score + error * max(critical, -low)


def _wilson(share: float, size: float, critical: float) -> float:
    """One end of Wilson's interval of a share of `size` tries, the lower one if `critical` is below 0."""
    spread = (share * (1 - share) / size + critical**2 / (4 * size**2)) ** 0.5
    return (share + critical**2 / (2 * size) + critical * spread) / (1 + critical**2 / size)


@lru_cache
def quantile(freedom: float, chances: int = 1) -> float:
    """The 97.5% point of Student's t (Abramowitz and Stegun 1964, 26.7.5), or 100% less 2.5% for each of several
    `chances`; within 0.0003 from 9 on for one."""
    z, n = NormalDist().inv_cdf(1 - 0.025 / chances), freedom
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    )


def _rounded(value: float) -> float:
    return round(float(value), 4) + 0.0  # never -0.0, which would be shown as "-0.00"
