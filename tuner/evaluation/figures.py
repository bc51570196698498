"""The figures of an evaluation as text, and the table of all variants."""

from collections.abc import Sequence

from tuner.evaluation.advice import PROMPTS, pair_of
from tuner.metrics import metric_of
from tuner.words import count

MOST_DIGITS = 4  # scores are kept with as many
HEADS = ("", "score", "over the base model", "better / worse / same", "tokens per prompt", "seconds per answer")


def digits_apart(pairs: list[Sequence[float]], least: int) -> int:
    """The digits with which no two numbers of a pair look alike."""
    enough = (d for d in range(least, MOST_DIGITS) if all(round(one, d) != round(other, d) for one, other in pairs))
    return next(enough, MOST_DIGITS)


def digits_of_gain(pair: dict, least: int) -> int:
    """The digits with which no end of a gain's interval looks like 0 that is not: whether it holds 0 can be seen."""
    return digits_apart([(pair[key], 0) for key in ("low", "high") if pair.get(key)], least)


def with_interval(part: dict, name: str, digits: int = 2) -> str:
    """A metric's score with its interval, from the part of an evaluation that belongs to a variant."""
    low, high = part.get(f"{name}_low"), part.get(f"{name}_high")
    return f"{part[name]:.{digits}f}" + (f" ({low:.{digits}f} to {high:.{digits}f})" if low is not None else "")


def gain_parts(part: dict, pair: dict, digits: int = 2) -> list[str]:
    """A gain and the ends of its interval, if any: `pair` is one of those of `part`, an evaluation by one metric.

    That of perplexity is in percent: by so much it is lower.
    """
    metric = metric_of(part)
    form = f"+.{max(0, digits - 2)}%" if metric.from_losses else f"+.{digits}f"
    # Plus 0.0, because a small loss would be shown as "-0.00".
    return [f"{round(pair[key], digits) + 0.0:{form}}" for key in (metric.name, "low", "high") if key in pair]


def shown_gain(part: dict, pair: dict, digits: int = 2, label: str = "") -> str:
    """A gain with its interval; see `gain_parts`."""
    shown = gain_parts(part, pair, digits)
    return shown[0] + (f" ({label}{shown[1]} to {shown[2]})" if len(shown) > 1 else "")


def title(scores: dict, variant: str) -> str:
    """The name of a variant that has examples in its prompt."""
    number = scores.get("prompting", {}).get("examples")
    if variant == "few_shot":
        return f"{count(number, 'example')} in the prompt" if number else "examples in the prompt"
    if number == 1:
        return "the most similar row in the prompt"
    return f"the {f'{number} ' if number else ''}most similar rows in the prompt"


def table(scores: dict, base: str, digits: int = 2) -> list[tuple[str, ...]]:
    """A row for each variant, with a cell for each of the HEADS; none for runs without examples in the prompt.

    `base` is what the base model is called.
    """
    metric, costs = metric_of(scores), scores.get("costs", {})
    shown = [variant for variant in ("base", *PROMPTS, "adapter") if metric.name in scores.get(variant, {})]
    rows = []
    for variant in shown if len(shown) > 2 else []:
        pair, cost = pair_of(scores, variant, "base"), costs.get(variant, {})
        name = {"base": base, "adapter": "adapter"}.get(variant) or title(scores, variant)
        rows.append(
            (
                name,
                with_interval(scores[variant], metric.name, digits),
                shown_gain(scores, pair, digits_of_gain(pair, digits)) if pair else "",
                f"{pair['wins']:,} / {pair['losses']:,} / {pair['ties']:,}" if "wins" in pair else "",
                f"{cost['prompt_tokens']:,.0f}" if cost else "",
                f"{cost['seconds']:.2f}" if cost else "",
            )
        )
    return rows


def copied(scores: dict) -> str:
    """That another run of the experiment asked the base model, whose answers and costs this one has; else nothing."""
    runs = [*dict.fromkeys(scores.get("copied", {}).values())]
    if not runs:
        return ""
    return f"The base model was asked in run {' and '.join(runs)}: its answers and what they cost were copied."
