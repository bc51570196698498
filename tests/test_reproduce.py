"""A pushed run is trained once more: the same adapter comes out, or what differs is named."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import small_recipe
from test_verify import unpack

from tuner import recipe
from tuner.cli import main
from tuner.hub import contents
from tuner.planning import plan
from tuner.training.window import train

ROWS = [{"prompt": f"say {n}", "completion": f"{n} it is"} for n in range(24)]


def write(file: Path, rows: list[dict]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture(scope="module", autouse=True)
def small_model(small_base):
    """The shipped model in small, under its name: an export names no folder of this machine."""
    shutil.copy(recipe.EXAMPLES / "corporate.yaml", Path(small_base).parent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "EXAMPLES", Path(small_base).parent)
        yield


@pytest.fixture(scope="module")
def exported(small_model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("reproduced")
    rows = write(folder / "rows.jsonl", ROWS)
    settings = {"data__source": str(rows), "model__name": "tiny-office", "budget__steps": 3, "data__max_rows": None}
    run = plan.prepare(small_recipe(**settings), path=folder / "run")
    list(train(run))
    return unpack(contents.adapter(run, "ann/x", None), folder / "export")


def reproduce(export: Path, folder: Path, rows: list[dict], capsys, *options: str) -> tuple[int, str]:
    file = write(folder / "mine.jsonl", rows)
    shutil.rmtree(folder / "again", ignore_errors=True)
    try:
        status = main(["reproduce", str(export), "--data", str(file), "--out", str(folder / "again"), *options])
    except SystemExit as end:
        status = end.code
    printed = capsys.readouterr()
    return status, printed.out + printed.err


def test_the_same_rows_make_the_same_adapter(exported, tmp_path, capsys):
    status, printed = reproduce(exported, tmp_path, ROWS, capsys)
    assert "rows: same" in printed
    assert "adapter: same" in printed
    assert status == 0
    weights = "adapter_model.safetensors"
    assert (tmp_path / "again" / "adapter" / weights).read_bytes() == (exported / weights).read_bytes()


def test_a_changed_row_is_named_before_anything_is_trained(exported, tmp_path, capsys):
    number = 5
    changed = [row | {"completion": "seven"} if n == number else row for n, row in enumerate(ROWS)]
    status, printed = reproduce(exported, tmp_path, changed, capsys)
    assert status == 1
    assert "say 5" in printed
    assert "adapter:" not in printed
    assert not (tmp_path / "again" / "adapter").exists()


def test_trained_anyway_the_weights_that_differ_are_named(exported, tmp_path, capsys):
    changed = [row | {"completion": "seven " * 9} for row in ROWS]
    status, printed = reproduce(exported, tmp_path, changed, capsys, "--anyway")
    assert status == 1
    assert "adapter: differ" in printed
    assert "lora_B.weight differs by at most" in printed
