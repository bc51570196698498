"""The locks of a run's folder beside deletions, looks, forks and processes that are stopped."""

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import small_recipe
from filelock import lock_descriptor

from tuner import run_lock, runs
from tuner.errors import TunerError
from tuner.runs import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run that has not begun."""
    return runs.create(small_recipe(), root=tmp_path)


@pytest.fixture
def look(run):
    """Another's look at the run, as far as files tell, until this is called."""
    file = os.open(run.path / "lock.look", os.O_RDWR | os.O_CREAT)
    assert lock_descriptor(file, blocking=False)
    with ExitStack() as stack:
        stack.callback(os.close, file)
        yield lambda: stack.pop_all().close()


def waits(monkeypatch: pytest.MonkeyPatch, do: Callable[[], object]) -> list[float]:
    """How many seconds each wait for a lock is to take; it does this instead."""
    seconds: list[float] = []
    sleep = lambda time: (seconds.append(time), do())  # noqa: E731
    monkeypatch.setattr(run_lock, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
    return seconds


def refuse_to_wait() -> None:
    """Fail the test that waits."""
    pytest.fail("a lock was waited for that nobody holds")


def test_a_start_beside_a_deletion_gets_the_run_or_nothing_and_never_makes_its_folder_again(tmp_path):
    def start(run: Run) -> None:
        barrier.wait()
        with suppress(FileNotFoundError):
            if lock := run_lock.take(run.path):
                assert (run.path / "recipe.yaml").exists()
                lock.release()

    def delete(run: Run) -> None:
        barrier.wait()
        with suppress(TunerError):  # one of the starts was faster
            run.delete()

    barrier = threading.Barrier(4)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(60):
            run = runs.create(small_recipe(), root=tmp_path)
            for job in [pool.submit(do, run) for do in (start, start, start, delete)]:
                job.result()
            assert run.path.exists() == (run.path / "recipe.yaml").exists()


@pytest.mark.parametrize(("name", "hold"), [("lock", "take"), ("lock.look", "take"), ("lock.merge", "merging")])
def test_a_lock_in_a_folder_that_is_deleted_as_it_is_opened_is_not_had(run, monkeypatch, name, hold):
    opened = os.open

    def open_late(path, *given, **more) -> int:
        file = opened(path, *given, **more)
        if path == run.path / name:
            run.path.rename(run.path.with_name("gone"))
        return file

    monkeypatch.setattr(os, "open", open_late)
    with pytest.raises((FileNotFoundError, TunerError)), ExitStack() as stack:
        stack.enter_context(run_lock.merging(run.path)) if hold == "merging" else run_lock.take(run.path)
    assert not run.path.exists()
    monkeypatch.undo()
    assert not Run(run.path.with_name("gone")).is_training  # what was opened is closed


def test_a_merge_that_waits_while_the_run_is_deleted_says_so_and_leaves_nothing(run, monkeypatch):
    with ExitStack() as first:
        first.enter_context(run_lock.merging(run.path))
        waits(monkeypatch, lambda: (run.delete(), first.close()))
        with pytest.raises(TunerError, match=f"^Run {run.id} was deleted meanwhile"), run_lock.merging(run.path):
            pass
    assert not run.path.exists()


def test_a_start_and_a_look_wait_until_anothers_look_is_over(run, look, monkeypatch):
    seconds = waits(monkeypatch, lambda: len(seconds) < 3 or look())
    with run.training():
        assert len(seconds) == 3
    assert max(seconds) < 0.01


@pytest.mark.parametrize("ask", [lambda run: run.is_training, lambda run: run.training().__enter__()])
def test_a_look_that_does_not_end_delays_others_by_a_second_only(run, look, monkeypatch, ask):
    """As that of a process that was stopped meanwhile."""
    seconds = waits(monkeypatch, lambda: time.sleep(0))
    clock = iter(range(100))
    monkeypatch.setattr(run_lock.time, "monotonic", lambda: next(clock) / 4)
    assert not ask(run)
    assert 3 <= len(seconds) <= 5


def test_who_inherits_an_open_file_keeps_neither_a_look_nor_the_run(run, monkeypatch):
    """As a worker does between its fork and its first own step."""
    opened, copies = os.open, []

    def open_twice(*given, **more) -> int:
        copies.append(os.dup(file := opened(*given, **more)))
        return file

    waits(monkeypatch, refuse_to_wait)
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", open_twice)
        assert not any(run.is_training for _ in range(3))
        with run.training():
            assert run.is_training
        assert not run.is_training
        with run.training(), pytest.raises(TunerError, match="already in training"), run.training():
            pass
        with run_lock.merging(run.path):
            pass
        with run_lock.merging(run.path):
            pass
    assert len(copies) > 8
    for file in copies:
        os.close(file)


def test_a_lock_is_released_once_whoever_releases_it_again(run):
    first = run_lock.take(run.path)
    first.release()
    second = run_lock.take(run.path)  # whose file has the number of the first's
    first.release()
    assert run.is_training
    second.release()
    assert not run.is_training


def test_a_forked_process_has_no_lock_to_release(run):
    lock = run_lock.take(run.path)
    if not (child := os.fork()):
        try:
            is_held = run_lock.is_held(run.path)
            lock.release()
            os._exit(0 if is_held and run_lock.is_held(run.path) else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert run.is_training
    lock.release()
    assert not run.is_training
