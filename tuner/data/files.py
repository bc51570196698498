"""Files and pasted text as Tables: recognized by their first bytes, then by their names; several as one Table."""

import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path

from tuner import recipe
from tuner.data import classes, encodings, parquet, parse, table, workbook
from tuner.data.problems import quoted
from tuner.data.table import HELDOUT_SPLITS, SPLITS, Table
from tuner.errors import TunerError
from tuner.words import BROKEN, count, is_broken

PASTED = "the pasted text"
DEFAULTS = recipe.Data()

_FOREIGN = {
    b"PK\x03\x04": "an Excel or zip file",
    b"\xd0\xcf\x11\xe0": "an old Excel or Word file",
    b"\x1f\x8b": "a gzip file",
    b"%PDF": "a PDF",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"SQLite": "a database",
}
_BY_NAME = {b"PK\x03\x04": parse.WORKBOOKS, b"\x1f\x8b": (parse.GZIP,)}  # what is read if its name says so
_REMEDY = "Save the rows as CSV (UTF-8), JSONL or Parquet."


def read_files(paths: Sequence[str | Path], names: Sequence[str | None], data: recipe.Data = DEFAULTS) -> Table:
    """The rows of one file or of several, which must have the same columns. Raises TunerError.

    A file that is named like a split (train, validation, test) is that split; beside held-out files, others are
    trained on.
    """
    tables = [read_file(path, name, data) for path, name in zip(paths, names, strict=True)]
    if len(tables) == 1:
        return tables[0]
    sizes = sum(os.path.getsize(path) for path in paths)
    title = f"{tables[0].name} and {count(len(tables) - 1, 'more file')}"
    if sizes > table.MAX_FILE_BYTES:
        raise TunerError(
            f"The {len(tables)} files have {sizes >> 20} MB together, and the limit is {table.MAX_FILE_BYTES >> 20} "
            "MB. Give fewer, or samples of their rows."
        )
    first = tables[0]
    for other in tables[1:]:
        if set(other.columns) != set(first.columns):
            raise TunerError(
                f"{first.name} has the columns {quoted(first.columns)}, and {other.name} has {quoted(other.columns)}. "
                "Give files with the same columns, or run each by itself."
            )
    return _joined(tables, title, data)


def _joined(tables: list[Table], title: str, data: recipe.Data) -> Table:
    rows = list(chain.from_iterable(part.rows for part in tables))
    if len(rows) > table.MAX_ROWS and data.max_rows is None:
        raise TunerError(table.too_many(title, f"{len(rows):,} rows, more than"))
    table.check_cells(len(rows), tables[0].columns, title)
    named = [split_of(part.name) for part in tables]
    notes, splits = list(chain.from_iterable(part.notes for part in tables)), None
    if any(part.splits for part in tables):
        splits = list(chain.from_iterable(part.splits or ["train"] * len(part.rows) for part in tables))
    elif any(name in HELDOUT_SPLITS for name in named):
        names = [name or "train" for name in named]
        splits = list(chain.from_iterable([name] * len(part.rows) for name, part in zip(names, tables, strict=True)))
        listed = ", ".join(f"{part.name} is {name}" for name, part in zip(names, tables, strict=True))
        notes.append(f"The splits go by the files' names: {listed}.")
    return Table(title, tables[0].columns, rows, splits, notes=tuple(notes), parts=tuple(tables))


def split_of(name: str) -> str | None:
    """The split that a file's name ends with: "dialogsum.train.jsonl" is train; None if it names none."""
    stem = Path(name).name.lower().removesuffix(parse.GZIP)
    last = stem.rpartition(".")[0].replace("-", ".").replace("_", ".").rpartition(".")[2]
    return last if last in SPLITS else None


def read_file(path: str | Path, name: str | None = None, data: recipe.Data = DEFAULTS) -> Table:
    """The rows of a file, recognized by its content first and by its name second.

    With `data.max_rows` a file of too many rows is read up to MAX_ROWS instead of being refused. Raises TunerError
    with all broken rows.
    """
    path = Path(path)
    name = name or path.name
    suffix = path.suffix.lower()
    if suffix == parse.GZIP:
        suffix = path.with_suffix("").suffix.lower() + suffix
    if suffix not in parse.SUFFIXES:
        raise TunerError(f"{name} is not a type of file that can be read. Give one of: {parse.NAMED}.")
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            start = file.read(16)
            if not start:
                raise TunerError(f"{name} is empty (0 bytes). Give a file with at least 4 rows.")
            if size > table.MAX_FILE_BYTES:
                raise TunerError(
                    f"{name} has {size >> 20} MB, and the limit is {table.MAX_FILE_BYTES >> 20} MB. "
                    "Give a sample of its rows, or put it on the Hub as a dataset and set data.max_rows."
                )
            if start.startswith(b"PAR1"):
                return _read_parquet(path, name, data)
            _check_kind(start, suffix, name)
            if suffix in parse.WORKBOOKS:
                return workbook.read_workbook(path, name, data)
            file.seek(0)
            raw = encodings.unpack(file, name) if suffix.endswith(parse.GZIP) else file.read()
    except OSError as error:
        raise TunerError(
            f"{name} can't be read: {error.strerror}. Check that it exists and that you may read it."
        ) from None
    text, notes = encodings.decode(raw, name, data.encoding)
    read = parse.parse(text, name, data, suffix.removesuffix(parse.GZIP))
    return replace(read, notes=(*notes, *read.notes)) if notes else read


def _check_kind(start: bytes, suffix: str, name: str) -> None:
    """Raise TunerError if a file begins like one of another kind than its name says."""
    magic = next((magic for magic in _FOREIGN if start.startswith(magic)), None)
    own = _BY_NAME.get(magic, ())
    if magic and not suffix.endswith(own or ("\0",)):
        named = f" If it is what it seems, name it {' or '.join(own)}." if own else ""
        raise TunerError(f"{name} is {_FOREIGN[magic]}. {_REMEDY}{named}")
    wanted = {".parquet": "a Parquet file", **dict.fromkeys(parse.WORKBOOKS, "a spreadsheet")}.get(suffix)
    wanted = "a gzip file" if suffix.endswith(parse.GZIP) else wanted
    if wanted and not magic:
        raise TunerError(f"{name} is not {wanted}, in spite of its name. {_REMEDY}")


def _read_parquet(path: Path, name: str, data: recipe.Data) -> Table:
    read = parquet.read_parquet(path, name, data.max_rows)
    classes.name_classes(read.rows, classes.parquet_features(path), name)
    return read


def read_pasted(text: str, data: recipe.Data = DEFAULTS) -> Table:
    """Rows pasted as CSV, TSV, JSON or JSONL, recognized by their content. Raises TunerError."""
    if not text.strip():
        raise TunerError("Nothing was pasted. Paste a header and at least 4 rows, or JSON lines.")
    if len(text) > table.MAX_FILE_BYTES:
        raise TunerError(f"The pasted text is longer than {table.MAX_FILE_BYTES >> 20} MB. Paste a sample of it.")
    if is_broken(text):
        line = next(number for number, line in enumerate(text.split("\n"), 1) if is_broken(line))
        raise TunerError(f"Line {line} of the pasted text has {BROKEN}. Copy that line again.")
    text = text.strip("\r\n\ufeff")
    first = text.partition("\n")[0].rstrip("\r").split("\t")
    # Two columns are pasted from a spreadsheet without their header as often as with it, and headers are single words.
    if len(first) == 2 and any(" " in cell.strip() for cell in first) and not text.lstrip().startswith(("{", "[")):
        read = parse.parse("prompt\tcompletion\n" + text, PASTED, data, ".tsv", first_line=0)
        note = "There is no header, so the first column is read as the prompt and the second as the completion."
        return replace(read, notes=(*read.notes, note))
    return parse.parse(text, PASTED, data, "")
