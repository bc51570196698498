"""How often the intervals of perplexity, chrF and BLEU hold, and how often tuning or a prompt is advised by chance.

    python benchmarks/coverage_rivals.py [--draws 2000] [--rows 16 32 64]

Losses are drawn whose true mean is known: rows differ in length and in how hard they are, and base and adapter find
the same rows hard. chrF and BLEU are those of shipped summaries, of which words were dropped or changed; all of them
together tell the true score. At last all four variants are equal, so that any advice to tune or to prompt is wrong.
"""

import argparse
import json
import random
import sys
from collections.abc import Callable
from functools import cache
from math import exp
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.coverage import MEAN, Draw, between, right_or_wrong
from tuner.evaluation.advice import advise
from tuner.evaluation.score import VARIANTS, figures_of, from_losses, gain_interval, score_interval
from tuner.metrics import METRICS
from tuner.recipe import EXAMPLES

PERPLEXITY = METRICS["perplexity"]
# By name: nats per token, how far rows differ in it (the deviation of its logarithm), and the tokens of a row.
LOSSES = {
    "3 nats, rows alike": (3.0, 0.2, (20, 60)),
    "3 nats, rows of 5 to 300 tokens": (3.0, 0.6, (5, 300)),
    "1 nat": (1.0, 0.5, (5, 60)),
    "0.1 nats, few rows hard": (0.1, 1.0, (5, 60)),
    "5 nats, rows of 2 to 400 tokens": (5.0, 0.5, (2, 400)),
}
LOWER = (1.0, 0.7, 0.3)  # the adapter's loss as a share of the base's
SCALE = (0.0, 1.0)
WORSE = (0.15, 0.4)  # shares of words that are changed, by base and adapter


def losses(name: str, draw: np.random.Generator, rows: int, lower: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """The statistics of base and adapter."""
    mean, spread, (least, most) = LOSSES[name]
    labels = np.exp(draw.uniform(np.log(least), np.log(most), rows)).round().clip(1)
    hard = mean * np.exp(spread * draw.standard_normal(rows) - spread**2 / 2)
    base = draw.gamma(0.7 * labels, hard / 0.7)
    other = hard * lower * np.exp(0.3 * draw.standard_normal(rows) - 0.045)
    shared = draw.uniform(0.25, 0.75, rows)
    adapter = shared * lower * base + (1 - shared) * draw.gamma(0.7 * labels, other / 0.7)
    return from_losses(base, labels.astype(int)), from_losses(adapter, labels.astype(int))


def perplexity_holds(name: str, rows: int, draws: int, lower: float) -> tuple[float, float, float]:
    """The shares of draws in which the base's interval holds, that of the gain does, and the gain is above 0."""
    draw, mean, counts = np.random.default_rng(rows), LOSSES[name][0], np.zeros(3)
    gain = 1 - exp((lower - 1) * mean)
    for _ in range(draws):
        base, adapter = losses(name, draw, rows, lower)
        low, high = score_interval(PERPLEXITY, base, SCALE)
        least, most = gain_interval(PERPLEXITY, adapter, base, SCALE, 1)
        counts += low <= exp(mean) <= high, least <= gain <= most, least > 0
    return tuple(counts / draws)


@cache
def _summaries(name: str) -> tuple[np.ndarray, np.ndarray]:
    """The statistics of a worse and a better text for each shipped summary."""
    metric, draw = METRICS[name], random.Random(0)
    lines = (EXAMPLES / "support.jsonl").read_text(encoding="utf-8").splitlines()
    right = [json.loads(line)["summary"] for line in lines]
    words = sorted({word for text in right for word in text.split()})

    def changed(text: str, share: float) -> str:
        share *= 2 * draw.random()
        kept = [draw.choice(words) if draw.random() < share else word for word in text.split()]
        return " ".join(kept[: max(1, round(len(kept) * draw.uniform(1 - share, 1)))])

    worse, better = (metric.table(right, [changed(text, share) for text in right]) for share in sorted(WORSE)[::-1])
    return worse, better


def summaries_hold(name: str, rows: int, draws: int) -> tuple[float, float]:
    """The shares of draws in which the score's interval holds, and that of the gain."""
    metric, draw, counts, (worse, better) = METRICS[name], np.random.default_rng(rows), np.zeros(2), _summaries(name)
    true = [float(metric.score(table.sum(0))) for table in (worse, better)]
    for _ in range(draws):
        drawn = draw.integers(0, len(worse), rows)
        low, high = score_interval(metric, better[drawn], SCALE)
        least, most = gain_interval(metric, better[drawn], worse[drawn], SCALE, 1)
        counts += low <= true[1] <= high, least <= true[1] - true[0] <= most
    return tuple(counts / draws)


Equals = Callable[[np.random.Generator, int], dict[str, np.ndarray]]


def equal(rows_of: Draw, same: float = 0.0) -> Equals:
    """Four variants of one distribution, whose rows have a share in common."""

    def drawn(draw: np.random.Generator, rows: int) -> dict[str, np.ndarray]:
        common = rows_of(draw, rows)
        return {v: np.where(draw.random((rows, 1)) < same, common, rows_of(draw, rows)) for v in VARIANTS}

    return drawn


def as_hard(mean: float) -> Equals:
    """Four variants that are right by chance on rows that are as hard for all."""

    def drawn(draw: np.random.Generator, rows: int) -> dict[str, np.ndarray]:
        share = draw.beta(3 * mean, 3 * (1 - mean), rows)
        return {v: np.stack([(draw.random(rows) < share).astype(float), np.ones(rows)], 1) for v in VARIANTS}

    return drawn


EQUALS: dict[str, Equals] = {
    **{f"right or wrong, {m}": equal(right_or_wrong(m)) for m in (0.05, 0.5)},
    "right or wrong, 0.5, 70% alike": equal(right_or_wrong(0.5), 0.7),
    "right or wrong, rows as hard for all": as_hard(0.5),
    **{f"between, {m}": equal(between(m, 5)) for m in (0.05, 0.5, 0.95)},
    "between, 0.3, 70% alike": equal(between(0.3, 5), 0.7),
    "70% zeros, 0.05, half alike": equal(between(0.05, 6, zeros=0.7), 0.5),
}


def advised(name: str, rows: int, draws: int) -> float:
    """The share of draws of four equal variants in which tuning or a prompt is advised."""
    draw, wrong = np.random.default_rng(rows), 0
    for _ in range(draws):
        tables = EQUALS[name](draw, rows)
        scores = figures_of(MEAN, tables, {variant: MEAN.of_rows(table) for variant, table in tables.items()}, None)
        wrong += advise(scores)[0] != "neither"
    return wrong / draws


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--rows", type=int, nargs="+", default=[16, 32, 64])
    options = parser.parse_args()
    sizes = ", ".join(map(str, options.rows))

    def cell(shares: list[float]) -> str:
        return ", ".join(f"{100 * share:.1f}" for share in shares)

    heads = "base holds | " + " | ".join(f"loss x {lower}: gain holds | above 0" for lower in LOWER)
    print(f"| Perplexity at {sizes} rows | {heads} |\n" + "|---" * (2 + 2 * len(LOWER)) + "|")
    for name in LOSSES:
        found = [[perplexity_holds(name, rows, options.draws, lower) for rows in options.rows] for lower in LOWER]
        shares = [[part[0] for part in found[0]], *([part[i] for part in one] for one in found for i in (1, 2))]
        print(f"| {name} | " + " | ".join(map(cell, shares)) + " |", flush=True)
    print(f"\n| Summaries at {sizes} rows | score holds | gain holds |\n|---|---|---|")
    for name in ("chrf", "bleu"):
        both = [summaries_hold(name, rows, options.draws) for rows in options.rows]
        print(f"| {METRICS[name].title} | " + " | ".join(cell(list(part)) for part in zip(*both)) + " |", flush=True)
    print(f"\n| Four equal variants at {sizes} rows | tune or prompt advised |\n|---|---|")
    for name in EQUALS:
        shares = [advised(name, rows, options.draws) for rows in options.rows]
        print(f"| {name} | {cell(shares)} |", flush=True)


if __name__ == "__main__":
    main()
