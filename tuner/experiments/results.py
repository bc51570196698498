"""What candidates show that are held against each other, as plain values and in words: which is first, and by luck?"""

from dataclasses import asdict, dataclass, field
from typing import Any

from tuner.experiments.answered import RIVALS
from tuner.metrics import FEWEST_ROWS, METRICS
from tuner.planning.forecast import duration
from tuner.words import count

NAMED = 4  # candidates that a sentence lists
ONCE = "Each was trained once, so the intervals between them are wider, to allow for the luck of a seed."


@dataclass(frozen=True)
class Results:
    """Several candidates held against each other; plain values, for a table, a plot or a program."""

    kind: str  # methods, seeds, search or beside
    metric: str | None = None  # None if only losses were measured
    rows: int = 0  # held-out rows that all finished runs answered
    chosen_by: int = 0  # of them, those that chose a search's winner; the others score it
    best: str | None = None  # the first line's label
    # By rank, the unfinished ones last: label, status, problems, runs (their ids), rank, score, low, high, spread (of
    # the seeds), choosing (the score by which a search chose), loss, seconds, steps, trainable_parameters,
    # adapter_bytes, title (of the method), settings, and fronts (the costs for which none is as good and as cheap).
    lines: list[dict[str, Any]] = field(default_factory=list)
    rivals: list[dict[str, Any]] = field(default_factory=list)  # label, score, low, high of what needs no training
    # Every pair once, the better one as "of", and the first with the rivals: of, over, the metric's name with the
    # gain, low, high, wins, losses, ties.
    pairs: list[dict[str, Any]] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)  # what can be said, the most important first
    # Of an experiment the seconds of training and scoring that all its runs took together.
    seconds: dict[str, float] | None = None

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values."""
        return asdict(self)


def cost_in_words(found: Results) -> str:
    """What an experiment took in all; nothing for runs beside each other."""
    if not found.seconds:
        return ""
    parts = " and ".join(f"{duration(seconds)} of {what}" for what, seconds in found.seconds.items())
    return f"In all {duration(sum(found.seconds.values()))}: {parts}."


def sentences_of(found: Results) -> list[str]:
    """The sentences, the most important first; none before a run has finished."""
    lines = [line for line in found.lines if "rank" in line]
    if not lines:
        return []
    if found.metric is None and lines[0]["loss"] is None:
        return ["No run has a held-out loss that is a finite number."]
    if found.metric is None:
        return [f"{lines[0]['label']} has the lowest loss on held-out text. Losses alone have no intervals."]
    if not found.rows:
        if METRICS[found.metric].from_losses:
            lowest = f"{lines[0]['label']} has the lowest {METRICS[found.metric].title}."
            return [f"{lowest} It is not compared row by row, so whether that is luck can't be told."]
        return ["The runs have no scored rows in common, so whether the first is first by luck can't be told."]
    says = _search if found.kind == "search" else _ranking if len(lines) > 1 else _seeds
    once = [ONCE] * (len(lines) > 1 and all(line["finished_seeds"] == 1 for line in lines))
    return [*says(found, lines), *_against_rivals(found), *once]


def is_clear(pair: dict[str, Any]) -> bool:
    """Whether the first of a pair is clearly better: its interval is above 0."""
    return pair.get("low", 0) > 0


def gain_in_words(pair: dict[str, Any], metric: str) -> str:
    """The gain with its interval: +0.120 in ROUGE-L (95% interval +0.050 to +0.190)."""
    bounds = f" (95% interval {pair['low']:+.3f} to {pair['high']:+.3f})" if "low" in pair else ""
    return f"{pair[metric]:+.3f} in {METRICS[metric].title}{bounds}"


def _ranking(found: Results, lines: list[dict]) -> list[str]:
    first, others = lines[0]["label"], {p["over"]: p for p in found.pairs if p["of"] == lines[0]["label"]}
    lines = [line for line in lines if line["label"] in others]
    if not lines:
        return [f"{first} scored highest, but it has no scored rows in common with the others."]
    nearest = others[lines[0]["label"]]
    if "low" not in nearest:
        return [f"{first} scored highest. {_too_few(found)}"]
    figures = gain_in_words(nearest, found.metric)
    if is_clear(nearest):
        return [f"{first} is clearly better than {nearest['over']}, the next best: {figures}."]
    open_ones = [line["label"] for line in lines if not is_clear(others[line["label"]])]
    worse = [line["label"] for line in lines if is_clear(others[line["label"]])]
    said = [f"{first} scored highest, but that may be luck: it is not clearly better than {_listed(open_ones)}."]
    said.append(f"{first} against {nearest['over']}: {figures}.")
    if worse:
        said.append(f"It is clearly better than {_listed(worse, 'and')}.")
    return said


def _seeds(found: Results, lines: list[dict]) -> list[str]:
    line, title = lines[0], METRICS[found.metric].title
    if line["spread"] is None:
        return []
    bounds = (
        "" if line["low"] is None else f"; the 95% interval of the mean is {line['low']:.3f} to {line['high']:.3f}"
    )
    return [
        f"{line['finished_seeds']} seeds of {line['label']} score {line['score']:.3f} in {title} on average, with a "
        f"standard deviation of {line['spread']:.3f}{bounds}."
    ]


def _search(found: Results, lines: list[dict]) -> list[str]:
    first = lines[0]
    tried = f"the best of {count(len(lines), 'trial')}"
    if not found.chosen_by:
        return [
            f"{first['label']} is {tried}. Its score of {first['score']:.3f} is probably too good, since the same "
            f"{count(found.rows, 'row')} chose it. With {2 * FEWEST_ROWS} held-out rows or more, some choose and "
            "others score."
        ]
    others = found.rows - found.chosen_by
    said = [
        f"{first['label']} is {tried} by {found.chosen_by} of the {found.rows} held-out rows "
        f"({first['choosing']:.3f}). On the other {others}, which had no part in the choice, it scores "
        f"{first['score']:.3f} in {METRICS[found.metric].title}."
    ]
    own = next((line for line in lines if line["label"] == "trial 1"), None)
    if own is first:
        return [*said, "No other trial did better than trial 1, the settings that there were."]
    pair = next((p for p in found.pairs if p["of"] == first["label"] and p["over"] == "trial 1"), None)
    if own is None or pair is None or "low" not in pair:
        return said
    clear = "clearly better than" if is_clear(pair) else "not clearly better than"
    return [*said, f"That is {clear} trial 1, the settings that there were: {gain_in_words(pair, found.metric)}."]


def _against_rivals(found: Results) -> list[str]:
    """Whether the first is better than what needs no training: the base model, and its best prompt with examples."""
    names = {rival["variant"]: rival["label"] for rival in found.rivals}
    pairs = {pair["over"]: pair for pair in found.pairs if pair["over"] in RIVALS and "low" in pair}
    prompts = sorted((variant for variant in pairs if variant != "base"), key=lambda v: pairs[v][found.metric])
    pairs = {variant: pair for variant, pair in pairs.items() if variant not in prompts[1:]}
    return [
        f"{found.best} is {'clearly' if is_clear(pair) else 'not clearly'} better than "
        f"{_article(names[variant])}: {gain_in_words(pair, found.metric)}."
        for variant, pair in pairs.items()
    ]


def _article(name: str) -> str:
    return (
        f"the {name}"
        if name.startswith("base model")
        else f"an answer that is {name}"
        if name.startswith("always")
        else name
    )


def _too_few(found: Results) -> str:
    if found.rows < FEWEST_ROWS:
        return (
            f"With {count(found.rows, 'row')} in common, nobody can tell whether that is luck: it takes {FEWEST_ROWS}."
        )
    return "There is no interval: a label has too few held-out rows."


def _listed(labels: list[str], word: str = "or") -> str:
    shown = labels[:NAMED]
    more = [f"{len(labels) - NAMED} more"] if len(labels) > NAMED else []
    *some, last = shown + more
    return f"{', '.join(some)} {word} {last}" if some else last
