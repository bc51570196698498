"""Rows divided into those to train on and those held out."""

import json
import random
from dataclasses import dataclass

from tuner import recipe
from tuner.data.sources import pick_splits
from tuner.errors import TunerError

MIN_ROWS = 4


@dataclass(frozen=True)
class Split:
    """Rows to train on and rows held out, with the reason."""

    train: list[dict]
    heldout: list[dict]
    reason: str
    warnings: tuple[str, ...] = ()


def split_rows(rows: list[dict], splits: list[str] | None, data: recipe.Data, seed: int) -> Split:
    """The splits that exist, or a share of the rows held out by the seed. Raises TunerError."""
    if len(rows) < MIN_ROWS:
        count = "1 row" if len(rows) == 1 else f"{len(rows)} rows"
        raise TunerError(
            f"There is only {count}, and some must be held out. Give at least {MIN_ROWS}, better hundreds."
        )
    if data.heldout_split and not splits:
        raise TunerError(f"{data.source} has no splits, so '{data.heldout_split}' can't be held out. Leave it out.")
    names = splits or [data.split or "train"] * len(rows)
    trained, held = pick_splits(names, data, data.source)
    draw = random.Random(seed)
    train, picked = _pick([row for row, name in zip(rows, names, strict=True) if name == trained], data.max_rows, draw)
    if held:
        heldout, _ = _pick([row for row, name in zip(rows, names, strict=True) if name == held], data.max_rows, draw)
        draw.shuffle(heldout)  # only the first may be scored, and rows often come sorted by their label
        reason = (
            f'The split "{trained}" is trained on ({len(train):,} rows) and "{held}" held out ({len(heldout):,} rows).'
        )
        return Split(train, heldout, reason + picked, _leaks(train, heldout))
    count = data.heldout if data.heldout >= 1 else max(1, round(data.heldout * len(train)))
    if count >= len(train):
        raise TunerError(f"data.heldout asks for {count:,} rows, and there are {len(train):,} in all. Hold out fewer.")
    chosen = set(draw.sample(range(len(train)), count))
    heldout = [row for index, row in enumerate(train) if index in chosen]
    draw.shuffle(heldout)
    kept = [row for index, row in enumerate(train) if index not in chosen]
    reason = (
        f"{count:,} of {len(train):,} rows were picked by the seed ({seed}), because no split is there to be held out."
    )
    return Split(kept, heldout, reason + picked, _leaks(kept, heldout))


def _pick(rows: list[dict], max_rows: int | None, draw: random.Random) -> tuple[list[dict], str]:
    if not max_rows or len(rows) <= max_rows:
        return rows, ""
    chosen = sorted(draw.sample(range(len(rows)), max_rows))
    return [rows[index] for index in chosen], f" Only {max_rows:,} of {len(rows):,} rows are used (data.max_rows)."


def _leaks(train: list[dict], heldout: list[dict]) -> tuple[str, ...]:
    def prompt(row: dict) -> str:
        if "messages" in row:
            return json.dumps([turn for turn in row["messages"][:-1] if turn["role"] != "system"])
        return json.dumps([row[key] for key in ("text", "tokens", "question", "context") if key in row])

    known = {prompt(row) for row in train}
    count = sum(prompt(row) in known for row in heldout)
    if not count:
        return ()
    return (
        f"{count:,} of {len(heldout):,} held-out rows have a prompt that is trained on too, so the scores will "
        "flatter. Drop the duplicates.",
    )
