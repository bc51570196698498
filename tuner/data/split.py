"""Rows divided into training rows and held-out rows."""

import json
import random
from dataclasses import dataclass

from tuner import recipe
from tuner.data.encode import heldout_prompt
from tuner.data.sources import pick_splits
from tuner.errors import TunerError
from tuner.words import count

MIN_ROWS = 4


@dataclass(frozen=True)
class Split:
    """Training rows and held-out rows, and the reason for this split."""

    train: list[dict]
    heldout: list[dict]
    reason: str
    warnings: tuple[str, ...] = ()


def split_rows(rows: list[dict], splits: list[str] | None, data: recipe.Data, seed: int) -> Split:
    """The data's own splits if it has any, else a share of the rows, drawn with the seed. Raises TunerError."""
    if len(rows) < MIN_ROWS:
        raise TunerError(
            f"There {'is' if len(rows) == 1 else 'are'} only {count(len(rows), 'row')}, and some must be held out. "
            f"Give at least {MIN_ROWS} rows, preferably hundreds."
        )
    if data.heldout_split and not splits:
        raise TunerError(
            f"data.heldout_split: {data.source} has no splits, so '{data.heldout_split}' can't be held out. Leave the "
            "setting out."
        )
    names = splits or [data.split or "train"] * len(rows)
    trained, held = pick_splits(names, data, data.source)
    draw = random.Random(seed)
    train, picked = _pick([row for row, name in zip(rows, names, strict=True) if name == trained], data.max_rows, draw)
    if held:
        heldout, _ = _pick([row for row, name in zip(rows, names, strict=True) if name == held], data.max_rows, draw)
        draw.shuffle(heldout)  # only the first may be scored, and rows are often sorted by label
        reason = (
            f'Training on the split "{trained}" ({count(len(train), "row")}), '
            f'holding out "{held}" ({count(len(heldout), "row")}).'
        )
        return Split(train, heldout, reason + picked, _leaks(train, heldout))
    size = data.heldout if data.heldout >= 1 else max(1, round(data.heldout * len(train)))
    if size >= len(train):
        raise TunerError(f"data.heldout: {size:,} of {len(train):,} rows can't be held out. Hold out fewer.")
    chosen = set(draw.sample(range(len(train)), size))
    heldout = [row for index, row in enumerate(train) if index in chosen]
    draw.shuffle(heldout)
    kept = [row for index, row in enumerate(train) if index not in chosen]
    were = "was" if size == 1 else "were"
    reason = f"{size:,} of {len(train):,} rows {were} drawn with the seed ({seed}): there is no split to hold out."
    return Split(kept, heldout, reason + picked, _leaks(kept, heldout))


def _pick(rows: list[dict], max_rows: int | None, draw: random.Random) -> tuple[list[dict], str]:
    if not max_rows or len(rows) <= max_rows:
        return rows, ""
    chosen = sorted(draw.sample(range(len(rows)), max_rows))
    return [rows[index] for index in chosen], f" Only {max_rows:,} of {len(rows):,} rows are used (data.max_rows)."


def _leaks(train: list[dict], heldout: list[dict]) -> tuple[str, ...]:
    """A warning if prompts of held-out rows are also trained on, whatever their answers and system prompts."""

    def prompt(row: dict) -> str:
        messages = (heldout_prompt(row) or {"messages": [{"role": "user", "content": row.get("text")}]})["messages"]
        return json.dumps([turn for turn in messages if turn["role"] != "system"])

    trained = {prompt(row) for row in train}
    repeated = sum(prompt(row) in trained for row in heldout)
    if not repeated:
        return ()
    have = "has" if repeated == 1 else "have"
    return (
        f"{repeated:,} of {count(len(heldout), 'held-out row')} {have} a prompt that is also trained on, so the "
        "scores will look too good. Drop the duplicates.",
    )
