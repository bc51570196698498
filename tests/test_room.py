"""The folder of runs keeps within its limit: what is there, what will still be written, and what a new run needs."""

import os
import shutil
import time
from pathlib import Path

import pytest
from test_runs import ENDED, QUEUED, aged
from visitors_runs import copied

from tuner import models_cleanup, runs, runs_cleanup
from tuner.errors import TunerError
from tuner.runs import Run
from tuner.runs_cleanup import make_room, make_room_for

pytest_plugins = ["page_fixtures"]

MB = 2**20
PLANNED = {"settings": {}, "trainable_parameters": 10**6, "tokens": 10**5, "model_parameters": 10**8}  # 29.6 MB


def planned(root: Path, name: str, *events: dict) -> Run:
    """A run that is about to write 30 MB."""
    run = aged(root, name, 0, *(events or (QUEUED,)))
    run.write_json("plan.json", PLANNED)
    return run


def test_what_a_run_in_progress_will_still_write_counts(tmp_path):
    aged(tmp_path, "old", 50, QUEUED, ENDED)
    planned(tmp_path, "running")
    assert make_room(tmp_path, limit=60 * MB) == []
    assert make_room(tmp_path, limit=28 * MB) == ["old"]


def test_a_new_run_without_room_is_refused_in_a_sentence_and_leaves_nothing(tmp_path):
    planned(tmp_path, "running")
    new = planned(tmp_path, "new")
    with pytest.raises(TunerError, match=r"^There is no room for this: .* MB are missing, .*try again later\.$"):
        make_room_for(new)
    assert Run(tmp_path / "running").path.is_dir()


@pytest.fixture(autouse=True)
def limit(monkeypatch):
    """Room for one run and a half."""
    monkeypatch.setattr(runs_cleanup, "LIMIT", 45 * MB)


def test_a_refused_run_is_gone_and_an_admitted_one_stays(tmp_path):
    admitted = planned(tmp_path, "first")
    assert make_room_for(admitted) == []
    refused = planned(tmp_path, "second")
    with pytest.raises(TunerError):
        make_room_for(refused)
    assert [run.id for run in runs.list_runs(tmp_path)] == ["first"]


def test_a_full_disk_refuses_a_new_run_whatever_the_limit_is(tmp_path, monkeypatch):
    monkeypatch.setattr(models_cleanup, "free_disk", lambda path: 60 * MB)
    old, new = aged(tmp_path, "old", 50, QUEUED, ENDED), planned(tmp_path, "new")
    with pytest.raises(TunerError, match="no room"):
        make_room_for(new)
    assert old.path.exists()  # which would have been deleted in vain


def test_sparse_files_and_links_count_as_what_they_take(tmp_path):
    finished = aged(tmp_path, "finished", 50, QUEUED, ENDED)
    with open(finished.path / "sparse", "wb") as file:
        file.truncate(10**12)
    big = tmp_path / "elsewhere" / "big"
    big.parent.mkdir()
    big.write_bytes(bytes(60 * MB))
    (finished.path / "link").symlink_to(big)
    (finished.path / "folder").symlink_to(big.parent)
    assert make_room(tmp_path) == []
    assert big.exists()


def test_a_run_that_is_a_link_is_neither_counted_nor_followed(tmp_path):
    outside = aged(tmp_path / "outside", "big", 50, QUEUED, ENDED)
    (outside.path / "data" / "more").write_bytes(bytes(60 * MB))
    root = tmp_path / "runs"
    root.mkdir()
    (root / "linked").symlink_to(outside.path)
    aged(root, "old", 50, QUEUED, ENDED)
    assert make_room(root) == []
    assert make_room(root, limit=0) == ["old"]
    assert outside.path.is_dir()
    Run(root / "linked").delete()
    assert outside.path.is_dir()


def test_what_could_not_be_deleted_does_not_count_as_freed(tmp_path, monkeypatch):
    for hours, name in ((9, "a"), (8, "b")):
        (aged(tmp_path, name, hours, QUEUED, ENDED).data / "more").write_bytes(bytes(30 * MB))
    rename = Path.rename

    def refuse(path, target):
        if path.name == "a":
            raise PermissionError(13, "Permission denied")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refuse)
    assert make_room(tmp_path) == ["b"]
    with pytest.raises(TunerError, match=r"^Run a can't be deleted: permission denied\.$"):
        Run(tmp_path / "a").delete()


def test_a_deletion_that_was_broken_off_is_finished(tmp_path, monkeypatch):
    run = aged(tmp_path, "mine", 9, QUEUED, ENDED)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *given, **more: None)  # killed here
        run.delete()
    assert runs.list_runs(tmp_path) == []
    assert [path.name[:9] for path in tmp_path.iterdir()] == [runs.DELETED]
    make_room(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("jump", [86400, -86400])
def test_a_clock_that_jumps_makes_no_run_old(tmp_path, monkeypatch, jump):
    now = time.time
    aged(tmp_path, "before", 0.1, QUEUED)
    monkeypatch.setattr(time, "time", lambda: now() + jump)
    run = aged(tmp_path, "after", 0, QUEUED)
    os.utime(run.path / "events.jsonl", (time.time(), time.time()))
    assert make_room(tmp_path, limit=0) == []


def test_what_a_run_in_progress_has_written_counts_once(tmp_path):
    aged(tmp_path, "old", 50, QUEUED, ENDED)
    (planned(tmp_path, "running").path / "checkpoint").write_bytes(bytes(28 * MB))
    assert make_room(tmp_path, limit=40 * MB) == []


@pytest.mark.parametrize(("days", "deleted"), [(0.5, []), (300, ["ahead"])])
def test_a_run_from_far_ahead_is_not_in_progress_for_good(tmp_path, days, deleted):
    """Its clock was wrong; who just set theirs back by hours keeps what waits."""
    run = aged(tmp_path, "ahead", 0, QUEUED)
    os.utime(run.path / "events.jsonl", (time.time() + days * 86400,) * 2)
    assert make_room(tmp_path, limit=0) == deleted


@pytest.mark.long
def test_a_thousand_runs_are_counted_in_a_moment(root):
    source = copied("run0")
    for number in range(1, 1000):
        folder = root / f"run{number}"
        folder.mkdir()
        for name in ("adapter", "data", "data/heldout"):
            (folder / name).mkdir()
        for file in source.path.rglob("*"):
            if file.is_file():
                os.link(file, folder / file.relative_to(source.path))
    began = time.monotonic()
    assert make_room(limit=10**12) == []
    counted = time.monotonic() - began
    began = time.monotonic()
    assert len(make_room(limit=0)) == 1000
    print(f"1,000 runs: {counted:.2f} s to count, {time.monotonic() - began:.2f} s to delete")
    assert counted < 3
