"""The event log: each look reads only what is new, whatever happened to the file; what is folded from it is right."""

import io
import json
import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import small_recipe

from tuner import runs
from tuner.events import EventLog, EventReader
from tuner.hub.card import card
from tuner.ui import actions, progress, render, train_tab
from tuner.ui.progress import Curve
from tuner.ui.visitor import Visitor

STEPS = 20_000
PROBLEM = {"event": "error", "problems": ["The loss is not a number."]}


class CountingFile(io.FileIO):
    """A file that counts the bytes read from it, by its name."""

    counts: Counter

    def readinto(self, buffer: bytearray) -> int:
        """Read and count."""
        size = super().readinto(buffer)
        self.counts[Path(self.name).name] += size
        return size

    def readall(self) -> bytes:
        """Read and count."""
        content = super().readall()
        self.counts[Path(self.name).name] += len(content)
        return content


@contextmanager
def bytes_read(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Counter, Counter]]:
    """Bytes read and files opened for reading in this process meanwhile, by the file's name."""
    counts, opened, real = Counter(), Counter(), io.open

    def counting(file, mode="r", buffering=-1, encoding=None, *rest, **settings):
        if "r" not in mode or "+" in mode or not isinstance(file, str | os.PathLike):
            return real(file, mode, buffering, encoding, *rest, **settings)
        raw = CountingFile(os.fspath(file))
        raw.counts = counts
        opened[Path(file).name] += 1
        reader = io.BufferedReader(raw)
        return reader if "b" in mode else io.TextIOWrapper(reader, encoding)

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", counting)
        patch.setattr("io.open", counting)
        yield counts, opened


def step(number: int, loss: float = 1.0) -> dict:
    """A step's event as training writes it."""
    figures = {"loss": loss, "learning_rate": 1e-3, "grad_norm": 0.5, "tokens": 100 * number, "tokens_per_second": 900}
    times = {"seconds": 0.1 * number, "seconds_to_go": 9.0}
    return {"event": "step", "step": number, "steps": STEPS, "epoch": 0.1, **figures, **times}


def kinds(events: list[dict]) -> list[str]:
    """What the events are."""
    return [event["event"] for event in events]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where a log may be."""
    return tmp_path / "events.jsonl"


@pytest.fixture
def long_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[runs.Run]:
    """A run of the page's in the middle of its 20,000 steps."""
    monkeypatch.setattr("tuner.runs.RUNS", tmp_path)
    run = runs.create(small_recipe(), path=tmp_path / "long")
    run.write_json("plan.json", {"steps": STEPS, "forecast": None})
    events = [{"event": "start", "step": 0, "steps": STEPS}, *(step(number) for number in range(1, STEPS))]
    run.write_text("events.jsonl", "".join(json.dumps({"time": 0.0, **event}) + "\n" for event in events))
    with run.training():
        yield run


def test_a_tick_reads_only_what_is_new(long_run, monkeypatch):
    monkeypatch.setattr("tuner.ui.looks.MOMENT", 0)  # each tick looks anew

    def tick() -> Counter:
        with bytes_read(monkeypatch) as (counts, opened):
            train_tab._tick("long", None, "", Visitor("ann"))
        files = {name: counts[name] for name in ("events.jsonl", "recipe.yaml", "plan.json") if opened[name]}
        print(f"\na tick read {files}")
        return files

    size = (long_run.path / "events.jsonl").stat().st_size
    assert tick()["events.jsonl"] < 2.1 * size  # the first one: everything
    assert tick() == {}
    long_run.append(step(STEPS))
    assert tick() == {"events.jsonl": (long_run.path / "events.jsonl").stat().st_size - size}
    assert progress.read(actions.open_run("long")).step == STEPS
    assert tick() == {}


def test_a_model_card_reads_each_file_once(finished, monkeypatch):
    run = runs.Run(finished.path)
    with bytes_read(monkeypatch) as (_, opened):
        card(run, "alice/x")
    ours = {f.name for f in run.path.rglob("*") if f.is_file()} & opened.keys()
    print(f"\na card read {sorted(ours)}")
    assert {"recipe.yaml", "plan.json", "events.jsonl", "evaluation.json"} <= ours
    assert {name: opened[name] for name in ours} == dict.fromkeys(ours, 1)


def test_half_a_line_is_read_when_it_is_whole_and_skipped_when_its_writer_died(path):
    log, reader = EventLog(path), EventReader(path)
    log.append({"event": "start"})
    with open(path, "a") as file:
        file.write('{"event": "st')
    assert kinds(reader.read()) == ["start"]
    with open(path, "a") as file:
        file.write('ep", "step": 1}\n{"event": "he')
    assert kinds(reader.read()) == ["step"]
    log.append({"event": "end"})
    assert kinds(reader.read()) == ["end"]
    assert kinds(EventReader(path).read()) == ["start", "step", "end"]


@pytest.mark.parametrize("as_text", ["null", "17", '{"no": "event"}', "\x00\x00", "{}{}"])
def test_a_line_that_is_no_event_is_skipped(path, as_text):
    path.write_text(f'{as_text}\n{{"event": "end"}}\n')
    assert kinds(EventReader(path).read()) == ["end"]


def replace(path: Path) -> None:
    """Put a shorter log in the place of this one, as when a run is deleted and created again."""
    path.unlink()
    EventLog(path).append({"event": "queued"})


def replace_by_a_longer_one(path: Path) -> None:
    """The same with a longer one, under a name of its own first."""
    longer = EventLog(path.with_name("new"))
    for event in ("queued", *["start"] * 9):
        longer.append({"event": event, "step": 0})
    longer.path.replace(path)


def replace_by_one_of_the_same_size(path: Path) -> None:
    """The same with a log of as many bytes: one event whose text fills them."""
    same, size = EventLog(path.with_name("new")), path.stat().st_size
    same.append({"event": "queued", "time": 1.5, "fill": ""})
    filler = "." * (size - same.path.stat().st_size)
    same.path.unlink()
    same.append({"event": "queued", "time": 1.5, "fill": filler})
    assert same.path.stat().st_size == size
    same.path.replace(path)


def cut_short(path: Path) -> None:
    """Leave the first line only."""
    os.truncate(path, path.read_bytes().index(b"\n") + 1)


@pytest.mark.parametrize("change", [replace, replace_by_a_longer_one, replace_by_one_of_the_same_size, cut_short])
def test_a_log_that_was_replaced_or_cut_short_is_read_anew(path, change: Callable):
    log, reader = EventLog(path), EventReader(path)
    for event in ({"event": "queued"}, {"event": "start", "step": 0}, step(1), step(2)):
        log.append(event)
    assert len(reader.read()) == 4
    assert len(log.fold(Curve).losses) == 2
    change(path)
    now = EventReader(path).read()
    assert reader.read() == now
    assert log.newest() == now[-1]
    assert log.newest("step") is None
    assert log.fold(Curve).losses == []


def test_a_log_that_is_gone_has_no_events(path):
    log, reader = EventLog(path), EventReader(path)
    assert (reader.read(), log.newest()) == ([], None)
    log.append({"event": "end"})
    assert (kinds(reader.read()), log.newest("end")["event"]) == (["end"], "end")
    path.unlink()
    assert (reader.read(), log.newest()) == ([], None)


def test_a_run_that_was_deleted_and_created_again_is_opened_again(tmp_path, monkeypatch):
    monkeypatch.setattr("tuner.runs.RUNS", tmp_path)
    runs.create(small_recipe(), path=tmp_path / "run").append({"event": "error"})
    assert (actions.open_run("run").status, actions.open_run("run").recipe.seed) == ("failed", small_recipe().seed)
    assert actions.open_run("run") is actions.open_run("run")
    shutil.rmtree(tmp_path / "run")
    runs.create(small_recipe(seed=9), path=tmp_path / "run")
    assert actions.open_run("run").status == "prepared"
    assert actions.open_run("run").recipe.seed == 9


def test_no_more_runs_are_kept_open_than_the_limit(tmp_path, monkeypatch):
    monkeypatch.setattr("tuner.runs.RUNS", tmp_path)
    monkeypatch.setattr("tuner.ui.actions.MOST_OPEN", 3)
    for number in range(5):
        runs.create(small_recipe(), path=tmp_path / f"run{number}")
        actions.open_run(f"run{number}")
    assert [run.id for _, run in actions._open.values()] == ["run2", "run3", "run4"]


def test_threads_that_share_a_run_miss_nothing_and_count_nothing_twice(path):
    writer, log, total = EventLog(path), EventLog(path), 300
    seen: list[list[int]] = []

    def look() -> None:
        steps = [0]
        while steps[-1] < total:
            steps.append(len(log.fold(Curve).losses))
        seen.append(steps)

    threads = [threading.Thread(target=look) for _ in range(6)]
    for thread in threads:
        thread.start()
    for number in range(1, total + 1):
        writer.append(step(number))
    for thread in threads:
        thread.join(60)
    assert [steps[-1] for steps in seen] == [total] * 6
    assert all(steps == sorted(steps) for steps in seen)
    assert [at for at, _ in log.fold(Curve).losses] == list(range(1, total + 1))


def curve(*events: dict) -> Curve:
    """The fold of these events."""
    folded = Curve()
    for event in events:
        folded.add(event)
    return folded


def test_a_resumed_window_takes_back_what_came_after_its_checkpoint():
    saved = {"event": "checkpoint", "step": 4}
    first = [{"event": "start", "step": 0}, *map(step, range(1, 5)), saved, *map(step, range(5, 8))]
    resumed = curve(*first, {"event": "start", "step": 4})
    assert [at for at, _ in resumed.losses] == [1, 2, 3, 4]
    assert resumed.last == step(4)  # its figures are shown until the next step
    for event in (step(5, 2.0), step(6, 2.0)):
        resumed.add(event)
    assert resumed.losses[3:] == [(4, 1.0), (5, 2.0), (6, 2.0)]
    for event in (saved | {"step": 6}, {"event": "start", "step": 4}, step(5), step(6, 3.0), saved | {"step": 6}):
        resumed.add(event)
    for event in (step(7), {"event": "start", "step": 6}):
        resumed.add(event)
    assert resumed.last == step(6, 3.0)
    resumed.add({"event": "start", "step": 0})
    assert (resumed.losses, resumed.last) == ([], {})


@pytest.mark.parametrize(
    ("between", "expected"), [(None, True), ({"event": "checkpoint", "step": 1}, False), ({"event": "queued"}, True)]
)
def test_a_run_that_fails_the_same_way_twice_is_not_advised_to_resume(tmp_path, between, expected):
    run = runs.create(small_recipe(), path=tmp_path / "run")
    run.append(PROBLEM)
    assert not progress.read(run).failed_again
    assert "resuming will not help" not in render.run_card(run)
    if between:
        run.append(between)
    run.append(PROBLEM)
    assert progress.read(run).failed_again == expected
    assert ("resuming will not help" in render.run_card(run)) == expected
    run.append(PROBLEM | {"problems": ["Something else."]})
    assert not progress.read(run).failed_again


def test_an_event_is_written_with_its_time_as_one_line(path, monkeypatch):
    monkeypatch.setattr("tuner.events.time.time", lambda: 1234.56789)
    log = EventLog(path)
    first, second = log.append({"step": 3, "event": "step"}), log.append({"event": "end", "time": 5.0})
    assert (first, second) == ({"event": "step", "time": 1234.568, "step": 3}, {"event": "end", "time": 5.0})
    assert path.read_text() == '{"event": "step", "time": 1234.568, "step": 3}\n{"event": "end", "time": 5.0}\n'


def test_the_newest_event_is_that_of_the_kinds_that_are_named(path):
    log = EventLog(path)
    assert (log.newest(), log.newest("step"), log.newest_except("step")) == (None, None, None)
    for number, kind in enumerate(("start", "step", "checkpoint", "step", "heldout")):
        log.append({"event": kind, "number": number})
    named = {
        (): 4,
        ("start",): 0,
        ("step",): 3,
        ("checkpoint", "start"): 2,
        ("step", "checkpoint"): 3,
        ("checkpoint", "step", "end"): 3,
    }
    assert {kinds: log.newest(*kinds)["number"] for kinds in named} == named
    assert log.newest("end") is None
    others = {(): 4, ("heldout",): 3, ("heldout", "step"): 2, ("start", "end"): 4}
    assert {kinds: log.newest_except(*kinds)["number"] for kinds in others} == others
    assert log.newest_except("start", "step", "checkpoint", "heldout") is None


class Steps:
    """A fold of the steps' numbers."""

    def __init__(self):
        self.numbers = []

    def add(self, event: dict) -> None:
        """Take the next event into account."""
        self.numbers.append(event["step"])


class Others(Steps):
    """Another one."""


def test_a_fold_that_comes_later_counts_all_events_once_and_so_do_the_others(path):
    log = EventLog(path)
    log.append(step(1))
    assert log.fold(Steps).numbers == [1]
    log.append(step(2))
    assert log.newest()["step"] == 2
    assert log.fold(Others).numbers == [1, 2]
    first = log.fold(Steps)
    log.append(step(3))
    assert (log.fold(Others).numbers, log.fold(Steps).numbers) == ([1, 2, 3], [1, 2, 3])
    assert log.fold(Steps) is first
    assert log.newest("step")["step"] == 3
