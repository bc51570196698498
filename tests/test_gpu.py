"""The door to the GPU without a stage: the training process and its deaths, seconds requested, refusals."""

import gc
import json
import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import fresh
import gradio as gr
import psutil
import pytest
from conftest import ROOT, small_recipe, timed

from tuner import gpu, gpu_refusals, runs
from tuner.errors import TunerError
from tuner.inference.generate import Sampling

SECRETS = {"HF_TOKEN": "hf_one", "HUGGING_FACE_HUB_TOKEN": "hf_two", "SOME_OTHER_TOKEN": "hf_three"}
SECRETS |= {"OAUTH_CLIENT_SECRET": "four", "TUNER_API_KEY": "five", "DATABASE": "six"}
FORESEEN = {"training": 100.0, "scoring": 20.0, "start_up": 7.0, "a_step": 0.5}


@pytest.fixture
def run(tmp_path) -> runs.Run:
    return runs.create(small_recipe(), path=tmp_path / "run")


def children() -> set[psutil.Process]:
    return set(psutil.Process().children())


def train_until_killed(run: runs.Run) -> tuple[psutil.Process, list[dict]]:
    """Begin training and end its process from outside at once; the process, and what was said."""
    before = children()
    window = gpu.train(run)
    said = [next(window)]
    (process,) = children() - before
    while not (environment := process.environ()):  # which the system sets a moment after the program has begun
        pass
    process.environment, process.niceness = environment, process.nice()
    process.group, process.session = os.getpgid(process.pid), os.getsid(process.pid)
    process.kill()
    return process, said + list(window)


def test_the_training_process_stands_back_behind_the_page_and_is_told_no_secret(run, monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TUNER_MAX_TOKENS", "5000")
    process, _ = train_until_killed(run)
    assert process.niceness == psutil.Process().nice() + gpu.BEHIND
    assert process.group == process.pid
    # Linux weighs by niceness within a session only (man 7 sched, "The autogroup feature").
    assert process.session == (os.getsid(0) if sys.version_info >= (3, 11) else process.pid)
    assert process.environment["TUNER_MAX_TOKENS"] == "5000"
    assert process.environment["HF_HUB_DISABLE_IMPLICIT_TOKEN"] == "1"
    assert not [name for name, value in process.environment.items() if name in SECRETS or value in SECRETS.values()]
    assert os.environ["HF_TOKEN"] == "hf_one"  # the app itself still has it


def test_only_the_third_death_before_anything_was_learned_ends_a_run_and_it_is_counted_rightly(run):
    for deaths in (1, 2):
        run.append({"event": "starting"})  # which is none
        _, said = train_until_killed(run)
        assert said[-1]["event"] == "died"
        assert [e["event"] for e in run.events()].count("died") == deaths
        assert run.status == "paused"
    with pytest.raises(TunerError, match="3 times before it learned"):
        train_until_killed(run)
    assert gpu.DEATHS == 3


@pytest.mark.parametrize("learned", ["checkpoint", "answered", "end", "queued"])
def test_what_was_learned_or_a_persons_wish_starts_the_count_of_deaths_again(run, learned):
    for event in ("died", "died", learned, "died"):
        run.append({"event": event, "step": 1, "reason": "window"})
    train_until_killed(run)  # the second since then
    with pytest.raises(TunerError):
        train_until_killed(run)


def test_a_training_process_that_fails_says_what_it_says_and_not_what_an_earlier_one_said(run):
    run.append({"event": "error", "problems": ["An old problem."]})
    (run.path / "recipe.yaml").unlink()
    with pytest.raises(TunerError) as caught:
        list(gpu.train(run))
    assert "An old problem." not in str(caught.value)
    assert run.id in str(caught.value)


def needed(run: runs.Run, *events: dict, seconds: float | None = None) -> float:
    run.write_json("plan.json", {"forecast": FORESEEN, "seconds": seconds})
    for event in events:
        run.append(event)
    return gpu.seconds_needed(run)


START = {"event": "start", "step": 0, "start_up": 3.0}


def test_what_is_asked_for_covers_what_is_left_to_do(run, tmp_path):
    step = {"event": "step", "step": 5, "seconds": 30.0, "seconds_to_go": 50.0}
    assert needed(run) == pytest.approx(gpu.BESIDE + 1.2 * 100 + 20)
    assert needed(run, START, step) == pytest.approx(gpu.BESIDE + 1.2 * (3 + 50) + 20)
    assert needed(run, {"event": "end", "reason": "steps"}) == pytest.approx(gpu.BESIDE + 3 + 20)
    timed = runs.create(small_recipe(), path=tmp_path / "timed")
    assert needed(timed, seconds=40) == pytest.approx(40 + 20)
    assert needed(timed, START, step, seconds=40) == pytest.approx(40 - 30 + 20)


@pytest.mark.parametrize("ended", gpu.TOO_SHORT)
def test_after_a_window_that_may_have_been_too_short_a_whole_one_is_asked_for(run, ended):
    assert needed(run, START, {"event": ended, "reason": "window"}) == gpu.WINDOW
    assert needed(run, {"event": "checkpoint", "step": 1}) != gpu.WINDOW


def platform(title: str, message: str) -> gr.Error:
    return gr.Error(message, title=f"ZeroGPU {title}", print_exception=False)


def spent(asked: int, left: int, wait: str = "5:32:00", more: str = "") -> gr.Error:
    figures = f"You have exceeded your free ZeroGPU quota ({asked}s requested vs. {left}s left). "
    return platform("quota exceeded", f"{figures}Try again in {wait}. {more}")


def refusal(
    error: Exception, run: runs.Run, job: str = "train", seconds: float = 30, kind: type = gpu_refusals.NoWindow
) -> str:
    with pytest.raises(TunerError) as caught:
        gpu_refusals.shorter_window(error, seconds, run, job)
    assert caught.type is kind
    (problem,) = caught.value.problems
    return problem


SUBSCRIBE = "Subscribe to Hugging Face PRO to get 40 min of ZeroGPU quota a day - https://huggingface.co/subscribe/pro"
# The platform's refusals in spaces' words, and a part of the sentence that must be told, and of no other.
REFUSALS = {
    "5 h 32 min": spent(30, 4),
    "1 h 5 min": spent(30, 4, "1:05:00", SUBSCRIBE),
    "many GPU jobs as one day": platform("quota exceeded", "You have exceeded your ZeroGPU runs limit. "),
    "many GPU jobs as one day ": platform("quota exceeded", "You have exceeded your ZeroGPU runs limit. " + SUBSCRIBE),
    "sign in": platform("quota exceeded", "Space app has reached its GPU limit. Retry later"),
    "sign in ": platform("quota exceeded", "No GPU was available after 60s. Retry later"),
    "within a minute": platform("queue timeout", "No GPU was available after 60s."),
    "running at once": platform("pending credits exceeded", "You have too many ZeroGPU credits allocated."),
    "long enough": platform("illegal duration", "The requested GPU duration (15s) is larger than the maximum allowed"),
    "Reload": platform("client error", "Expired ZeroGPU proxy token"),
    "at the moment": platform("client error", "No GPU was available"),
    "unknown error": platform("something new", "?"),
    "unknown error ": RuntimeError("ZeroGPU API /schedule error: 500"),
}


@pytest.mark.parametrize("words", REFUSALS)
def test_of_the_platforms_refusals_the_one_that_it_meant_is_told(words, run):
    told = refusal(REFUSALS[words], run, seconds=15)
    assert words.strip() in told
    assert not [other for other in REFUSALS if other.strip() != words.strip() and other.strip() in told]
    assert "None" not in told


def test_a_spent_quota_names_what_was_asked_for_and_what_is_left(run):
    told = refusal(spent(30, 4), run)
    assert told.index("30") < told.index("4 ") < told.index("5 h")
    assert "-" not in refusal(spent(30, -3), run)


def test_each_job_ends_with_its_own_next_step(run):
    told = {job: refusal(platform("client error", "No GPU was available"), run, job) for job in gpu_refusals.NEXT}
    assert set(told) == set(gpu.JOBS)
    assert len(set(told.values())) == 3
    assert all(text.endswith(gpu_refusals.NEXT[job]) for job, text in told.items())
    assert "safe" in told["train"]


@pytest.mark.parametrize(
    ("asked", "left", "expected"),
    [(30, 29, 29), (30, 10, 10), (60, 40, 20), (30, 9, None), (60, 19, None), (30, 30, None), (30, 40, None)],
)
def test_training_takes_the_seconds_that_are_left_where_they_are_enough(asked, left, expected, run):
    """A larger GPU is charged twice, so the platform's figures may be double those that were asked for."""
    if expected is None:
        assert "left" in refusal(spent(asked, left), run)
    else:
        assert gpu_refusals.shorter_window(spent(asked, left), 30, run, "train") == expected
    for job in ("chat", "merge"):  # which need all that they ask for
        assert "left" in refusal(spent(asked, left), run, job)


def test_too_long_a_window_is_halved_until_it_would_be_too_short(run):
    seconds, tried = 60.0, []
    for _ in range(10):
        try:
            seconds = gpu_refusals.shorter_window(REFUSALS["long enough"], seconds, run, "train")
        except TunerError:
            break
        tried.append(seconds)
    assert tried == [30, 15]
    assert all(shorter >= gpu_refusals.LEAST for shorter in tried)
    assert all(longer == 2 * shorter for longer, shorter in pairwise(tried))


def test_a_worker_that_was_ended_is_a_death_in_training_and_a_sentence_elsewhere(run):
    aborted = platform("worker error", "GPU task aborted")
    with pytest.raises(gpu_refusals.Died):
        gpu_refusals.shorter_window(aborted, 30, run, "train")
    for job in ("chat", "merge"):
        assert "try again" in refusal(aborted, run, job, kind=TunerError)
    assert "unknown error" in refusal(platform("worker error", "ValueError"), run, kind=TunerError)
    assert "unknown error" in refusal(platform("new error", "ValueError"), run)


@pytest.mark.parametrize(
    ("wait", "spoken"),
    [
        ("5:32:00", "5 h 32 min"),
        ("0:07:59.5", "7 min"),
        ("3:00:00", "3 h 0 min"),
        ("1 day, 0:10:00", "1 day 10 min"),
        ("2 days, 4:05:06", "2 days 4 h 5 min"),
    ],
)
def test_a_wait_is_spoken(wait, spoken):
    assert gpu_refusals.spoken(wait) == spoken


def test_what_a_window_needs_is_imported_before_it_opens(tmp_path):
    code = "import sys; from tuner import gpu; gpu.import_core(); print(*sys.modules)"
    imported = fresh.run(["-c", code], tmp_path).stdout.split()
    needed = {"tuner.inference.merge", "tuner.planning.plan", "tuner.training.window", "regex"}
    assert needed <= set(imported)


@pytest.mark.parametrize(("seconds", "shorter"), [(20, 10), (21, 10.5), (19, None)])
def test_half_a_window_is_requested_only_where_it_is_long_enough(seconds, shorter, run):
    for job in gpu_refusals.NEXT:
        if shorter:
            assert gpu_refusals.shorter_window(REFUSALS["long enough"], seconds, run, job) == shorter
        else:
            assert "long enough" in refusal(REFUSALS["long enough"], run, job, seconds)


def test_each_figure_of_a_refusal_stands_in_its_place(run, caplog):
    again = "The run is safe: open it again and press Resume."
    assert refusal(spent(30, 4), run) == (
        "Not enough GPU time left today: this needs 30 s, and 4 s is left. The full quota is back in 5 h 32 min. "
        + again
    )
    assert "needs 45 s, and 0 s is left" in refusal(spent(45, -3), run, "chat")
    assert not caplog.records
    unknown = "The GPU service failed with an unknown error"
    assert refusal(platform("something new", "?"), run) == f"{unknown} (something new). The run is safe."
    assert refusal(RuntimeError("error: 500"), run, "merge") == f"{unknown} (error: 500). {gpu_refusals.NEXT['merge']}"
    assert "run run: the GPU platform failed" in caplog.text
    assert "error: 500" in caplog.text


# What each kind of run asks for: its log, its budget in seconds, its forecast, and the seconds.
STEP = {"event": "step", "step": 5, "seconds": 30.0, "seconds_to_go": 50.0}
LATER = START | {"step": 5, "start_up": 11.0}
TRAINED = {"event": "end", "reason": "clock", "step": 9}
ASKED = [
    ([], None, None, gpu.BESIDE + 1.2 * gpu.WINDOW + gpu.SCORING),
    ([TRAINED], None, None, gpu.BESIDE + gpu.BESIDE + gpu.SCORING),
    ([TRAINED], None, FORESEEN, gpu.BESIDE + 7 + 20),
    ([START, TRAINED | {"reason": "window"}], None, FORESEEN, gpu.BESIDE + 1.2 * 100 + 20),
    ([START, LATER, TRAINED], 40, FORESEEN, gpu.BESIDE + 11 + 20),
    # The next worker may be a new one, though the last one had the base already.
    ([LATER, START, TRAINED], 40, FORESEEN, gpu.BESIDE + 11 + 20),
    ([START, STEP | {"seconds_to_go": 90.0}, STEP, LATER], None, FORESEEN, gpu.BESIDE + 1.2 * (11 + 50) + 20),
    ([STEP], None, FORESEEN, gpu.BESIDE + 1.2 * (7 + 50) + 20),
    ([{"event": "start", "step": 0}, STEP], None, FORESEEN, gpu.BESIDE + 1.2 * (7 + 50) + 20),
    ([START, STEP], 25, FORESEEN, 20),
    ([START, STEP | {"seconds": 2.0}, STEP | {"seconds": 12.0}], 40, FORESEEN, 28 + 20),
    ([{"event": "unscored", "reason": "window"}, {"event": "answered"}, TRAINED], 40, FORESEEN, gpu.BESIDE + 27),
    ([TRAINED, {"event": "unscored", "reason": "window"}, {"event": "answered"}], 40, FORESEEN, gpu.BESIDE + 27),
    ([{"event": "died"}, TRAINED], 40, FORESEEN, gpu.BESIDE + 27),
    ([{"event": "error"}, {"event": "checkpoint", "step": 1}], 40, FORESEEN, 40 + 20),
    ([{"event": "died"}, {"event": "queued"}, {"event": "start", "step": 0}], 30, FORESEEN, gpu.WINDOW),
    ([{"event": "error"}, {"event": "queued"}], 30, FORESEEN, gpu.WINDOW),
    ([TRAINED, {"event": "answered"}, {"event": "unscored", "reason": "window"}], 40, FORESEEN, gpu.WINDOW),
]


@pytest.mark.parametrize(("events", "budget", "foreseen", "seconds"), ASKED)
def test_the_seconds_asked_for_are_those_of_what_the_run_has_yet_to_do(events, budget, foreseen, seconds, run):
    run.write_json("plan.json", {"seconds": budget} | ({"forecast": foreseen} if foreseen else {}))
    for event in events:
        run.append(event)
    assert gpu.seconds_needed(run) == pytest.approx(seconds)


# Windows as the platform grants them


class Platform:
    """Stands in for ZeroGPU: refuses or grants each window in turn, and records what was asked for."""

    def __init__(self):
        self.answers: list = []  # for each window: an error, or the values that its worker yields
        self.asked: list[tuple] = []
        self.made_ready: list[tuple[str, int]] = []  # the run, and how many windows there had been

    def window(self, *arguments):
        """Ask for a window."""
        self.asked.append(arguments)
        for value in self.answers.pop(0):
            if isinstance(value, Exception):
                raise value
            yield value

    def seconds(self, run: runs.Run, merged: int, tokens: int, adapters: int = 1) -> float:
        """The length of a window for these models and answers."""
        return 100 * merged + 10 * adapters + tokens

    def make_ready(self, run: runs.Run) -> None:
        """Do what needs no GPU."""
        self.made_ready.append((run.id, len(self.asked)))


@pytest.fixture
def zero(monkeypatch) -> Platform:
    zero = Platform()
    monkeypatch.setattr(gpu, "ZERO", True)
    monkeypatch.setattr(gpu, "_window", zero.window)
    monkeypatch.setattr(gpu, "_make_ready", zero.make_ready)
    monkeypatch.setattr(gpu, "_window_for", zero.seconds)
    monkeypatch.setattr("tuner.inference.merge.on_the_cpu", lambda run, token: None)
    return zero


@pytest.mark.parametrize(
    ("training", "asked"),
    [(1, gpu_refusals.LEAST), (4.5, 13), (7, 16), (40, 56), (43.2, 59), (44.1, 60), (400, gpu.WINDOW)],
)
def test_a_window_of_training_is_as_long_as_the_run_needs_between_the_least_and_the_longest(
    training, asked, run, zero
):
    run.write_json("plan.json", {"forecast": FORESEEN | {"training": training, "scoring": 0.0}, "seconds": None})
    zero.answers = [[{}]]
    list(gpu.train(run))
    assert zero.asked == [("train", str(run.path), asked)]
    assert isinstance(zero.asked[0][2], int)
    assert zero.made_ready == [(run.id, 0)]


def test_a_refused_window_is_asked_for_again_for_as_many_seconds_as_there_are(run, zero):
    run.write_json("plan.json", {"forecast": FORESEEN, "seconds": None})
    too_long = REFUSALS["long enough"]
    zero.answers = [[too_long], [spent(30, 21)], [spent(21, 9)]]
    with pytest.raises(TunerError, match="9 s is left"):
        list(gpu.train(run))
    assert [asked[2] for asked in zero.asked] == [60, 30, 21]
    zero.asked.clear()
    zero.answers = [[too_long], [spent(30, 21)], [too_long], [{"event": "step"}]]
    assert list(gpu.train(run)) == [{"event": "heartbeat"}]
    assert [asked[2] for asked in zero.asked] == [60, 30, 21, 10]


def test_a_window_tells_what_happened_in_it_and_nothing_from_before(run, zero):
    run.write_json("plan.json", {"forecast": FORESEEN, "seconds": None})
    run.append({"event": "queued"})

    def training():
        for step in (1, 2):
            run.append({"event": "step", "step": step})
            yield None
        run.append({"event": "end", "reason": "window", "step": 2})

    zero.answers = [training()]
    said = [(e["event"], e.get("step")) for e in gpu.train(run)]
    assert said == [("step", 1), ("heartbeat", None), ("step", 2), ("heartbeat", None), ("end", 2)]


def test_a_window_whose_worker_was_killed_pauses_the_run_until_the_third_time(run, zero):
    run.write_json("plan.json", {"forecast": FORESEEN, "seconds": None})
    killed = platform("worker error", "GPU task aborted")
    zero.answers = [[{}, killed], [killed], [killed]]
    assert [e["event"] for e in gpu.train(run)] == ["heartbeat", "died"]
    assert [e["event"] for e in gpu.train(run)] == ["died"]
    with pytest.raises(TunerError) as caught:
        list(gpu.train(run))
    assert str(caught.value) == (
        f"Training of run {run.id} was killed 3 times before it learned anything new. The base model probably needs "
        "more memory than is available: choose a smaller one, set Precision to 4-bit, or use shorter rows. What was "
        "learned before is kept."
    )
    assert [asked[2] for asked in zero.asked] == [60, 60, 60]


def test_what_a_worker_refuses_is_raised_with_all_its_problems(run, zero):
    run.write_json("plan.json", {"forecast": FORESEEN, "seconds": None})
    zero.answers = [[{}, gpu_refusals.Refused(("One.", "Two."))]]
    with pytest.raises(TunerError) as caught:
        list(gpu.train(run))
    assert caught.value.problems == ("One.", "Two.")
    zero.answers = [[TunerError("Three.")]]  # not an error of the platform
    with pytest.raises(TunerError, match=r"^Three\.$"):
        gpu.merge(run)
    assert len(zero.asked) == 2


def test_elsewhere_an_unexpected_error_stays_what_it_is(run, zero, monkeypatch):
    monkeypatch.setattr(gpu, "ZERO", False)
    zero.answers = [[KeyError("odd")]]
    with pytest.raises(KeyError, match="odd"):
        gpu.merge(run)
    assert zero.made_ready == []


def test_answers_and_merges_ask_for_the_seconds_of_their_models_with_paths_and_plain_values(run, zero, tmp_path):
    other = runs.create(small_recipe(), path=tmp_path / "other")
    conversations = {"base": [{"role": "user", "content": "hey"}]}
    zero.answers = [[None, {"base": "a"}, None, {"base": "a b"}], [None, None, {"agrees": True}]]
    given = ({"adapter": run, "second": other}, {"merged": tmp_path / "merged"}, conversations)
    assert list(gpu.chat(*given, max_new_tokens=5, temperature=0.5, seed=3)) == [{"base": "a"}, {"base": "a b"}]
    assert gpu.merge(other) == {"agrees": True}
    adapters, merged = {"adapter": str(run.path), "second": str(other.path)}, {"merged": str(tmp_path / "merged")}
    sampling = {"temperature": 0.5, "seed": 3, "max_new_tokens": 5}
    assert zero.asked == [
        ("chat", str(run.path), 100 + 20 + 5, adapters, merged, conversations, sampling),
        ("merge", str(other.path), 200 + 10),
    ]
    assert zero.made_ready == [("run", 0), ("other", 1)]


# What a worker does


@timed
@pytest.mark.parametrize("age", [10.0, 100.0])
def test_a_cold_workers_window_opened_when_it_was_forked_and_a_warm_ones_now(age, monkeypatch):
    forked = int((time.clock_gettime(time.CLOCK_BOOTTIME) - age) * os.sysconf("SC_CLK_TCK"))
    stat = {"/proc/self/stat": f"7 (a (worker) S) {' '.join('SABCDEFGHIJKLMNOPQR')} {forked} 1 2 3"}
    monkeypatch.setattr(Path, "read_text", lambda path: stat[str(path)])
    frozen = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(True))
    monkeypatch.setattr(gpu, "_warm", False)
    assert time.monotonic() - gpu._opening_time() < 2
    assert (frozen, gpu._warm) == ([], False)
    monkeypatch.setattr(gpu, "ZERO", True)
    assert time.monotonic() - gpu._opening_time() == pytest.approx(age, abs=2)
    assert (frozen, gpu._warm) == ([True], True)
    assert time.monotonic() - gpu._opening_time() < 2
    assert frozen == [True]


def test_a_window_is_made_ready_with_the_runs_own_shape_and_tokenizer(run, monkeypatch):
    base, done = SimpleNamespace(folder="the base's folder"), []
    monkeypatch.setattr(gpu, "import_core", lambda: done.append("imports"))
    monkeypatch.setattr("tuner.models.fetch.base_of", {run: base}.get)
    monkeypatch.setattr("tuner.models.shape.shape_of", lambda base: done.append(base))
    monkeypatch.setattr("tuner.models.shape.load_tokenizer", done.append)
    gpu._make_ready(run)
    assert done == ["imports", base, "the base's folder"]


def test_jobs_are_given_what_was_asked_for(run, monkeypatch, tmp_path):
    monkeypatch.setattr("tuner.training.window.train", lambda *given: iter(given))
    assert list(gpu._train(run, 42, 1000.5)) == [run, 42, 1000.5]
    merges = {run.path: {"agrees": True}}
    monkeypatch.setattr("tuner.inference.merge.merge_here", lambda run, token: merges[run.path])
    assert gpu.merge(run) == {"agrees": True}
    asked, stopped = [], []

    def stream(loaded, conversations, sampling, stop):
        asked.append((loaded, conversations, sampling))
        yield from ({"base": "a"}, {"base": "a b"})
        stopped.append(stop.wait(20))

    monkeypatch.setattr("tuner.inference.generate.stream", stream)
    monkeypatch.setattr("tuner.inference.variants.load_variants", lambda runs, merged: (runs, merged))
    conversations = {"base": [], "adapter": []}
    merged_of = {name: tmp_path / name for name in ("merged", "weighted")}
    both = {"adapter": run, "second": runs.Run(tmp_path / "other")}
    answers = gpu.chat(both, merged_of, conversations, max_new_tokens=7, temperature=0.5, seed=3)
    assert [next(answers), next(answers)] == [{"base": "a"}, {"base": "a b"}]
    answers.close()
    assert stopped == [True]
    (((adapters, merged), asked_for, sampling),) = asked
    assert {name: a.path for name, a in adapters.items()} == {"adapter": run.path, "second": tmp_path / "other"}
    assert merged == merged_of
    assert (asked_for, sampling) == (conversations, Sampling(temperature=0.5, seed=3, max_new_tokens=7))


# The training process

# Writes down what it was given, then acts as its folder tells.
PROCESS = """#!/bin/sh
echo "$PWD $*" > "$4/given"
ps -o pgid= -p $$ > "$4/group"
cat > "$4/stdin"
echo "to stdout"
echo "to stderr" >&2
[ -f "$4/says" ] && cat "$4/says" >> "$4/events.jsonl"
. "$4/ends"
"""


@pytest.fixture
def process(run, monkeypatch, tmp_path):
    """Lets the run's training process say this event and end so; returns what is yielded."""
    (tmp_path / "python").write_text(PROCESS)
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(gpu, "POLL", 0.002)

    def process(ends: str, says: dict | None = None) -> list[str]:
        (run.path / "ends").write_text(ends)
        (run.path / "says").write_text(json.dumps(says) + "\n" if says else "")
        return [e["event"] for e in gpu.train(run) if e["event"] != "heartbeat"]

    return process


@pytest.fixture
def typed():
    """Lets this process have something to read on its standard input."""
    (reading, writing), before = os.pipe(), os.dup(0)
    os.write(writing, b"typed")
    os.close(writing)
    os.dup2(reading, 0)
    yield
    os.dup2(before, 0)
    for file in (before, reading):
        os.close(file)


def test_the_training_process_is_told_the_run_and_writes_to_its_log(run, process, typed, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert process("exit 0", {"event": "end", "reason": "steps"}) == ["end"]
    given = f"{ROOT} -m tuner train {run.path} --json\n"
    assert (run.path / "given").read_text() == given
    assert (run.path / "train.log").read_text() == "to stderr\n"
    (run.path / "given").unlink()
    list(gpu.train(runs.Run(Path("run"))))  # relative to where the app runs
    assert (run.path / "given").read_text() == given
    assert (run.path / "train.log").read_text() == "to stderr\n" * 2
    assert (run.path / "stdin").read_text() == ""
    assert int((run.path / "group").read_text()) != os.getpgid(0)  # what interrupts the app in its terminal passes it
    assert capfd.readouterr() == ("", "")


def test_the_end_of_the_training_process_is_told_by_what_it_logged(run, process):
    broke = {"event": "error", "problems": ["One.", "Two."], "time": 1.0}
    with pytest.raises(TunerError) as caught:
        process("exit 2", broke)
    assert caught.value.problems == ("One.", "Two.")
    for ends in ("exit 2", "exit 1"):  # the error is an old one now
        with pytest.raises(TunerError) as caught:
            process(ends)
        assert str(caught.value) == (
            f"Training of run {run.id} could not start. Whoever runs this app can find the reason in its train.log."
        )
    with pytest.raises(TunerError, match="One"):
        process("exit 2", broke | {"time": 2.0})  # the same once more
    with pytest.raises(TunerError, match="could not start"):
        process("exit 2")
    assert process("kill -9 $$") == ["died"]


ENVIRONMENTS = """
import importlib, os, sys, types
sys.modules["spaces"] = types.SimpleNamespace(GPU=lambda duration: lambda work: duration("job", "path", 42, "more"))
from tuner import gpu, runs, runs_cleanup
from tuner.models import device
from tuner.ui import run_queue
for line in sys.stdin:
    os.environ.update(pair.split("=") for pair in line.split())
    for module in (device, gpu, runs, runs_cleanup, run_queue):
        importlib.reload(module)
    assert not gpu._warm
    window = gpu._window if gpu.ZERO else gpu._window.__name__
    print(gpu.ZERO, window, gpu.WINDOW, run_queue.queue.places, runs.RUNS, runs_cleanup.LIMIT / 2**30)
"""


def test_settings_of_the_environment_count():
    names = ("SPACES_ZERO_GPU", "TUNER_WINDOW_SECONDS", "TUNER_TRAINING_SLOTS", "TUNER_RUNS", "TUNER_MAX_RUNS_GB")
    clean = {name: value for name, value in os.environ.items() if name not in names}
    settings = {
        "": "False _perform 60.0 2 runs 20.0",
        "SPACES_ZERO_GPU=0": "False _perform 60.0 2 runs 20.0",
        "SPACES_ZERO_GPU=1": "True 42 60.0 8 runs 20.0",
        "SPACES_ZERO_GPU=T": "True 42 60.0 8 runs 20.0",
        "SPACES_ZERO_GPU=True": "True 42 60.0 8 runs 20.0",
        "TUNER_WINDOW_SECONDS=45 TUNER_TRAINING_SLOTS=3": "True 42 45.0 3 runs 20.0",
        "TUNER_RUNS=mine TUNER_MAX_RUNS_GB=7": "True 42 45.0 3 mine 7.0",
    }
    command, given = [fresh.PYTHON, "-c", ENVIRONMENTS], "".join(f"{line}\n" for line in settings)
    told = subprocess.run(command, cwd=ROOT, env=clean, input=given, capture_output=True, text=True)
    assert told.stdout.splitlines() == list(settings.values()), told.stderr


def test_the_quota_is_back_at_once_where_no_time_is_named_and_is_read_on_zerogpu_alone(hub, monkeypatch, caplog):
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", hub.url)
    limited = []
    monkeypatch.setattr(gpu.hub_errors, "limit_waiting", lambda: limited.append(True))
    token = hub.user("alice", "oauth")
    assert gpu.quota(token) is None
    assert not hub.seen
    monkeypatch.setattr(gpu, "ZERO", True)
    assert gpu.quota("") is gpu.quota(None) is None  # nobody's quota, and not that of this machine's own token
    assert not hub.seen
    for back in (None, "2020-01-01T00:00:00.000Z"):
        hub.gpu_quota = {"base": 300, "current": 120, "resetsAt": back}
        assert gpu.quota(token) == {"left": 120, "resets_in": 0.0}
    assert len(limited) == 2
    assert not caplog.records
    assert gpu.quota("hf_unknown") is None
    assert "quota can't be read" in caplog.text
    assert "hf_unknown" not in caplog.text
