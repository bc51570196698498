"""Seconds that the held-out answers will take, and how many rows that leaves if they may take only so many."""

from typing import NamedTuple

from tuner.methods.registry import METHODS
from tuner.metrics import FEWEST_ROWS
from tuner.models.shape import Base, shape_of
from tuner.planning.pace import (
    ANSWER_PACES,
    EXAMPLES_PACE,
    EXAMPLES_TOKENS,
    believable,
    reading_seconds,
    token_seconds,
)
from tuner.recipe import Recipe
from tuner.words import count

ANSWER_BATCH = 32  # held-out rows answered together by base and adapter; as many answers with examples in the prompt


class Prompts(NamedTuple):
    """Held-out prompts: the mean tokens of one, and what examples add to it; 0 if none has examples."""

    tokens: float = 0.0
    examples: float = 0.0


class Scoring(NamedTuple):
    """Estimated seconds of the answers to so many rows, those of them that are the base's alone, and those that are
    for examples in the prompt, if there are any."""

    seconds: float
    rows: int
    of_base: float = 0.0
    of_examples: float = 0.0


def estimate_scoring(
    recipe: Recipe, base: Base, settings: dict, rows: int, prompts: Prompts, pace: dict, own_head: bool
) -> Scoring:
    """The scoring of so many rows, or of as many as there is time for. An untrained head is not asked.

    As in scoring itself, examples in the prompt are dropped where there would be no time for FEWEST_ROWS rows.
    """
    limit, fewest = recipe.evaluation.seconds, min(FEWEST_ROWS, rows)
    own, of_base = _own(recipe, base, settings, rows, prompts, pace, own_head)
    shown = _with_examples(base, settings, rows, prompts, pace) if prompts.examples else 0.0
    if not limit or own + shown <= limit:
        return Scoring(own + shown, rows, of_base, shown)
    if shown and (fitting := int(rows * limit / (own + shown))) >= fewest:
        share = limit / (own + shown)
        return Scoring(limit, fitting, share * of_base, share * shown)
    fitting = min(rows, max(fewest, int(rows * limit / own)))
    return Scoring(max(limit, own * fitting / rows), fitting, of_base * fitting / rows)


def _own(
    recipe: Recipe, base: Base, settings: dict, rows: int, prompts: Prompts, pace: dict, own_head: bool
) -> tuple[float, float]:
    """The seconds of base and adapter, and how many of them are the base's: without it, batches are half as large."""
    tokens = settings.get("max_new_tokens", 1)  # what is read off one forward pass has none
    batches, together = -(-rows // ANSWER_BATCH), min(rows, ANSWER_BATCH)
    alone = batches * tokens * token_seconds(shape_of(base), together) + reading_seconds(base, rows, prompts.tokens)
    seconds = batches * (turns(recipe, base) if own_head else 1) * tokens * token_seconds(shape_of(base), 2 * together)
    seconds += reading_seconds(base, 2 * rows, prompts.tokens)
    of_base = (1 - alone / seconds) if own_head and seconds else 0.0
    if measured := pace.get(ANSWER_PACES[own_head]):
        seconds = believable(rows * measured, pace, seconds)
    return seconds, of_base * seconds


def _with_examples(base: Base, settings: dict, rows: int, prompts: Prompts, pace: dict) -> float:
    """The seconds of the base with the same and with similar examples in each prompt."""
    answers, shape = 2 * rows, shape_of(base)
    length = prompts.tokens + prompts.examples
    batches = -(-answers // ANSWER_BATCH)
    writing = batches * settings["max_new_tokens"] * token_seconds(shape, min(answers, ANSWER_BATCH))
    seconds = writing + reading_seconds(base, answers, length)
    if not (measured := pace.get(EXAMPLES_PACE)):
        return seconds
    # Other rows, or more examples: as much slower or faster as by the work alone.
    earlier = writing + reading_seconds(base, answers, pace.get(EXAMPLES_TOKENS, length))
    return believable(rows * measured * seconds / earlier, pace, seconds)


def seconds_together(forecasts: list[dict], runs: int, *, have_same_examples: bool) -> float:
    """Start-up, training and scoring of so many runs of an experiment, whose plans have these forecasts: the base
    answers the same prompts once for all."""
    each = [forecast["start_up"] + forecast["training"] + forecast["scoring"] for forecast in forecasts]
    parts = ("base", "examples") if have_same_examples else ("base",)
    copied = [sum(forecast.get("untuned", {}).get(part, 0.0) for part in parts) for forecast in forecasts]
    return (sum(each) * runs - sum(copied) * (runs - 1)) / len(forecasts)


def turns(recipe: Recipe, base: Base, adapters: int = 1) -> int:
    """How often the base's weights are used for one token of the base's answer and that of each adapter."""
    return 1 if METHODS[recipe.method.name].answers_beside(base) else 1 + adapters


def too_few_seconds(recipe: Recipe, heldout: int, estimate: dict, could_have_examples: bool) -> list[str]:
    """Warnings that there is no time (evaluation.seconds) for all that was to be scored, of so many held-out rows."""
    limit, asked, warnings = recipe.evaluation.seconds, min(heldout, recipe.evaluation.rows), []
    if estimate["scored"] < asked:
        warnings.append(
            f"About {estimate['scored']:,} of {count(asked, 'held-out row')} will be scored, the first in a drawn "
            f"order: more are estimated to take longer than {limit:g} s (evaluation.seconds)."
        )
    if could_have_examples and not estimate["has_examples"]:
        warnings.append(
            f"evaluation.seconds: {limit:g} s are estimated to be too few to try examples in the prompt on "
            f"{count(min(asked, FEWEST_ROWS), 'row')}. Only base model and adapter will be compared then. Give more "
            "seconds to see whether a prompt does as well as tuning."
        )
    return warnings
