"""Where rows come from: a shipped example, a file, pasted text or a Hub dataset. Knows nothing about their contents.

A shared page must not read this machine's files: `read` follows paths only in the terminal and from Python.
"""

import logging
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tuner import hub_errors, names, recipe
from tuner.data import parquet, parse
from tuner.data.parse import HELDOUT_SPLITS, SUFFIXES, Table
from tuner.data.problems import quoted
from tuner.errors import TunerError
from tuner.words import BROKEN, is_broken

if TYPE_CHECKING:
    from huggingface_hub import DatasetCardData, DatasetInfo

__all__ = ["Table", "is_hub_name", "pick_splits", "quoted", "read", "read_file", "read_hub", "read_pasted"]

log = logging.getLogger(__name__)
EXAMPLE = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
PATIENCE = 10  # seconds
READERS = {"csv", "json", "parquet", "arrow", "text"}  # the modules of `datasets` that may read a dataset's files
CARDS = ("README.md", ".huggingface.yaml")  # where a dataset's author says which files make up a configuration
_UNREADABLE = "The dataset '{name}' has no CSV, JSON or Parquet files. Choose another."

_FOREIGN = {
    b"PK\x03\x04": "an Excel or zip file",
    b"\xd0\xcf\x11\xe0": "an old Excel or Word file",
    b"\x1f\x8b": "a gzip file",
    b"%PDF": "a PDF",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"SQLite": "a database",
}


def read(data: recipe.Data, base: Path | None = None, *, local: bool, token: str | None = None) -> Table:
    """The rows that `data.source` names: a shipped example, a Hub dataset and, if `local`, a file. Raises TunerError.

    A file is looked for in `base` (the recipe's folder), in the working directory and among the examples. Without
    `local`, as on a shared page, only shipped examples and names on the Hub are accepted, and this machine's own Hub
    token is not used: `token` is the visitor's.
    """
    source, file = data.source, None
    if local:
        folders = [base, Path.cwd(), recipe.EXAMPLES]
        paths = [folder / os.path.expanduser(source) for folder in folders if folder]
        file = next((path for path in paths if os.path.isfile(path)), None)
    elif EXAMPLE.fullmatch(source) and os.path.isfile(recipe.EXAMPLES / source):
        file = recipe.EXAMPLES / source
    if file:
        return read_file(file, source if file.parent == recipe.EXAMPLES else None, data.max_rows)
    if is_hub_name(source) and not (local and os.path.exists(source)):
        return read_hub(data, token or (None if local else False))
    shipped = ", ".join(sorted(path.name for path in recipe.EXAMPLES.glob("*") if path.suffix in SUFFIXES))
    if local:
        raise TunerError(
            f"There is no file '{source}' in the recipe's folder or in {Path.cwd()}. Check the path, or give a Hub "
            f"dataset (owner/name) or a shipped example: {shipped}."
        )
    raise TunerError(
        f"'{names.shown(source)}' can't be read here. Upload a file, or give a Hub dataset (owner/name) or a "
        f"shipped example: {shipped}."
    )


def read_file(path: str | Path, name: str | None = None, max_rows: int | None = None) -> Table:
    """The rows of a CSV, TSV, JSON, JSONL or Parquet file, recognized by its content first and by its name second.

    With `max_rows` a file of too many rows is read up to MAX_ROWS instead of being refused. Raises TunerError with all
    broken rows.
    """
    path = Path(path)
    name = name or path.name
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise TunerError(f"{name} is not a type of file that can be read. Give one of: {', '.join(SUFFIXES)}.")
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            start = file.read(16)
            if not start:
                raise TunerError(f"{name} is empty (0 bytes). Give a file with at least 4 rows.")
            if size > parse.MAX_FILE_BYTES:
                raise TunerError(
                    f"{name} has {size >> 20} MB, and the limit is {parse.MAX_FILE_BYTES >> 20} MB. "
                    "Give a sample of its rows, or put it on the Hub as a dataset and set data.max_rows."
                )
            if start.startswith(b"PAR1"):
                table = parquet.read_parquet(path, name, max_rows)
                _name_classes(table.rows, _parquet_features(path), name)
                return table
            foreign = next((kind for magic, kind in _FOREIGN.items() if start.startswith(magic)), None)
            if foreign or suffix == ".parquet":
                kind = foreign or "not a Parquet file, in spite of its name"
                raise TunerError(f"{name} is {kind}. Save the rows as CSV (UTF-8), JSONL or Parquet.")
            text = parse.decode(start + file.read(), name)
    except OSError as error:
        raise TunerError(
            f"{name} can't be read: {error.strerror}. Check that it exists and that you may read it."
        ) from None
    return parse.parse(text, name, max_rows, suffix)


def read_pasted(text: str, max_rows: int | None = None) -> Table:
    """Rows pasted as CSV, TSV, JSON or JSONL, recognized by their content. Raises TunerError."""
    name = "the pasted text"
    if not text.strip():
        raise TunerError("Nothing was pasted. Paste a header and at least 4 rows, or JSON lines.")
    if len(text) > parse.MAX_FILE_BYTES:
        raise TunerError(f"The pasted text is longer than {parse.MAX_FILE_BYTES >> 20} MB. Paste a sample of it.")
    if is_broken(text):
        line = next(number for number, line in enumerate(text.split("\n"), 1) if is_broken(line))
        raise TunerError(f"Line {line} of the pasted text has {BROKEN}. Copy that line again.")
    text = text.strip("\r\n\ufeff")
    first = text.partition("\n")[0].rstrip("\r").split("\t")
    # Two columns are pasted from a spreadsheet without their header as often as with it, and headers are single words.
    if len(first) == 2 and any(" " in cell.strip() for cell in first) and not text.lstrip().startswith(("{", "[")):
        table = parse.parse("prompt\tcompletion\n" + text, name, max_rows, ".tsv", first_line=0)
        note = "There is no header, so the first column is read as the prompt and the second as the completion."
        return Table(name, table.columns, table.rows, lines=table.lines, notes=(*table.notes, note))
    return parse.parse(text, name, max_rows, "")


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


def is_hub_name(source: str) -> bool:
    """Whether a source is a dataset's name on the Hub, and not a file's."""
    return names.fits("dataset", source) and not source.lower().endswith(SUFFIXES)


def read_hub(data: recipe.Data, token: str | bool | None = None) -> Table:
    """The train and held-out split of a Hub dataset, streamed, at most MAX_ROWS rows of each.

    `token` is the visitor's own, False for a visitor without one, and None for this machine's own login.
    Raises TunerError.
    """
    import datasets
    from huggingface_hub import HfApi

    name = data.source
    names.check(dataset=name, config=data.config, split=data.split, heldout_split=data.heldout_split)
    hub_errors.limit_waiting()
    place = f"hf://datasets/{name}"  # a plain name would also be that of a folder
    try:
        # This fails at once and says why; load_dataset would try for 20 s if there is no network.
        info = HfApi(token=token).dataset_info(name, timeout=PATIENCE)
        _check_cards(info, token)
        options = {"revision": info.sha, "token": token}
        try:
            builder = datasets.load_dataset_builder(place, data.config, **options)
        except ValueError as error:
            if "onfig" not in str(error):
                raise
            known = ", ".join(datasets.get_dataset_config_names(place, **options)[:20])
            raise TunerError(
                f"data.config: the configurations of '{name}' are {known}. Set it to one of these."
            ) from error
        if type(builder).__module__.rpartition(".")[2] not in READERS:
            raise TunerError(_UNREADABLE.format(name=name))
        return _stream(builder.as_streaming_dataset(), data)
    except TunerError:
        raise
    except Exception as error:
        page = f"https://huggingface.co/datasets/{name}"
        problem = _explain(error, name) or hub_errors.explain(error, f"the dataset '{name}'", page=page, token=token)
        raise problem or error from error


def _check_cards(info: "DatasetInfo", token: str | bool | None) -> None:
    """Raise TunerError if the dataset's author names files outside it: on this machine or on other servers.

    `datasets` would look for them before it refuses them.
    """
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import HfApi

    files = {file.rfilename for file in info.siblings or []}
    cards = [card for card in CARDS if card in files]
    paths = {
        card: HfApi(token=token).hf_hub_download(info.id, card, repo_type="dataset", revision=info.sha)
        for card in cards
    }
    try:
        configs = MetadataConfigs.from_dataset_card_data(_read_cards(paths))
        outside = any(_is_outside(path) for config in configs.values() for path in _paths(config))
    except Exception as error:  # whatever a library trips over in what somebody wrote
        log.info("the cards of %s", info.id, exc_info=error)
        raise TunerError(f"The {' or '.join(cards)} of the dataset '{info.id}' is damaged. Choose another.") from None
    if outside:
        raise TunerError(
            f"The dataset '{info.id}' takes its rows from elsewhere than its own files (data_files or data_dir in its "
            f"{' or '.join(cards)}). Choose another dataset."
        )


def _read_cards(paths: dict[str, str]) -> "DatasetCardData":
    """What the cards say, read as `datasets` reads them: another reader may see other settings in the same bytes."""
    import yaml
    from huggingface_hub import DatasetCard, DatasetCardData

    readme, settings = map(paths.get, CARDS)
    data = DatasetCard.load(readme).data if readme else DatasetCardData()
    if settings and (more := yaml.safe_load(Path(settings).read_text(encoding="utf-8"))):
        data = DatasetCardData(**{**data.to_dict(), **more})
    return data


def _paths(config: dict) -> Iterator[str]:
    """The paths and patterns of a configuration in a dataset's card."""
    for value in (config.get("data_dir"), config.get("data_files")):
        for item in value if isinstance(value, list) else [value]:
            path = item.get("path") if isinstance(item, dict) else item
            yield from (str(part) for part in (path if isinstance(path, list) else [path]) if part is not None)


def _is_outside(path: str) -> bool:
    return path.startswith(("/", "~", "\\")) or ":" in path or ".." in path.split("/")


def _stream(parts, data: recipe.Data) -> Table:
    rows, splits, notes, size = [], [], [], 0
    for split in filter(None, pick_splits(parts, data, data.source)):
        first = len(rows)
        features = getattr(parts[split], "features", None) or {}
        # Ten times as many as requested, so that the seed can choose; all of them if rows have classes, because
        # those are often sorted by class.
        few = data.max_rows and not any(_class_label(kind) for kind in features.values())
        limit = min(parse.MAX_ROWS, 10 * data.max_rows) if few else parse.MAX_ROWS
        media = [column for column, kind in features.items() if _has_media(kind)]
        # remove_columns alone would decode each picture first.
        part = parts[split].decode(False).remove_columns(media) if media else parts[split]
        for count, row in enumerate(part):
            size += len(str(row))
            if size > 4 * parse.MAX_FILE_BYTES:
                raise TunerError(f"The rows of '{data.source}' fill more than {size >> 20} MB. Lower data.max_rows.")
            if count == limit:
                if data.max_rows is None:
                    raise TunerError(parse.too_many(f"The split '{split}' of {data.source}", "more than"))
                notes.append(f"Only the first {limit:,} rows of the split '{split}' were read.")
                break
            rows.append(row)
            splits.append(split)
        _name_classes(rows[first:], features, data.source)
    return parse.make(data.source, parse.keys(rows), rows, splits=splits, joined=True, notes=tuple(notes))


def _parquet_features(path: Path) -> dict:
    """What `datasets` noted about the columns in a Parquet file that it wrote; nothing in other files."""
    import pyarrow.parquet

    schema = pyarrow.parquet.read_schema(path)
    if b"ClassLabel" not in (schema.metadata or {}).get(b"huggingface", b""):
        return {}
    import datasets

    try:
        return datasets.Features.from_arrow_schema(schema)
    except Exception:  # somebody may have written anything there by hand, and the rows can still be read
        return {}


def _name_classes(rows: list[dict], features: dict, name: str) -> None:
    """Replace the numbers of classes by their names. Raises TunerError for a class without a name."""
    for column, kind in features.items():
        if not (label := _class_label(kind)):
            continue
        for row in rows:
            try:
                row[column] = _named(row.get(column), label)
            except ValueError:
                raise TunerError(
                    f'{name} has a class in "{column}" without a name; there are names for 0 to '
                    f"{label.num_classes - 1}. Name all classes, or write them as words."
                ) from None


def _has_media(kind) -> bool:
    """Whether there are pictures, sounds and the like anywhere in a column, which would be fetched to be decoded."""
    if isinstance(kind := _item(kind), dict):
        return any(map(_has_media, kind.values()))
    return hasattr(kind, "decode_example") and type(kind).__name__ != "Json"


def _class_label(kind):
    """The ClassLabel of a column, or of the lists in it; None if it has none."""
    item = _item(kind)
    return item if hasattr(item, "int2str") else None


def _item(kind):
    """The kind of a column, or of what is in its lists."""
    while hasattr(kind, "feature") or isinstance(kind, list):
        kind = kind[0] if isinstance(kind, list) else kind.feature
    return kind


def _named(value, label):
    if isinstance(value, list):
        return [_named(item, label) for item in value]
    if not isinstance(value, int):
        return value
    return None if value == -1 else label.int2str(value)  # -1 is how datasets writes that there is no label


def _explain(error: Exception, name: str) -> TunerError | None:
    """In plain words, what `datasets` reports as a RuntimeError or by its own classes; None for other errors."""
    if "scripts are no longer supported" in str(error):
        return TunerError(f"The dataset '{name}' needs custom code, which Tuner never runs. Choose another.")
    if type(error).__name__ in ("DataFilesNotFoundError", "EmptyDatasetError"):
        return TunerError(_UNREADABLE.format(name=name))
    return None
