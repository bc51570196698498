"""A zip whose bytes are known before they are sent, so that any range of them can be, from files as they lie.

Nothing is compressed (weights would not shrink), and nothing is copied to the disk: Python's zipfile writes headers
and checksums once, and of a file's content only its place is kept. The same files give the same bytes, so a download
that broke off resumes even after the app was started again.

    archive = lay_out({"adapter/config.json": b"{}", "adapter/model.safetensors": Path("...")})
    for chunk in archive.read(start=1000): ...
"""

import hashlib
import os
import zipfile
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tuner.errors import TunerError

CHUNK = 2**20  # bytes held in memory at a time
EPOCH = (1980, 1, 1, 0, 0, 0)  # of every file, the earliest that a zip can hold


class Extent(NamedTuple):
    """Bytes of the archive: these, or so many of a file."""

    content: bytes | Path
    size: int


class Stamp(NamedTuple):
    """What differs once a file was changed or replaced."""

    inode: int
    size: int
    modified: int  # in ns


@dataclass(frozen=True)
class Archive:
    """A zip that is laid out: its extents in order, where each ends, and its files as they were."""

    extents: tuple[Extent, ...]
    ends: tuple[int, ...]
    stamps: Mapping[Path, Stamp]
    tag: str  # differs with the bytes

    @property
    def size(self) -> int:
        """Bytes in all."""
        return self.ends[-1]

    def read(self, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The bytes from `start` to before `end`, a CHUNK at most at a time. Raises TunerError if a file changed."""
        place, end = start, self.size if end is None else min(end, self.size)
        while place < end:
            index = bisect_right(self.ends, place)
            extent, begin = self.extents[index], self.ends[index] - self.extents[index].size
            for chunk in self._of(extent, place - begin, min(end, self.ends[index]) - begin):
                yield chunk
                place += len(chunk)

    def _of(self, extent: Extent, start: int, end: int) -> Iterator[bytes]:
        if isinstance(extent.content, bytes):
            yield extent.content[start:end]
            return
        try:
            file = open(extent.content, "rb")  # noqa: SIM115  which is closed below
        except FileNotFoundError:
            raise _changed(extent.content) from None
        with file:
            if _stamp(os.fstat(file.fileno())) != self.stamps[extent.content]:
                raise _changed(extent.content)
            file.seek(start)
            while start < end:
                chunk = file.read(min(CHUNK, end - start))
                if not chunk:
                    raise _changed(extent.content)
                start += len(chunk)
                yield chunk


class _Layout:
    """A file for zipfile to write to: it keeps what is written, but of a file's content only its size."""

    def __init__(self):
        self.extents: list[Extent] = []
        self.digest = hashlib.sha256()
        self.source: Path | None = None  # the file whose content is being written
        self._place = 0

    def write(self, data: bytes) -> int:
        data = bytes(data)
        self._place += len(data)
        if self.source is None:
            self.digest.update(data)  # checksums of contents are among the headers
            self.extents.append(Extent(data, len(data)))
        elif self.extents and self.extents[-1].content is self.source:
            self.extents[-1] = Extent(self.source, self.extents[-1].size + len(data))
        else:
            self.extents.append(Extent(self.source, len(data)))
        return len(data)

    def tell(self) -> int:
        return self._place

    def flush(self) -> None:
        """Nothing is held back."""


def lay_out(files: Mapping[str, Path | bytes]) -> Archive:
    """The archive of these files, by their paths in it; each file is read once, for its checksum.

    Raises TunerError if a file changes meanwhile.
    """
    layout, stamps = _Layout(), {}
    with zipfile.ZipFile(layout, "w", zipfile.ZIP_STORED) as written:  # which can't be sought in, so sizes come last
        for name, content in sorted(files.items()):
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.external_attr = 0o644 << 16
            if isinstance(content, bytes):
                entry.file_size = len(content)
                with written.open(entry, "w") as target:
                    target.write(content)
            else:
                stamps[content] = _copy(written, entry, content, layout)
    ends, place = [], 0
    for extent in layout.extents:
        place += extent.size
        ends.append(place)
    return Archive(tuple(layout.extents), tuple(ends), stamps, layout.digest.hexdigest()[:32])


def _copy(written: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path, layout: _Layout) -> Stamp:
    with open(path, "rb") as file:
        stamp = _stamp(os.fstat(file.fileno()))
        entry.file_size = stamp.size
        with written.open(entry, "w", force_zip64=stamp.size >= 2**31) as target:
            layout.source, left = path, stamp.size
            while chunk := file.read(min(CHUNK, left)):
                target.write(chunk)
                left -= len(chunk)
            layout.source = None
        if left or _stamp(os.fstat(file.fileno())) != stamp:
            raise _changed(path)
    return stamp


def _stamp(status: os.stat_result) -> Stamp:
    return Stamp(status.st_ino, status.st_size, status.st_mtime_ns)


def _changed(path: Path) -> TunerError:
    return TunerError(f"{path.name} was changed while it was sent, so the download broke off. Start it again.")
