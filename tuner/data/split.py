"""Rows divided into training rows and held-out rows."""

import json
import random
from collections import Counter
from dataclasses import dataclass

from tuner import recipe
from tuner.data.encode import heldout_prompt
from tuner.data.sources import pick_splits
from tuner.errors import TunerError
from tuner.words import count

MIN_ROWS = 4
# Below 16 rows an interval spans half of the scale, and a tenth of many is plenty.
FEW, FEWEST_HELD, SHARE_OF_FEW, SHARE, MOST_HELD = 60, 16, 0.2, 0.1, 2000
NAMED = 5  # labels to list


@dataclass(frozen=True)
class Split:
    """Training rows and held-out rows, and the reason for this split."""

    train: list[dict]
    heldout: list[dict]
    reason: str
    warnings: tuple[str, ...] = ()
    repeated: int = 0  # held-out rows whose prompts are also trained on


def split_rows(rows: list[dict], splits: list[str] | None, data: recipe.Data, seed: int) -> Split:
    """The data's own splits if it has any, else a share of the rows, drawn with the run's seed or that of the data.

    Raises TunerError.
    """
    if len(rows) < MIN_ROWS:
        raise TunerError(
            f"There {'is' if len(rows) == 1 else 'are'} only {count(len(rows), 'row')}, and some must be held out. "
            f"Give at least {MIN_ROWS} rows, preferably hundreds."
        )
    if data.heldout_split and not splits:
        raise TunerError(
            f"data.heldout_split: {data.title} has no splits, so '{data.heldout_split}' can't be held out. Leave the "
            "setting out."
        )
    seed = seed if data.seed is None else data.seed
    names = splits or [data.split or "train"] * len(rows)
    trained, held = pick_splits(names, data, data.title)
    draw = random.Random(seed)
    train, picked = _pick([row for row, name in zip(rows, names, strict=True) if name == trained], data.max_rows, draw)
    if held:
        heldout, _ = _pick([row for row, name in zip(rows, names, strict=True) if name == held], data.max_rows, draw)
        draw.shuffle(heldout)  # only the first may be scored, and rows are often sorted by label
        reason = (
            f'Training on the split "{trained}" ({count(len(train), "row")}), '
            f'holding out "{held}" ({count(len(heldout), "row")}).'
        )
        return _split(train, heldout, reason + picked)
    size = heldout_size(len(train), data.heldout)
    if size >= len(train):
        raise TunerError(f"data.heldout: {size:,} of {len(train):,} rows can't be held out. Hold out fewer.")
    chosen = _drawn(train, size, draw)
    heldout = [row for index, row in enumerate(train) if index in chosen]
    draw.shuffle(heldout)
    kept = [row for index, row in enumerate(train) if index not in chosen]
    were = "was" if size == 1 else "were"
    reason = f"{size:,} of {len(train):,} rows {were} drawn with the seed ({seed}): there is no split to hold out."
    return _split(kept, heldout, reason + picked)


def _split(train: list[dict], heldout: list[dict], reason: str) -> Split:
    repeated = _repeated(train, heldout)
    have, warnings = "has" if repeated == 1 else "have", _one_sided(train, heldout)
    leak = (
        f"{repeated:,} of {count(len(heldout), 'held-out row')} {have} a prompt that is also trained on, so the "
        "scores will look too good. Drop the duplicates."
    )
    return Split(train, heldout, reason, ((leak,) if repeated else ()) + warnings, repeated)


def heldout_size(rows: int, setting: str | float) -> int:
    """How many of the rows are held out: as many or the share that the recipe says, or if it says "auto" a fifth of
    few rows, at least 16 of 60, a tenth of many, and no more than can be scored."""
    if setting == "auto":
        tenth = round(SHARE * rows)
        return max(1, round(SHARE_OF_FEW * rows)) if rows < FEW else min(MOST_HELD, max(FEWEST_HELD, tenth))
    return int(setting) if setting >= 1 else max(1, round(setting * rows))


def _drawn(rows: list[dict], size: int, draw: random.Random) -> set[int]:
    """The numbers of the rows to hold out; of rows with labels, each label's share."""
    mixed = draw.sample(range(len(rows)), size if "label" not in rows[0] else len(rows))
    if "label" not in rows[0]:
        return set(mixed)
    by_label, start = sorted(mixed, key=lambda number: rows[number]["label"]), draw.random()
    return {by_label[int((place + start) * len(rows) / size)] for place in range(size)}


def _pick(rows: list[dict], max_rows: int | None, draw: random.Random) -> tuple[list[dict], str]:
    if not max_rows or len(rows) <= max_rows:
        return rows, ""
    chosen = sorted(draw.sample(range(len(rows)), max_rows))
    used = "is used" if max_rows == 1 else "are used"
    return [rows[index] for index in chosen], f" Only {max_rows:,} of {len(rows):,} rows {used} (data.max_rows)."


def _repeated(train: list[dict], heldout: list[dict]) -> int:
    """How many held-out rows have a prompt that is also trained on, whatever its case and spacing, its answer and its
    system prompt."""

    def prompt(row: dict) -> str:
        messages = (heldout_prompt(row) or {"messages": [{"role": "user", "content": row.get("text")}]})["messages"]
        turns = [turn for turn in messages if turn["role"] != "system"]
        return json.dumps([turn | {"content": (turn["content"] or "").casefold().split()} for turn in turns])

    trained = {prompt(row) for row in train}
    return sum(prompt(row) in trained for row in heldout)


def _one_sided(train: list[dict], heldout: list[dict]) -> tuple[str, ...]:
    """Warnings of labels that are only trained on, or only held out."""
    trained, held = (
        Counter(label for row in rows for label in ([row["label"]] if "label" in row else set(row.get("tags", ()))))
        for rows in (train, heldout)
    )
    warnings = []
    if unseen := sorted(held.keys() - trained.keys()):
        rows = count(sum(held[label] for label in unseen), "held-out row")
        warnings.append(f"No training row has {_labels(unseen)}, so {rows} can't be answered right.")
    if unscored := sorted(trained.keys() - held.keys()):
        warnings.append(f"No held-out row has {_labels(unscored)}: the scores say nothing about this.")
    return tuple(warnings)


def _labels(labels: list[str]) -> str:
    more = f" and {len(labels) - NAMED} more" if len(labels) > NAMED else ""
    return f"the label{'s' * (len(labels) > 1)} {', '.join(labels[:NAMED])}{more}"
