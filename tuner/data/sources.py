"""Where rows come from: a shipped example, files, pasted text or a Hub dataset. Knows nothing about their contents.

A shared page must not read this machine's files: `read` follows paths only in the terminal and from Python.
"""

import os
import re
from dataclasses import replace
from pathlib import Path

from tuner import names, recipe
from tuner.data.files import read_file, read_files, read_pasted
from tuner.data.hub_rows import read_hub
from tuner.data.parse import SUFFIXES
from tuner.data.table import Table, pick_splits
from tuner.errors import TunerError

__all__ = [
    "Table",
    "is_hub_name",
    "pick_splits",
    "read",
    "read_file",
    "read_files",
    "read_hub",
    "read_pasted",
]

EXAMPLE = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
SHIPPED = (".jsonl", ".csv")  # suffixes of the included rows


def read(data: recipe.Data, base: Path | None = None, *, local: bool, token: str | None = None) -> Table:
    """The rows that `data.source` names: a shipped example, a Hub dataset and, if `local`, files. Raises TunerError.

    A file is looked for in `base` (the recipe's folder), in the working directory and among the examples. Without
    `local`, as on a shared page, only shipped examples and names on the Hub are accepted, and this machine's own Hub
    token is not used: `token` is the visitor's.
    """
    files = [_find(source, base, local) for source in data.sources]
    if all(files):
        shipped = [file.parent == recipe.EXAMPLES for file in files]
        named = [source if known else None for source, known in zip(data.sources, shipped, strict=True)]
        rows = read_files(files, named, data)
        return replace(rows, origin="example") if all(shipped) else rows
    missing = next(source for source, file in zip(data.sources, files, strict=True) if not file)
    if is_hub_name(data.source) and not (local and os.path.exists(data.source)):
        return read_hub(data, token or (None if local else False))
    shipped = ", ".join(sorted(path.name for path in recipe.EXAMPLES.glob("*") if path.suffix in SHIPPED))
    if local:
        raise TunerError(
            f"There is no file '{missing}' in the recipe's folder or in {Path.cwd()}. Check the path, or give a Hub "
            f"dataset (owner/name) or a shipped example: {shipped}."
        )
    raise TunerError(
        f"'{names.shown(missing)}' can't be read here. Upload a file, or give a Hub dataset (owner/name) or a "
        f"shipped example: {shipped}."
    )


def _find(source: str, base: Path | None, local: bool) -> Path | None:
    """The file that a source names, if there is one."""
    if local:
        folders = [base, Path.cwd(), recipe.EXAMPLES]
        paths = [folder / os.path.expanduser(source) for folder in folders if folder]
        return next((path for path in paths if os.path.isfile(path)), None)
    is_shipped = EXAMPLE.fullmatch(source) and os.path.isfile(recipe.EXAMPLES / source)
    return recipe.EXAMPLES / source if is_shipped else None


def is_hub_name(source: str | list[str]) -> bool:
    """Whether a source is a dataset's name on the Hub, and not a file's."""
    return isinstance(source, str) and names.fits("dataset", source) and not source.lower().endswith(SUFFIXES)
