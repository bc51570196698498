"""Did it help? One rule and one wording, for the page, the terminal and the model card."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tuner.metrics import metric_of

FEW_ROWS = 20  # below this a score is only a hint
TOO_FEW_ROWS = 5  # below this resamples repeat the same few rows, and even a narrow interval says little
MOST_DIGITS = 4  # scores are kept with as many
HEADLINES = {"good": "It helped.", "bad": "It made things worse.", "unsure": "No clear difference."}


@dataclass(frozen=True)
class Verdict:
    """What the scores of a run say. `template` has the placeholders {base} and {adapter}."""

    kind: str  # good, bad or unsure
    headline: str
    base: str
    adapter: str
    template: str

    def text(self, emphasise: Callable[[str], str] = str) -> str:
        """The figures in a sentence or two, both scores passed through `emphasise`."""
        return self.template.format(base=emphasise(self.base), adapter=emphasise(self.adapter))


def judge(scores: dict, digits: int = 2) -> Verdict:
    """The verdict on an evaluation: good or bad only if the 95% interval of the gain excludes 0.

    A good or bad one has at least `digits`, and as many as it takes to tell the scores apart, and the gain from 0.
    """
    gain = scores["gain"]
    if not gain:  # plain text has no prompts to answer
        losses = (f"{scores[variant]['loss']:.3f}" for variant in ("base", "adapter"))
        text = "On held-out text, the base model's loss is {base} and the adapter's {adapter} (lower is better)."
        return Verdict("unsure", "Only the loss was measured.", *losses, text)
    metric, rows = metric_of(scores), scores["rows"]
    kind = "good" if gain["low"] > 0 else "bad" if gain["high"] < 0 else "unsure"
    headline = HEADLINES[kind]
    if rows < TOO_FEW_ROWS:
        kind, headline = "unsure", "Too few rows to tell."
    values = [scores[variant][metric.name] for variant in ("base", "adapter")]
    if kind != "unsure":
        digits = _digits([values, *((value, 0) for value in gain.values())], digits)
    base, adapter = (f"{value:.{digits}f}" for value in values)
    meaning = metric.explanation if metric.higher_is_better else f"{metric.explanation}; {metric.direction}"
    few = " With so few rows this is only a hint." if rows < FEW_ROWS else ""
    text = (
        f"On {rows} held-out row{'' if rows == 1 else 's'}, the base model scores {{base}} in {metric.title} and the "
        f"adapter {{adapter}} ({meaning}). The gain is {_gain(gain, metric.name, digits, '95% interval ')}.{few}"
    )
    return Verdict(kind, headline, base, adapter, text)


def other_scores(scores: dict, digits: int = 2) -> list[tuple[str, str, str, str]]:
    """For each further metric: its title, the scores of base and adapter, and the gain, with their intervals."""
    rows = []
    for other in scores.get("other_metrics", []):
        metric = metric_of(other)
        title = metric.title if metric.higher_is_better else f"{metric.title} ({metric.direction})"
        base, adapter = (with_interval(other[variant], metric.name, digits) for variant in ("base", "adapter"))
        rows.append((title, base, adapter, _gain(other["gain"], metric.name, digits)))
    return rows


def with_interval(part: dict, name: str, digits: int = 2) -> str:
    """A metric's score with its interval, from the part of an evaluation that belongs to base or adapter."""
    low, high = part.get(f"{name}_low"), part.get(f"{name}_high")
    return f"{part[name]:.{digits}f}" + (f" ({low:.{digits}f} to {high:.{digits}f})" if low is not None else "")


def _digits(pairs: list[Sequence[float]], least: int) -> int:
    """The digits with which no two numbers of a pair look alike."""
    enough = (d for d in range(least, MOST_DIGITS) if all(round(one, d) != round(other, d) for one, other in pairs))
    return next(enough, MOST_DIGITS)


def _gain(gain: dict, name: str, digits: int, label: str = "") -> str:
    # Plus 0.0, because a small loss would be shown as "-0.00".
    value, low, high = (f"{round(gain[key], digits) + 0.0:+.{digits}f}" for key in (name, "low", "high"))
    return f"{value} ({label}{low} to {high})"
