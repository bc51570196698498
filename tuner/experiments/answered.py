"""The held-out rows that runs were scored on, with their answers, matched between runs by prompt and reference."""

from collections import Counter
from collections.abc import Hashable, Iterable
from typing import NamedTuple

from tuner.data.chat import without_thought
from tuner.evaluation.results import Row, read_rows
from tuner.runs import Run

RIVALS = {
    "base": "base model",
    "few_shot": "examples in the prompt",
    "few_shot_similar": "similar examples in the prompt",
}


class Common(NamedTuple):
    """The rows that several runs have in common, in the order of the first run."""

    references: list[str | list[str]]
    answers: dict[str, list[str]]  # run -> its adapter's answers
    rivals: dict[str, dict[str, list[str]]]  # variant without training -> run that has it on all rows -> its answers
    rows: dict[str, int]  # run -> how many rows it was scored on


def rows_of(run: Run) -> dict[Hashable, Row]:
    """The run's scored rows by what identifies them; none if it kept none. Raises TunerError if they are damaged."""
    seen: Counter = Counter()
    keyed = {}
    for row in read_rows(run) or ():
        asked = row["prompt"], row["reference"], *row.get("references", ())
        seen[asked] += 1
        keyed[asked, seen[asked]] = row  # the same row may be held out twice
    return keyed


def common_rows(runs: Iterable[Run]) -> Common:
    """The rows that all of these runs were scored on, those left out that kept none, as earlier versions did.

    Raises TunerError if a run's rows are damaged.
    """
    by_run = {run.id: rows for run in runs if (rows := rows_of(run))}
    if not by_run:
        return Common([], {}, {}, {})
    first, *others = by_run.values()
    keys = [key for key in first if all(key in rows for rows in others)]
    rivals = {}
    for variant in RIVALS:
        having = {
            run: rows
            for run, rows in by_run.items()
            if keys and all(isinstance(rows[key].get(variant), str) for key in keys)
        }
        if having:
            rivals[variant] = {
                run: [without_thought(rows[key][variant]) for key in keys] for run, rows in having.items()
            }
    references = [_right(first[key]) for key in keys]
    answers = {run: [without_thought(rows[key]["adapter"]) for key in keys] for run, rows in by_run.items()}
    return Common(references, answers, rivals, {run: len(rows) for run, rows in by_run.items()})


def _right(row: Row) -> str | list[str]:
    return [*map(without_thought, row.get("references", ()))] or without_thought(row["reference"])
