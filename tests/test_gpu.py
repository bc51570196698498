"""The door to the GPU without a stage: the training process and its deaths, seconds requested, refusals."""

import os
from itertools import pairwise

import fresh
import gradio as gr
import psutil
import pytest
from conftest import small_recipe

from tuner import gpu, runs
from tuner.errors import TunerError

SECRETS = {"HF_TOKEN": "hf_one", "HUGGING_FACE_HUB_TOKEN": "hf_two", "SOME_OTHER_TOKEN": "hf_three"}
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
    process.environment = process.environ()
    process.kill()
    return process, said + list(window)


def test_the_training_process_is_told_no_token(run, monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TUNER_SOMETHING", "else")
    process, _ = train_until_killed(run)
    assert process.environment["TUNER_SOMETHING"] == "else"
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


def refusal(error: Exception, run: runs.Run, job: str = "train", seconds: float = 30) -> str:
    with pytest.raises(TunerError) as caught:
        gpu._shorter_window(error, seconds, run, job)
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
    told = {job: refusal(platform("client error", "No GPU was available"), run, job) for job in gpu.NEXT}
    assert set(told) == set(gpu.JOBS)
    assert len(set(told.values())) == 3
    assert all(text.endswith(gpu.NEXT[job]) for job, text in told.items())
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
        assert gpu._shorter_window(spent(asked, left), 30, run, "train") == expected
    for job in ("chat", "merge"):  # which need all that they ask for
        assert "left" in refusal(spent(asked, left), run, job)


def test_too_long_a_window_is_halved_until_it_would_be_too_short(run):
    seconds, tried = 60.0, []
    for _ in range(10):
        try:
            seconds = gpu._shorter_window(REFUSALS["long enough"], seconds, run, "train")
        except TunerError:
            break
        tried.append(seconds)
    assert tried == [30, 15]
    assert all(shorter >= gpu.LEAST for shorter in tried)
    assert all(longer == 2 * shorter for longer, shorter in pairwise(tried))


def test_a_worker_that_was_ended_is_a_death_in_training_and_a_sentence_elsewhere(run):
    aborted = platform("worker error", "GPU task aborted")
    with pytest.raises(gpu.Died):
        gpu._shorter_window(aborted, 30, run, "train")
    for job in ("chat", "merge"):
        assert "try again" in refusal(aborted, run, job)
    assert "unknown error" in refusal(platform("worker error", "ValueError"), run)


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
    assert gpu._spoken(wait) == spoken


def test_what_a_window_needs_is_imported_before_it_opens(tmp_path):
    code = "import sys; from tuner import gpu; gpu.import_core(); print(*sys.modules)"
    imported = fresh.run(["-c", code], tmp_path).stdout.split()
    needed = {"tuner.inference.merge", "tuner.planning.plan", "tuner.training.window", "rouge_score.rouge_scorer"}
    assert needed <= set(imported)
