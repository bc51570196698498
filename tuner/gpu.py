"""The one door to the GPU: everything that trains, answers, scores or merges for the page passes through here.

On ZeroGPU one decorated generator does it all, so that all jobs share one warm worker and its loaded base models.
Elsewhere each run trains in its own process: runs share no random state, a crash takes nothing else down, and
a closed page or a restarted app leaves it running. The rest runs in this process.
"""

import gc
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tuner import hub_errors
from tuner.errors import TunerError
from tuner.heartbeat import with_heartbeat
from tuner.runs import Run

log = logging.getLogger(__name__)

ZERO = os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")
WINDOW = float(os.environ.get("TUNER_WINDOW_SECONDS", 60))  # the longest window requested
LEAST = 10  # seconds; a shorter window is not worth loading a model for
BESIDE = 5  # seconds requested for a window of training beyond its training and scoring
CHATTING = 30  # seconds for an answer or a merge, including loading the model
DEATHS = 3  # workers that may die before anything was learned
TOO_SHORT = ("died", "unscored", "error")  # endings of a window that may have been too short
POLL = 0.2  # seconds between looks at a run's events

_importing = threading.Lock()
_warm = False  # whether this worker has done a job


@dataclass(frozen=True)
class Refused:
    """A TunerError as a value: an exception raised in a worker would lose all but its class name."""

    problems: tuple[str, ...]


class Died(Exception):
    """The process that did the job was killed."""


def train(run: Run) -> Iterator[dict]:
    """One window of training, or of the scoring after it; yields the run's events. Raises TunerError.

    If the budget is longer than a window, the run is left paused, and the next call resumes it. A killed worker leaves
    it paused, too, unless DEATHS workers were killed before anything was learned.
    """
    reader = run.reader()
    reader.read()  # what happened before this window
    try:
        for _ in _in_a_window(run) if ZERO else _in_a_process(run):
            yield from reader.read()
            yield {"event": "heartbeat"}
    except Died:
        run.append({"event": "died"})
        if _deaths(run) >= DEATHS:
            raise TunerError(
                f"Training of run {run.id} was killed {DEATHS} times before it learned anything new. The base model "
                "probably needs more memory than is available: choose a smaller one, set Precision to 4-bit, or use "
                "shorter rows. What was learned before is kept."
            ) from None
    yield from reader.read()


def chat(
    adapters: dict[str, Run], merged: dict[str, Path], conversations: dict[str, list[dict]], **sampling: float
) -> Iterator[dict[str, str]]:
    """The answers so far to each variant's conversation, by variant. Raises TunerError.

    Variants are the base model, the adapters of runs on it and folders of merged models.
    """
    paths = ({variant: str(run.path) for variant, run in adapters.items()}, {v: str(f) for v, f in merged.items()})
    yield from filter(None, _through("chat", next(iter(adapters.values())), CHATTING, *paths, conversations, sampling))


def merge(run: Run) -> dict:
    """Merge the run's adapter into its base; returns the merge check. Raises TunerError."""
    return next(filter(None, _through("merge", run, CHATTING)))


def import_core() -> None:
    """Import what jobs need before a window opens; transformers' lazy modules break if two threads import them."""
    with _importing:
        import bitsandbytes  # noqa: F401
        import rouge_score.rouge_scorer  # noqa: F401

        from tuner.inference import merge  # noqa: F401
        from tuner.planning import plan  # noqa: F401
        from tuner.training import window  # noqa: F401


def quota(token: str | None) -> dict | None:
    """The signed-in visitor's GPU seconds left today (left), and the seconds until the full quota is back (resets_in).

    None if they are unknown: off ZeroGPU, without a token, or when the Hub does not answer.
    """
    if not ZERO or not token:
        return None
    from datetime import datetime, timezone

    from huggingface_hub import HfApi

    hub_errors.limit_waiting()
    try:
        remaining = HfApi(token=token).get_zero_gpu_quota()
    except Exception as error:
        log.warning("the GPU quota can't be read: %s", type(error).__name__)  # its text might hold the token
        return None
    until = (remaining.resets_at - datetime.now(timezone.utc)).total_seconds() if remaining.resets_at else 0.0
    return {"left": remaining.remaining, "resets_in": max(0.0, until)}


def seconds_needed(run: Run) -> float:
    """Seconds of GPU time that the run still needs: loading, training, scoring."""
    forecast = run.plan.get("forecast") or {"training": WINDOW, "scoring": CHATTING, "start_up": BESIDE}
    ended = run.last_event("checkpoint", "answered", "end", *TOO_SHORT)
    if ended and ended["event"] in TOO_SHORT:
        return WINDOW
    start_up = (run.last_event("start") or {}).get("start_up", forecast["start_up"])
    if run.is_trained:
        return BESIDE + start_up + forecast["scoring"]
    last, budget = run.last_event("step"), run.plan["seconds"]
    if budget:
        return max(0.0, budget - (last["seconds"] if last else 0.0)) + forecast["scoring"]
    training = start_up + last["seconds_to_go"] if last else forecast["training"]
    # The estimate may be too low, and unused seconds are not charged.
    return BESIDE + 1.2 * training + forecast["scoring"]


def _make_ready(run: Run) -> None:
    """Do what needs no GPU before the window opens. A worker inherits what is imported here."""
    import_core()
    from tuner.models.fetch import base_of
    from tuner.models.shape import load_tokenizer, shape_of

    base = base_of(run)
    shape_of(base)
    load_tokenizer(base.folder)


def _in_a_window(run: Run) -> Iterator[dict]:
    yield from _through("train", run, max(LEAST, min(WINDOW, seconds_needed(run))))


def _in_a_process(run: Run) -> Iterator[None]:
    """Train in a separate process, yielding now and then. Raises TunerError and Died."""
    earlier_error = run.last_event("error")
    with open(run.path / "train.log", "ab") as log_file:
        command = [sys.executable, "-m", "tuner", "train", str(run.path.resolve()), "--json"]
        process = subprocess.Popen(
            command,
            cwd=Path(__file__).resolve().parent.parent,
            env={k: v for k, v in os.environ.items() if not k.endswith("TOKEN")},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log_file,
            start_new_session=True,
        )
    while process.poll() is None:
        yield
        time.sleep(POLL)
    if process.returncode < 0:
        raise Died
    if process.returncode:
        error = run.last_event("error")
        if error and error != earlier_error:
            raise TunerError(*error["problems"])
        raise TunerError(
            f"Training of run {run.id} could not start. Whoever runs this app can find the reason in its train.log."
        )


def _deaths(run: Run) -> int:
    """Workers that died since the run last learned or answered something."""
    count = 0
    for event in reversed(run.events()):
        if event["event"] in ("checkpoint", "answered", "end", "queued"):
            break
        count += event["event"] == "died"
    return count


def _through(job: str, run: Run, seconds: float, *arguments) -> Iterator:
    """Do the job in a window of this many seconds, or of as many as are granted. Raises TunerError and Died."""
    if ZERO:
        _make_ready(run)
    while True:
        seconds = int(seconds)  # spaces drops the fraction, and the worker must not count on it
        try:
            for value in _window(job, str(run.path), seconds, *arguments):
                if isinstance(value, Refused):
                    raise TunerError(*value.problems)
                yield value
            return
        except TunerError:
            raise
        except Exception as error:
            if not ZERO:
                raise
            seconds = _shorter_window(error, seconds, run, job)


def _shorter_window(error: Exception, seconds: float, run: Run, job: str) -> float:
    """The seconds to request instead after the platform refused. Raises TunerError if there are none, and Died."""
    title, message = getattr(error, "title", "").removeprefix("ZeroGPU "), str(getattr(error, "message", error))
    if (title, message) == ("worker error", "GPU task aborted"):
        if job == "train":
            raise Died from None
        raise TunerError(
            "The GPU was taken away before the answer was complete. Nothing is lost: try again."
        ) from None
    figures = re.search(r"(\d+)s requested vs\. (-?\d+)s left", message)
    if title == "quota exceeded" and figures and job == "train":
        charged, left = map(int, figures.groups())  # a larger GPU is charged at a multiple of its seconds
        if LEAST <= (possible := int(left * seconds / charged)) < seconds:
            return possible
    if title == "illegal duration" and seconds / 2 >= LEAST:
        return seconds / 2
    for kind, pattern, sentence in REFUSALS:
        if title == kind and (match := re.search(pattern, message)):
            details = {"wait": _spoken(match[1])} if match.groups() else {}
            if figures:
                details |= {"requested": figures[1], "left": max(0, int(figures[2]))}
            raise TunerError(f"{sentence.format(**details)} {NEXT[job]}") from None
    log.error("run %s: the GPU platform failed", run.id, exc_info=error)
    # This may happen every time, so the message does not promise that resuming will help.
    safe = "The run is safe." if job == "train" else NEXT[job]
    raise TunerError(f"The GPU service failed with an unknown error ({title or message}). {safe}") from None


# ZeroGPU's refusals: the error's title, a pattern of its message, and what the visitor reads.
REFUSALS = [
    (
        "quota exceeded",
        r"s left\)\. Try again in (.*)\. ",
        "Not enough GPU time left today: this needs {requested} s, and {left} s is left. The full quota is back in "
        "{wait}.",
    ),
    ("quota exceeded", "runs limit", "You have started as many GPU jobs as one day allows."),
    (
        "quota exceeded",
        "",
        "This page has used up its own GPU time. Open it on huggingface.co and sign in to use yours.",
    ),
    ("queue timeout", "", "No GPU became free within a minute because many people are waiting."),
    (
        "pending credits exceeded",
        "",
        "Too many of your GPU jobs are running at once. Wait until one of them has finished.",
    ),
    ("illegal duration", "", "The GPU service allows no window long enough to load the model."),
    ("client error", "Expired", "The page has been open for too long. Reload it."),
    ("client error", "", "No GPU is available at the moment."),
]
NEXT = {
    "train": "The run is safe: open it again and press Resume.",
    "chat": "Nothing is lost: send the message again later.",
    "merge": "Nothing is lost: try the merge again later.",
}


def _spoken(wait: str) -> str:
    """'5:32:00' as '5 h 32 min', '1 day, 0:10:00' as '1 day 10 min'."""
    days, _, clock = wait.rpartition(", ")
    hours, minutes, _ = (int(float(part)) for part in clock.split(":"))
    return " ".join(p for p in (days, f"{hours} h" * bool(hours), f"{minutes} min") if p)


def _perform(job: str, path: str, seconds: float, *arguments) -> Iterator:
    """What a worker does: a run folder's path and a few plain values in, plain values out."""
    run, opened = Run(Path(path)), _opening_time()
    try:
        yield from JOBS[job](run, seconds, opened, *arguments)
    except TunerError as error:
        yield Refused(error.problems)
    except Exception:
        log.exception("run %s: %s broke", run.id, job)
        safe = "What the run learned is kept." if job == "train" else NEXT[job]
        yield Refused((f"Tuner failed unexpectedly (run {run.id}). {safe}",))


def _opening_time() -> float:
    """When this job's window opened, on time.monotonic()'s clock; a cold worker's opened when it was forked."""
    global _warm
    if not ZERO or _warm:
        return time.monotonic()
    _warm = True
    # The Trainer collects garbage when it starts, and going through all inherited objects would copy their memory.
    gc.freeze()
    # Field 22 of stat: when this process was forked, in clock ticks since the machine booted.
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.monotonic() - age


def _train(run: Run, seconds: float, opened: float) -> Iterator[dict]:
    from tuner.training.window import train

    yield from train(run, seconds, opened)


def _chat(
    run: Run, seconds: float, opened: float, adapters: dict, merged: dict, conversations: dict, sampling: dict
) -> Iterator[dict | None]:
    from tuner.inference import generate
    from tuner.inference.variants import load_variants

    stop = threading.Event()

    def answer(put) -> None:
        runs = {variant: Run(Path(path)) for variant, path in adapters.items()}
        loaded = load_variants(runs, {variant: Path(path) for variant, path in merged.items()})
        for texts in generate.stream(loaded, conversations, generate.Sampling(**sampling), stop):
            put(texts)

    yield from with_heartbeat(answer, stop.set)


def _merge(run: Run, seconds: float, opened: float) -> Iterator[dict | None]:
    from tuner.inference import merge

    yield from with_heartbeat(lambda put: put(merge.merge(run)), lambda: None)


JOBS = {"train": _train, "chat": _chat, "merge": _merge}

if ZERO:
    import spaces

    _window = spaces.GPU(duration=lambda job, path, seconds, *arguments: seconds)(_perform)
else:
    _window = _perform
