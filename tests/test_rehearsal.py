"""The door to the GPU on a stage: real `spaces` workers, which are granted seconds and killed when those are over.

`make rehearsal` trains twenty runs, `make test` only a few.
"""

import json
import os
import random
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from itertools import chain, repeat
from pathlib import Path

import fresh
import pytest
from conftest import ROOT, small_recipe, timed
from stage import Stage

from tuner.planning import plan
from tuner.runs import Run

RUNS = int(os.environ.get("TUNER_REHEARSALS", 2))
KILLS = 3  # a run
BUDGET = 20 if RUNS > 2 else 10  # seconds
SETTINGS = {"budget__steps": 60, "training__checkpoint_seconds": 0.1}
KINDS = [
    {},
    {"method__dropout": 0.2},
    {"model__quantization": "none"},
    {"training__scheduler": "cosine", "seed": 7},
]


class Driver:
    """A process that does jobs through the door, on a stage."""

    def __init__(self, stage: Stage, **environment: str):
        self.process = subprocess.Popen(
            [fresh.PYTHON, str(ROOT / "tests/on_stage.py"), str(ROOT / "tests/drive.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | stage.environment | environment,
            start_new_session=True,
        )

    def begin(self, job: str, run: Run, token: str = "") -> None:
        """Begin a job."""
        self.process.stdin.write(json.dumps({"job": job, "run": str(run.path), "token": token}) + "\n")
        self.process.stdin.flush()

    def events(self) -> Iterator[dict]:
        """The job's events as they come; the last one is done, or refused."""
        for line in self.process.stdout:
            if (begin := line.find("{")) < 0:
                continue
            # The client of spaces prints there, too, from a thread of its own, perhaps before this line's end.
            event, _ = json.JSONDecoder().raw_decode(line, begin)
            yield event
            if event["event"] in ("done", "refused"):
                return

    def do(self, job: str, run: Run, token: str = "") -> list[dict]:
        """All that the job said; the last event is done, or refused."""
        self.begin(job, run, token)
        return list(self.events())

    def end(self) -> None:
        """Kill the app, as a restart of the Space does."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """One GPU."""
    with Stage() as stage:
        yield stage


@pytest.fixture(scope="module")
def driver(stage: Stage) -> Iterator[Driver]:
    """The app on the stage."""
    driver = Driver(stage)
    yield driver
    driver.end()


@pytest.fixture(autouse=True)
def as_it_was(stage: Stage) -> Iterator[None]:
    """Put the stage's settings back after each test."""
    yield
    stage.quota = stage.longest = stage.refuse = None
    stage.kill_after = iter(())


@pytest.fixture
def make(tmp_path: Path, small_base: str) -> Callable[..., Run]:
    """Prepares a small run with these settings."""

    def make(**settings) -> Run:
        path = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        return plan.prepare(small_recipe(model__name=small_base, **SETTINGS | settings), path=path)

    return make


def weights(run: Run) -> bytes:
    """The adapter's file."""
    return (run.adapter / "adapter_model.safetensors").read_bytes()


@pytest.mark.long
def test_runs_killed_at_random_moments_end_with_the_adapter_of_the_uninterrupted_run(stage, driver, make):
    chance, same, killed = random.Random(0), 0, 0
    wholes: dict[int, Run] = {}
    for number in range(RUNS):
        kind = number % len(KINDS)
        if kind not in wholes:
            wholes[kind] = make(**KINDS[kind])
            assert driver.do("train", wholes[kind])[-1] == {"event": "done"}
        run = make(**KINDS[kind])
        before = len(stage.windows)
        stage.kill_after = chain([chance.uniform(0, 1.0) for _ in range(KILLS)], repeat(None))
        while driver.do("train", run)[-1]["event"] == "refused":
            run.append({"event": "queued"})  # three workers died before anything was learned, and Resume was pressed
        killed += sum(window.how == "killed" for window in stage.windows[before:])
        same += weights(run) == weights(wholes[kind])
    print(f"\nrehearsal: {RUNS} runs, {killed} workers killed, {same} ended with the same adapter bit for bit")
    assert killed >= RUNS * KILLS - RUNS  # a kill may come after the end
    assert same == RUNS


@pytest.mark.long
def test_the_whole_app_may_be_killed(stage, driver, make):
    whole, run = make(), make()
    driver.do("train", whole)
    app = Driver(stage)
    app.begin("train", run)
    for event in app.events():
        if event["event"] == "checkpoint":
            break
    app.end()
    # Its worker outlives it by a step at most: nobody listens to it any more.
    stage.end_workers()
    stage.wait_until(lambda: all(window.ended for window in stage.windows))
    assert run.status == "interrupted"
    assert driver.do("train", run)[-1] == {"event": "done"}
    assert weights(run) == weights(whole)


@pytest.mark.long
def test_a_budget_in_seconds_is_kept_across_windows_and_the_rate_lands(stage, driver, make):
    run = make(budget__seconds=BUDGET, data__max_rows=400)
    assert driver.do("train", run)[-1] == {"event": "done"}
    end = run.last_event("end")
    print(f"\na budget of {BUDGET} s ended {end['in_window']:.2f} s after its window opened")
    assert 0.9 * BUDGET <= end["in_window"] <= BUDGET
    steps = [e for e in run.events() if e["event"] == "step"]
    # How closely, test_train tells, where no other process takes time from a step.
    assert steps[-1]["learning_rate"] < 0.2 * max(e["learning_rate"] for e in steps)


@pytest.mark.long
def test_a_budget_longer_than_a_window_goes_on_in_the_next_with_the_same_worker(stage, make):
    driver = Driver(stage, TUNER_WINDOW_SECONDS="10")
    run = make(budget__seconds=13)
    before = len(stage.windows)
    assert driver.do("train", run)[-1] == {"event": "done"}
    driver.end()
    windows = stage.windows[before:]
    assert len(windows) >= 2
    assert {w.how for w in windows} == {"released"}  # the platform never had to end one
    assert len({w.pid for w in windows}) == 1
    assert 0.8 * 13 <= run.last_event("end")["seconds"] <= 13


def test_training_and_answers_share_one_warm_worker(stage, driver, make):
    run = make(budget__steps=3)
    before = len(stage.windows)
    for job in ("train", "chat"):
        assert driver.do(job, run)[-1] == {"event": "done"}
    train, chat = stage.windows[before:]
    assert train.pid == chat.pid
    assert train.how == chat.how == "released"


@timed
@pytest.mark.long
def test_a_stop_is_seen_within_two_seconds_and_the_run_goes_on_to_the_same_end(stage, driver, make):
    whole, run = make(), make()
    driver.do("train", whole)
    driver.begin("train", run)
    events = driver.events()
    next(e for e in events if e["event"] == "step" and e["step"] == 5)
    requested, stopped = time.monotonic(), time.time()
    run.stop()
    list(events)
    assert time.monotonic() - requested < 2
    assert run.status == "stopped"
    # The step at hand, and one more where that one ended while the stop was being asked for.
    assert sum(e["time"] > stopped for e in run.events() if e["event"] == "step") <= 2
    assert run.last_event("end")["reason"] == "stopped"
    driver.do("train", run)
    assert weights(run) == weights(whole)


def test_a_worker_that_dies_three_times_before_it_learned_anything_is_said_plainly(stage, driver, make):
    run = make(budget__steps=4)
    stage.kill_after = repeat(0)
    stage.end_workers()
    last = driver.do("train", run)[-1]
    assert "killed 3 times" in last["problems"][0]
    assert "memory" in last["problems"][0]
    stage.kill_after = iter(())
    assert driver.do("train", run)[-1] == {"event": "done"}


TOKEN = "header.eyJ1c2VyIjoieCJ9.signature"


def test_a_spent_quota_says_how_much_is_left_when_it_returns_and_that_the_run_is_safe(stage, driver, make):
    run = make(budget__steps=4)
    stage.quota = {TOKEN: 3}
    (problem,) = driver.do("train", run, TOKEN)[-1]["problems"]
    assert "3 s is left" in problem
    assert "5 h 32 min" in problem
    assert "The run is safe" in problem
    assert "Resume" in problem
    assert run.status == "prepared"
    stage.quota = {TOKEN: 1000}
    assert driver.do("train", run, TOKEN)[-1] == {"event": "done"}


@pytest.mark.long
def test_what_is_left_of_a_quota_is_used_when_a_whole_window_is_not(stage, driver, make):
    run = make(budget__seconds=30)
    stage.quota = {TOKEN: 11}
    (problem,) = driver.do("train", run, TOKEN)[-1]["problems"]
    assert "The run is safe" in problem
    assert run.status == "paused"
    assert stage.windows[-1].requested == 11
    assert run.last_event("step")["step"] > 1


def test_windows_are_made_shorter_where_the_platform_finds_them_too_long(stage, driver, make):
    run = make(budget__steps=4)
    stage.longest = 20
    assert driver.do("train", run)[-1] == {"event": "done"}
    assert stage.windows[-1].requested <= 20


@pytest.mark.parametrize(
    ("refuse", "words"),
    [
        ("runs", "as many GPU jobs as one day allows"),
        ("pending", "running at once"),
        ("queue timeout", "No GPU became free"),
        ("unavailable", "No GPU is available"),
        ("expired", "Reload it"),
    ],
)
def test_each_refusal_of_the_platform_becomes_a_plain_sentence_with_the_next_step(stage, driver, make, refuse, words):
    run = make(budget__steps=4)
    stage.refuse = refuse
    (problem,) = driver.do("train", run, TOKEN)[-1]["problems"]
    assert re.search(words, problem)
    assert problem.endswith("The run is safe: open it again and press Resume.")
    assert not re.search("Error|Traceback|None", problem)
