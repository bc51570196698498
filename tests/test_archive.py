"""A zip of which any range can be sent: the bytes are those of the whole, and a changed file breaks it off."""

import io
import os
import random
import subprocess
import zipfile

import pytest

from tuner.errors import TunerError
from tuner.hub import archive


@pytest.fixture
def files(tmp_path):
    (tmp_path / "weights").write_bytes(random.Random(1).randbytes(3 * 2**20 + 17))
    (tmp_path / "nothing").write_bytes(b"")
    return {
        "a/ä model.safetensors": tmp_path / "weights",
        "a/empty": tmp_path / "nothing",
        "a/README.md": b"# it",
        "a/none.txt": b"",
    }


def test_any_range_is_a_piece_of_one_zip(files, tmp_path):
    laid = archive.lay_out(files)
    whole = b"".join(laid.read())
    assert len(whole) == laid.size
    (tmp_path / "it.zip").write_bytes(whole)
    assert subprocess.run(["unzip", "-tq", tmp_path / "it.zip"], capture_output=True).returncode == 0
    with zipfile.ZipFile(io.BytesIO(whole)) as opened:
        assert opened.testzip() is None
        held = {name: opened.read(name) for name in opened.namelist()}
    assert held == {name: c if isinstance(c, bytes) else c.read_bytes() for name, c in files.items()}
    draw = random.Random(2)
    cuts = [0, *laid.ends, laid.size - 1, *(draw.randrange(laid.size) for _ in range(60))]
    for start, end in zip(cuts, draw.sample(cuts, len(cuts)), strict=True):
        assert b"".join(laid.read(start, end)) == whole[start:end]
    assert b"".join(laid.read(laid.size - 3, laid.size + 9)) == whole[-3:]


def test_the_same_files_give_the_same_bytes_and_tag_and_others_give_others(files, tmp_path):
    first, again = archive.lay_out(files), archive.lay_out(dict(reversed(files.items())))
    assert first.tag == again.tag
    assert b"".join(first.read()) == b"".join(again.read())
    changed = tmp_path / "changed"
    changed.write_bytes(files["a/ä model.safetensors"].read_bytes()[:-1] + b"!")
    for other in ({"a/README.md": b"# It"}, {"a/ä model.safetensors": changed}, {"b": b""}):
        assert archive.lay_out(files | other).tag != first.tag


@pytest.mark.parametrize("how", ["written to", "cut", "replaced", "gone"])
def test_a_file_that_changes_breaks_the_download_off(how, files):
    laid, path = archive.lay_out(files), files["a/ä model.safetensors"]
    begun = laid.read()
    next(begun)
    if how == "written to":
        path.write_bytes(b"?" * path.stat().st_size)
        os.utime(path, (1, 1))
    elif how == "cut":
        os.truncate(path, 2**20)
    else:
        content = path.read_bytes()
        path.unlink()
        if how == "replaced":
            path.with_name("other").write_bytes(content)
            path.with_name("other").rename(path)
    with pytest.raises(TunerError, match="was changed while it was sent"):
        list(laid.read())


def test_memory_does_not_grow_with_a_file(tmp_path):
    import tracemalloc

    path = tmp_path / "huge"
    with open(path, "wb") as file:
        file.truncate(200 * 2**20)
    tracemalloc.start()
    laid = archive.lay_out({"huge": path, "small": b"x"})
    for _ in laid.read(100 * 2**20):
        pass
    assert tracemalloc.get_traced_memory()[1] < 12 * archive.CHUNK
    tracemalloc.stop()
