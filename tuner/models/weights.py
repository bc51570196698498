"""What a model's safetensors files hold, read from their headers alone, and whether it fits config.json."""

import json
import math
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tuner.errors import TunerError
from tuner.models.bounds import check_size

if TYPE_CHECKING:
    import torch

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
MAX_HEADER_BYTES = 16 * 2**20  # 100,000 tensors; safetensors itself would read 100 MB
MAX_SHARDS = 1000
SHARD = re.compile(r"[\w.-]{1,200}\.safetensors", re.ASCII)
BLOCK = re.compile(r"\w+\.\d+(?=\.)")  # such as layers.3


@contextmanager
def reading(folder: Path, name: str) -> Iterator[None]:
    """Raise TunerError in place of an error of a file that was removed while the model was read."""
    try:
        yield
    except OSError as error:
        if (folder / "config.json").is_file() and stored_sizes(folder, name):
            raise
        raise TunerError(
            f"'{name}' can't be loaded: its files were removed from this machine while they were read. Try again: "
            "what is on the Hub is downloaded again."
        ) from error


class Stored(NamedTuple):
    """The type and the shape of a stored tensor, as safetensors has them."""

    dtype: str
    shape: tuple[int, ...]


def stored_sizes(folder: Path, name: str) -> dict[str, int]:
    """The name and the number of values of each stored tensor. Raises TunerError if a file is damaged or missing."""
    return {key: math.prod(tensor.shape) for key, tensor in stored_tensors(folder, name).items()}


def stored_tensors(folder: Path, name: str) -> dict[str, Stored]:
    """Each stored tensor, from the headers. Raises TunerError if a file is damaged or missing."""
    tensors = {}
    for file in _files(folder, name):
        if not file.is_file():
            raise TunerError(
                f"'{name}' can't be loaded: {file.name} is missing. Download or copy it again, or choose another "
                "model."
            )
        tensors |= tensors_of(file, name)
    return tensors


def tensors_of(file: Path, name: str) -> dict[str, Stored]:
    """Each tensor of one safetensors file, from its header. Raises TunerError if it is damaged."""
    from safetensors import SafetensorError, safe_open

    tensors = {}
    try:
        with open(file, "rb") as stored:
            header = int.from_bytes(stored.read(8), "little")
        if header > MAX_HEADER_BYTES:
            raise _damaged(file, name)
        with safe_open(file, "np") as stored:
            for key in stored.keys():  # noqa: SIM118
                part = stored.get_slice(key)
                tensors[key] = Stored(part.get_dtype(), tuple(part.get_shape()))
    except (SafetensorError, OSError):
        raise _damaged(file, name) from None
    return tensors


def read_tensors(folder: Path, name: str, wanted: Collection[str]) -> dict[str, "torch.Tensor"]:
    """Those of the wanted tensors that the files hold; the files are known to be whole (`stored_sizes`)."""
    from safetensors import safe_open

    tensors = {}
    for file in _files(folder, name):
        with safe_open(file, "pt") as stored:
            there = set(stored.keys())
            tensors |= {key: stored.get_tensor(key) for key in wanted if key in there}
    return tensors


def not_finite_tensor(folder: Path, name: str) -> str | None:
    """The first stored tensor that holds NaN or infinity, if there is one; every file is read for it."""
    for key, stored in stored_tensors(folder, name).items():
        if stored.dtype in ("F16", "BF16", "F32", "F64"):
            (tensor,) = read_tensors(folder, name, [key]).values()
            if not tensor.isfinite().all():
                return key
    return None


def check_fit(described: dict[str, int], stored: dict[str, int], name: str) -> None:
    """Raise TunerError if the stored tensors clearly belong to another model than the one described.

    transformers would stop while loading, or put random numbers in place of what is missing. Prefixes may differ, and
    so may a few names, because transformers renames and joins tensors as it loads them.
    """
    shortened: dict[str, set[int]] = {}
    for key, size in stored.items():
        shortened.setdefault(key.partition(".")[2], set()).add(size)
    matched = 0
    for key, size in described.items():
        sizes = {stored[key]} if key in stored else shortened.get(key, set())
        if not sizes and key.partition(".")[2] in stored:
            sizes = {stored[key.partition(".")[2]]}
        matched += bool(sizes)
        if sizes and size not in sizes:
            raise unfit(name, f"{key} has {max(sizes):,} values in place of {size:,}")
    blocks, stored_blocks = (
        {match[0] for key in keys if (match := BLOCK.search(key))} for keys in (described, stored)
    )
    missing = sorted(blocks - stored_blocks)
    if missing and blocks & stored_blocks:
        raise unfit(name, f"there are none for {missing[0]}")
    if not matched and not blocks & stored_blocks:
        raise unfit(name, f"there are none for {next(iter(described))}")


def _files(folder: Path, name: str) -> list[Path]:
    """The files that transformers would read."""
    if (folder / WHOLE).is_file():
        return [folder / WHOLE]
    if not (folder / INDEX).is_file():
        return sorted(folder.glob("*.safetensors"))
    return [folder / file for file in sorted(set(_index(folder, name).values()))]


def _index(folder: Path, name: str) -> dict[str, str]:
    """Which tensor is in which file."""
    check_size(folder / INDEX, name)
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        files = set(index.values())
        if len(files) <= MAX_SHARDS and all(map(SHARD.fullmatch, files)):  # a name, never a path
            return index
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise _damaged(folder / INDEX, name)


def check_index(folder: Path, described: Iterable[str], stored: Collection[str], name: str) -> None:
    """Raise TunerError if the index names a tensor of the model that no file holds.

    transformers would put random numbers in its place.
    """
    if (folder / INDEX).is_file() and not (folder / WHOLE).is_file():
        index = _index(folder, name)
        if any(key in index and key not in stored for key in described):
            raise _damaged(folder / INDEX, name)


def _damaged(file: Path, name: str) -> TunerError:
    return TunerError(
        f"'{name}' can't be loaded: {file.name} is damaged or incomplete. Download or copy it again, or choose "
        "another model."
    )


def unfit(name: str, reason: str) -> TunerError:
    """The error of weights that are not those of the config.json beside them."""
    return TunerError(
        f"'{name}' can't be loaded: its weights do not fit its config.json ({reason}). Put the two of one model into "
        "the folder, or choose another model."
    )
