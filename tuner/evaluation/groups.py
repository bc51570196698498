"""Who answers which held-out rows next: how many prompts are read together, in which time no window can be left."""

from itertools import accumulate
from math import inf
from typing import NamedTuple

from tuner.inference.variants import ActiveModel
from tuner.metrics import FEWEST_ROWS
from tuner.models.device import device_type
from tuner.runs import Run

# Of prompts with examples that are read together, in which time no window can be left: 4,000 to 15,000 tokens.
MOST_BYTES = {"cpu": 2**14, "cuda": 2**16}


class Group(NamedTuple):
    """Variants whose answers to a row are kept together, and what remembers their pace."""

    actives: tuple[tuple[ActiveModel, tuple[str, ...]], ...]  # each with the variants that it answers for in one batch
    pace: str

    @property
    def variants(self) -> list[str]:
        """The variants' names."""
        return [variant for _, variants in self.actives for variant in variants]

    def lacking(self, answer: dict) -> list[str]:
        """Those of them that are still to answer a row."""
        return [variant for variant in self.variants if variant not in answer]


def finished(groups: list[Group], rows: list[dict], answers: dict[str, dict]) -> list[int]:
    """The rows that all have answered."""
    return [i for i in range(len(rows)) if not any(group.lacking(answers.get(str(i), {})) for group in groups)]


def seconds_spent(answers: dict[str, dict]) -> float:
    """What all answers took, as far as it was measured."""
    return sum(seconds for answer in answers.values() for _, _, seconds in answer.get("costs", {}).values())


def _bytes(row: dict, variant: str) -> int:
    """The size of the prompt that the row has for a variant."""
    return len(str(row.get(variant, row.get("text", row["messages"]))).encode())


def _seconds_per_byte(rows: list[dict], answers: dict[str, dict], group: Group) -> float | None:
    """The pace of a group's answers so far, those that were copied included; None if there are none."""
    known = [
        (_bytes(rows[int(i)], variant), cost[2])
        for i, answer in answers.items()
        for variant, cost in answer.get("costs", {}).items()
        if variant in group.variants
    ]
    read, seconds = map(sum, zip(*known)) if known else (0, 0.0)
    return seconds / read if read else None


def _fitting(rows: list[dict], answers: dict[str, dict], group: Group, waiting: list[int], most: float) -> list[int]:
    """The first rows whose prompts have at most so many bytes together; one at least, which has to fit into what is
    kept for leaving."""
    sizes = [sum(_bytes(rows[i], v) for v in group.lacking(answers.get(str(i), {}))) for i in waiting]
    return waiting[: max(1, sum(read <= most for read in accumulate(sizes)))]


def next_batch(
    run: Run, rows: list[dict], answers: dict[str, dict], groups: list[Group], size: int, left: float
) -> tuple[Group, list[int]] | None:
    """Who answers which rows next; None if all is answered, or as many rows as there is time for.

    No more than can be answered in the seconds `left`, by the pace of earlier ones: while prompts are read, no window
    can be left.
    """
    limit, numbers = run.recipe.evaluation.seconds, range(len(rows))
    # Rows of similar length together need the least padding. If only some can be scored, they are those drawn first.
    order = sorted(numbers, key=lambda i: len(str(rows[i]["messages"]))) if limit is None else numbers
    own, *others = groups
    for group in others:
        waiting = [i for i in order if group.lacking(given := answers.get(str(i), {})) and not own.lacking(given)]
        if waiting:
            pace = _seconds_per_byte(rows, answers, group) or _seconds_per_byte(rows, answers, own)
            most = min(MOST_BYTES[device_type()], left / pace if pace else inf)
            return group, _fitting(rows, answers, group, waiting[:size], most)
    if limit is not None:
        done, seconds = len(finished(groups, rows, answers)), seconds_spent(answers)
        fitting = (limit - seconds) * done / seconds if seconds else size
        size = min(size, FEWEST_ROWS - done if done < FEWEST_ROWS else max(0, int(fitting)))
    waiting = [i for i in order if own.lacking(answers.get(str(i), {}))][:size]
    pace = _seconds_per_byte(rows, answers, own)
    return (own, _fitting(rows, answers, own, waiting, left / pace if pace else inf)) if waiting else None
