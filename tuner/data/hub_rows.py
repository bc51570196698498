"""Rows of a dataset on the Hub, streamed: only its own files, and nothing in it is executed or decoded."""

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tuner import hub_errors, names, recipe
from tuner.data import classes, table
from tuner.data.table import Table, pick_splits
from tuner.errors import TunerError

if TYPE_CHECKING:
    from huggingface_hub import DatasetCardData, DatasetInfo

log = logging.getLogger(__name__)
PATIENCE = 10  # seconds
READERS = {"csv", "json", "parquet", "arrow", "text"}  # the modules of `datasets` that may read a dataset's files
CARDS = ("README.md", ".huggingface.yaml")  # where a dataset's author says which files make up a configuration
_UNREADABLE = "The dataset '{name}' has no CSV, JSON or Parquet files. Choose another."


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
        return replace(_stream(builder.as_streaming_dataset(), data), origin="hub", revision=info.sha)
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
    rows, splits, notes, size, left_out = [], [], [], 0, {}
    for split in filter(None, pick_splits(parts, data, data.source)):
        first = len(rows)
        features = getattr(parts[split], "features", None) or {}
        # Ten times as many as requested, so that the seed can choose; all of them if rows have classes, because
        # those are often sorted by class.
        few = data.max_rows and not any(classes.class_label(kind) for kind in features.values())
        limit = min(table.MAX_ROWS, 10 * data.max_rows) if few else table.MAX_ROWS
        media = [column for column, kind in features.items() if classes.has_media(kind)]
        left_out |= dict.fromkeys(media)
        # remove_columns alone would decode each picture first.
        part = parts[split].decode(False).remove_columns(media) if media else parts[split]
        for count, row in enumerate(part):
            size += len(str(row))
            if size > 4 * table.MAX_FILE_BYTES:
                raise TunerError(f"The rows of '{data.source}' fill more than {size >> 20} MB. Lower data.max_rows.")
            if count == limit:
                if data.max_rows is None:
                    raise TunerError(table.too_many(f"The split '{split}' of {data.source}", "more than"))
                notes.append(f"Only the first {limit:,} rows of the split '{split}' were read.")
                break
            rows.append(row)
            splits.append(split)
        classes.name_classes(rows[first:], features, data.source)
    facts = {"joined": True, "notes": tuple(notes), "media": tuple(left_out)}
    return table.make(data.source, table.keys(rows), rows, splits=splits, **facts)


def _explain(error: Exception, name: str) -> TunerError | None:
    """In plain words, what `datasets` reports as a RuntimeError or by its own classes; None for other errors."""
    if "scripts are no longer supported" in str(error):
        return TunerError(f"The dataset '{name}' needs custom code, which Tuner never runs. Choose another.")
    if type(error).__name__ in ("DataFilesNotFoundError", "EmptyDatasetError"):
        return TunerError(_UNREADABLE.format(name=name))
    return None
