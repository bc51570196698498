"""A Table: rows as they were read, with nothing interpreted, and the bounds of all that is read.

table = Table("rows.csv", ["text"], [{"text": "hi"}], lines=[2]); table.place(0)
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from tuner import recipe
from tuner.data.problems import QUOTED, and_join
from tuner.errors import TunerError
from tuner.words import BROKEN, is_broken

MAX_FILE_BYTES = int(os.environ.get("TUNER_MAX_FILE_MB", 50)) * 2**20
MAX_ROWS = int(os.environ.get("TUNER_MAX_ROWS", 100_000))
MAX_COLUMNS = 2000
MAX_CELLS = 5_000_000  # each takes about 100 bytes of memory, however short its text
MAX_NAME = 500  # characters of a column's name
HELDOUT_SPLITS = ("validation", "valid", "val", "dev", "heldout", "held-out", "held_out", "eval", "test")
SPLITS = ("train", "training", *HELDOUT_SPLITS)


@dataclass(frozen=True)
class Table:
    """Rows as they were read. For people they are numbered from 1, and the header is not a row."""

    name: str
    columns: list[str]
    rows: list[dict]
    splits: list[str] | None = None  # the name of each row's split
    lines: list[int] | None = None  # the line on which each row starts
    joined: bool = False  # the splits follow each other, and each numbers its rows from 1
    notes: tuple[str, ...] = ()  # what a person should know about how the rows were read
    has_header: bool = False  # the names of the columns are those of the first line
    media: tuple[str, ...] = ()  # columns of pictures, sounds and the like, which were left out
    parts: tuple["Table", ...] = ()  # the tables of several files, which follow each other
    origin: str = "own"  # or "example", which comes with Tuner, or "hub"
    revision: str | None = None  # of a dataset on the Hub, the commit

    def place(self, index: int) -> tuple[int, int | None, str]:
        """A row's number, its line if lines are counted, and what it is a row of."""
        for part in self.parts:
            if index < len(part.rows):
                return part.place(index)
            index -= len(part.rows)
        if self.joined:
            split = self.splits[index]
            return index - self._firsts[split] + 1, None, f'split "{split}" of {self.name}'
        return index + 1, self.lines[index] if self.lines else None, self.name

    @cached_property
    def _firsts(self) -> dict[str, int]:
        """The index of each split's first row."""
        return {split: index for index, split in reversed(list(enumerate(self.splits)))}


def limited(rows: Iterable, name: str, max_rows: int | None, notes: list[str]) -> Iterator:
    """The rows up to MAX_ROWS. The next one is refused at once, so that a huge file is not read to its end."""
    for count, row in enumerate(rows):
        if count == MAX_ROWS:
            if max_rows is None:
                raise TunerError(too_many(name, "more than"))
            notes.append(f"Only the first {MAX_ROWS:,} rows of {name} were read.")
            return
        yield row


def too_many(name: str, count: str) -> str:
    """The refusal of too many rows; `count` is such as "more than"."""
    return (
        f"{name} has {count} {MAX_ROWS:,} rows, the most that a run can use. "
        f"Give a sample of it, or set data.max_rows to choose from its first {MAX_ROWS:,}."
    )


def check_columns(columns: list[str], name: str) -> None:
    """Raise TunerError if there are too many columns, or if their names can't be names."""
    if len(columns) > MAX_COLUMNS:
        raise TunerError(
            f"{name} has {len(columns):,} columns, and the limit is {MAX_COLUMNS:,}. Keep those with the texts."
        )
    for number, column in enumerate(columns, 1):
        if len(column) > MAX_NAME:
            raise TunerError(
                f"{name}: the name of column {number} has {len(column):,} characters ({column[:40]} ...), which looks "
                "like a row. Put a header with the names of the columns in the first line."
            )
        if is_broken(column):
            raise TunerError(f"{name}: the name of column {number} has {BROKEN}. Rename the column.")
    counts = Counter(columns)
    if doubles := [column for column in counts if counts[column] > 1]:
        places = [str(i) for i, column in enumerate(columns, 1) if column == doubles[0]]
        where = and_join(places) if len(places) <= QUOTED else f"{', '.join(places[:QUOTED])} and more"
        raise TunerError(f'{name} has several columns named "{doubles[0]}" (columns {where}). Rename all but one.')


def check_cells(rows: int, columns: list[str], name: str) -> None:
    """Raise TunerError if so many rows have too many cells together."""
    if rows * len(columns) > MAX_CELLS:
        raise TunerError(
            f"{name} has more than {MAX_CELLS:,} cells ({len(columns):,} columns). Keep the columns with the texts, "
            "or give a sample of its rows."
        )


def keys(rows: list[dict]) -> list[str]:
    """The columns of the rows, in the order in which they first appear."""
    return list(dict.fromkeys(key for row in rows for key in row))


def make(name: str, columns: list[str], rows: list[dict], splits: list[str] | None = None, **facts) -> Table:
    """A Table; a column "split" with names of splits gives each row's split.

    Raises TunerError if it has no rows, or columns that can't be used.
    """
    check_columns(columns, name)
    if not rows:
        raise TunerError(f"{name} has {'a header but ' if columns else ''}no rows. Give at least 4 rows.")
    if splits is None and all(row.get("split") in SPLITS for row in rows):
        splits = [row["split"] for row in rows]
        columns = [column for column in columns if column != "split"]
    return Table(name, columns, rows, splits, **facts)


def pick_splits(names: Iterable[str], data: recipe.Data, name: str) -> tuple[str, str | None]:
    """The split to train on, and the split to hold out (None if there is none). Raises TunerError."""
    names = list(dict.fromkeys(names))
    problems = [
        f"data.{key}: {name} has no split '{split}'. Set it to one of: {', '.join(names)}."
        for key, split in (("split", data.split), ("heldout_split", data.heldout_split))
        if split and split not in names
    ]
    if problems:
        raise TunerError(*problems)
    others = [split for split in names if split not in HELDOUT_SPLITS and split != data.heldout_split]
    train = data.split or next((split for split in ("train", "training", *others, *names) if split in names), names[0])
    heldout = data.heldout_split or next((s for s in HELDOUT_SPLITS if s in names and s != train), None)
    if heldout == train:
        raise TunerError(
            f"The split '{train}' of {name} can't be both trained on and held out. Change data.split or "
            "data.heldout_split."
        )
    return train, heldout
