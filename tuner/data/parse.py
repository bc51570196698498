"""The text of a file, or pasted text, as a Table, with nothing interpreted. Knows nothing about tokenizers or torch.

Files are read with csv, json and pyarrow rather than pandas: pandas guesses types ("007" becomes 7, "NA" becomes NaN),
silently pads short rows and forgets line numbers, which error messages need. Nothing that is read is ever executed or
unpickled.

    table = parse("prompt,completion\nhi,Hello.", "pasted rows", suffix=".csv"); table.rows[0]["completion"]
"""

import csv
import io
import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from tuner.data.problems import QUOTED, Problems, and_join
from tuner.errors import TunerError
from tuner.words import BROKEN, is_broken

MAX_FILE_BYTES = int(os.environ.get("TUNER_MAX_FILE_MB", 50)) * 2**20
MAX_ROWS = int(os.environ.get("TUNER_MAX_ROWS", 100_000))
MAX_COLUMNS = 2000
MAX_CELLS = 5_000_000  # each takes about 100 bytes of memory, however short its text
MAX_NAME = 500  # characters of a column's name
SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet")
HELDOUT_SPLITS = ("validation", "valid", "val", "dev", "heldout", "held-out", "held_out", "eval", "test")
SPLITS = ("train", "training", *HELDOUT_SPLITS)

_TEXT = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)  # in JSON; one that is never closed goes to the end
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]")


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

    def place(self, index: int) -> tuple[int, int | None, str]:
        """A row's number, its line if lines are counted, and what it is a row of."""
        if self.joined:
            split = self.splits[index]
            return index - self._firsts[split] + 1, None, f'split "{split}" of {self.name}'
        return index + 1, self.lines[index] if self.lines else None, self.name

    @cached_property
    def _firsts(self) -> dict[str, int]:
        """The index of each split's first row."""
        return {split: index for index, split in reversed(list(enumerate(self.splits)))}


def decode(raw: bytes, name: str) -> str:
    """The text of bytes in UTF-8, or in UTF-16 with a byte order mark. Raises TunerError.

    Other encodings are refused rather than guessed: a wrong guess raises no error, and trains on garbage.
    """
    utf16 = raw.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        # Not "utf-8-sig", whose errors count bytes from behind the mark.
        text = raw.decode("utf-16" if utf16 else "utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        if utf16:
            raise TunerError(f"{name} is incomplete: its UTF-16 text breaks off. Save it again, as UTF-8.") from None
        if b"\0" in raw:
            raise TunerError(_binary(name, raw.count(b"\n", 0, raw.index(b"\0")), 0)) from None
        line = raw.count(b"\n", 0, error.start) + 1
        mixed = not raw[: error.start].removeprefix(b"\xef\xbb\xbf").isascii()
        what = (
            "The file mixes encodings: the text before it is UTF-8." if mixed else "It may be Windows-1252 or Latin-1."
        )
        byte = f"byte 0x{raw[error.start]:02x} at position {error.start:,}"
        raise TunerError(
            f"{name}: line {line} is not UTF-8 text ({byte}). {what} Save the whole file as UTF-8."
        ) from None
    if not text.strip():
        raise TunerError(f"{name} is empty: it has nothing but whitespace. Give a file with at least 4 rows.")
    if control := _CONTROL.search(text):
        raise TunerError(_binary(name, text.count("\n", 0, control.start()), ord(control[0])))
    return text


def _binary(name: str, breaks: int, code: int) -> str:
    return (
        f"{name} is binary or damaged: line {breaks + 1} has the control character 0x{code:02x}. "
        "Save the rows as CSV (UTF-8), JSONL or Parquet."
    )


def parse(text: str, name: str, max_rows: int | None, suffix: str, first_line: int = 1) -> Table:
    """Text in the format that `suffix` and content suggest. Raises TunerError.

    `suffix` is "" for pasted text; the first line is numbered `first_line`.
    """
    content = text.lstrip()
    if suffix in (".csv", ".tsv") or (suffix == "" and not content.startswith(("{", "["))):
        return _csv(text, name, max_rows, "\t" if suffix == ".tsv" else None, first_line)
    # Many files named .json are JSON lines, and some named .jsonl are one list: is the first line a row by itself?
    if content.startswith("[") or not (suffix in (".jsonl", ".ndjson") or _is_object(content.partition("\n")[0])):
        return _json(text, name, max_rows)
    if content.count("\n") == 0 and suffix not in (".jsonl", ".ndjson"):
        return _json(text, name, max_rows)
    return _jsonl(text, name, max_rows)


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _limited(rows: Iterable, name: str, max_rows: int | None, notes: list[str]) -> Iterator:
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


def _csv(text: str, name: str, max_rows: int | None, delimiter: str | None, first_line: int) -> Table:
    csv.field_size_limit(MAX_FILE_BYTES)
    delimiter = delimiter or _delimiter(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    mark = "tabs" if delimiter == "\t" else f"'{delimiter}'"
    numbered, notes, problems, rows, lines = _records(reader, name, first_line), [], Problems(), [], []
    _, header = next(numbered, (0, []))
    columns = [cell.strip() or f"column {i}" for i, cell in enumerate(header, 1)]
    check_columns(columns, name)
    named = ", ".join(columns)[:80]
    for number, (line, cells) in enumerate(_limited(numbered, name, max_rows, notes), 1):
        if len(cells) != len(columns):
            cell = "1 cell" if len(cells) == 1 else f"{len(cells)} cells"
            is_short = len(cells) < len(columns)
            remedy = "Add the missing cells." if is_short else f"Put quotes around text that contains {mark}."
            what = f"{cell} where the header names {len(columns)} ({named})"
            problems.add((number, line, name), what, remedy)
        check_cells(number, columns, name)
        rows.append(dict(zip(columns, cells, strict=False)))
        lines.append(line)
    problems.check()
    return make(name, columns, rows, lines=lines, notes=tuple(notes))


def _records(reader, name: str, first_line: int) -> Iterator[tuple[int, list[str]]]:
    """Each record that is not blank, with the number of its first line."""
    line = first_line
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield line, cells
            line = reader.line_num + first_line
    except csv.Error as error:
        why = "a quote is opened and never closed" if "end of data" in str(error) else f"quotes do not match ({error})"
        raise TunerError(
            f"{name}: in the row that starts on line {line}, {why}. Close it, and write a quote inside quotes twice."
        ) from None


def _delimiter(text: str) -> str:
    """Comma, semicolon, tab or bar: the one that splits the header, and most of the first rows into as many cells."""
    best = (0.0, 0, ",")
    for mark in ",;\t|":
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark)
        sample = list(itertools.islice(filter(None, reader), 50))
        width = len(sample[0])
        if width > 1:
            best = max(best, (sum(len(row) == width for row in sample) / len(sample), width, mark))
    return best[2]


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


_ROW = 'Write each row as an object: {"column": "text", ...}.'


def _unreadable(error: Exception) -> str:
    """What Python's JSON reader can't read, though it may be valid JSON."""
    if isinstance(error, RecursionError):
        return "lists or objects that are nested too deeply"
    return "a whole number of more than 4,300 digits"


def _brackets(text: str) -> int:
    return text.count("[") + text.count("{")


def _check_brackets(text: str, name: str) -> None:
    # An empty list is 2 characters of JSON, and 56 bytes of memory.
    if _brackets(text) > MAX_CELLS and _brackets(_TEXT.sub("", text)) > MAX_CELLS:  # texts may be programs
        raise TunerError(f"{name} has more than {MAX_CELLS:,} lists and objects. Give a sample of its rows.")


def _json(text: str, name: str, max_rows: int | None) -> Table:
    _check_brackets(text, name)
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise TunerError(
            f"{name} is not valid JSON: line {error.lineno}, column {error.colno}: {error.msg}. Fix it there."
        ) from None
    except (ValueError, RecursionError) as error:
        raise TunerError(f"{name} has {_unreadable(error)}. Give a list of plain rows.") from None
    splits = None
    if isinstance(value, dict):
        lists = {key: rows for key, rows in value.items() if isinstance(rows, list)}
        if lists and all(key in SPLITS for key in value) and len(lists) == len(value):
            splits = [key for key, rows in lists.items() for _ in rows]
            value = [row for rows in lists.values() for row in rows]
        elif len(lists) == 1 and (key := next(iter(lists))) in ("data", "rows", "examples"):
            value = lists[key]
        elif len(lists) == len(value) and len({len(rows) for rows in lists.values()}) == 1:
            value = [dict(zip(lists, cells, strict=True)) for cells in zip(*lists.values(), strict=True)]
        else:
            value = [value]
    if not isinstance(value, list):
        raise TunerError(f"{name} has only {_kind(value)}. Give a list of rows: [{{...}}, {{...}}].")
    notes, problems = [], Problems()
    rows = list(_limited(value, name, max_rows, notes))
    table = Table(name, [], rows, splits and splits[: len(rows)], joined=splits is not None, notes=tuple(notes))
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            problems.add(table.place(index), f"{_kind(row)} where a row belongs", _ROW)
    problems.check()
    return make(name, keys(rows), rows, splits=table.splits, joined=table.joined, notes=table.notes)


def _jsonl(text: str, name: str, max_rows: int | None) -> Table:
    _check_brackets(text, name)
    # Not str.splitlines: it also cuts at U+2028 and the like, which may be inside a JSON string.
    numbered = ((line, content) for line, content in enumerate(text.split("\n"), 1) if content.strip())
    notes, problems, rows, lines = [], Problems(), [], []
    for number, (line, content) in enumerate(_limited(numbered, name, max_rows, notes), 1):
        try:
            row = json.loads(content)
        except (ValueError, RecursionError) as error:
            is_broken_json = isinstance(error, json.JSONDecodeError)
            why = f"at column {error.colno}: {error.msg}" if is_broken_json else f"({_unreadable(error)})"
            problems.add((number, None, name), f"broken JSON in line {line} {why}", "Fix or drop that line.")
            continue
        if not isinstance(row, dict):
            problems.add((number, line, name), f"{_kind(row)} where a row belongs", _ROW)
        rows.append(row)
        lines.append(line)
    problems.check()
    return make(name, keys(rows), rows, lines=lines, notes=tuple(notes))


def _kind(value) -> str:
    names = {list: "list", str: "text", bool: "truth value", int: "number", float: "number"}
    return f"a {names.get(type(value), 'null')}"


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
