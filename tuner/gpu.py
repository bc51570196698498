"""The one door to the GPU: what trains, answers, scores or merges for the page passes through here.

On ZeroGPU everything goes through one decorated generator, so that all jobs share one warm worker and the base models
that it has loaded. Elsewhere training runs in a process of its own, so that runs do not share random states, a crash
takes nobody along, and a closed page or a restarted app leaves it going; the rest runs in this process.
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
WINDOW = float(os.environ.get("TUNER_WINDOW_SECONDS", 60))  # the longest that is asked for at once
LEAST = 10  # seconds: less is not worth loading a model for
BESIDE = 5  # seconds that a window of training is asked for beyond its training and scoring
CHATTING = 30  # seconds for an answer or a merge, the loading of the model included
DEATHS = 3  # workers that may end before anything was learned
TOO_SHORT = ("died", "unscored", "error")  # how a window ends that may have been too short
POLL = 0.2  # seconds between looks at a run's events

_importing = threading.Lock()
_warm = False  # whether this worker has done a job


@dataclass(frozen=True)
class Refused:
    """A TunerError on its way out of the worker, which lets only an ordinary exception's class name through."""

    problems: tuple[str, ...]


class Died(Exception):
    """The process that did the job is gone."""


def train(run: Run) -> Iterator[dict]:
    """One window of training, or of the scoring that follows: yields the run's events. Raises TunerError.

    A budget that is longer than a window leaves the run paused, and the next call goes on. So does a worker that was
    ended from outside, unless several did before they learned anything.
    """
    start = len(run.events())
    try:
        for _ in _in_a_window(run) if ZERO else _in_a_process(run):
            for event in run.events(start):
                start += 1
                yield event
            yield {"event": "heartbeat"}
    except Died:
        run.append({"event": "died"})
        if _deaths(run) >= DEATHS:
            raise TunerError(
                f"Training of run {run.id} was ended from outside {DEATHS} times before it learned anything. Most "
                "likely the model needs more memory than there is: take a smaller one, hold it in 4 bits, or take "
                "shorter rows. What was learned before is kept."
            ) from None
    yield from run.events(start)


def chat(
    adapters: dict[str, Run], merged: dict[str, Path], conversations: dict[str, list[dict]], **sampling
) -> Iterator[dict[str, str]]:
    """Answers to each variant's conversation, as they grow: of the base, of runs' adapters on it and of merged models,
    by variant. Raises TunerError."""
    paths = ({variant: str(run.path) for variant, run in adapters.items()}, {v: str(f) for v, f in merged.items()})
    yield from filter(None, _through("chat", next(iter(adapters.values())), CHATTING, *paths, conversations, sampling))


def merge(run: Run) -> dict:
    """Merge the run's adapter; returns the merge check. Raises TunerError."""
    return next(filter(None, _through("merge", run, CHATTING)))


def import_core() -> None:
    """Import what jobs need, before a window opens; one at a time: transformers' lazy modules bear no two."""
    with _importing:
        import bitsandbytes  # noqa: F401

        from tuner.training import window  # noqa: F401


def quota(token: str | None) -> dict | None:
    """The GPU seconds that the signed-in visitor has left today, and those until they are whole again.

    None where they can't be known: off ZeroGPU, without a token, or when the Hub does not tell.
    """
    if not ZERO or not token:
        return None
    from datetime import datetime, timezone

    from huggingface_hub import HfApi

    hub_errors.limit_waiting()
    try:
        found = HfApi(token=token).get_zero_gpu_quota()
    except Exception as error:
        log.warning("the GPU quota can't be read: %s", type(error).__name__)  # its text might hold the token
        return None
    until = (found.resets_at - datetime.now(timezone.utc)).total_seconds() if found.resets_at else 0.0
    return {"left": found.remaining, "resets_in": max(0.0, until)}


def seconds_needed(run: Run) -> float:
    """Seconds of GPU time that the run still needs: loading, training, scoring."""
    foreseen = run.plan.get("forecast") or {"training": WINDOW, "scoring": CHATTING, "start_up": BESIDE}
    ended = run.last_event("checkpoint", "answered", "end", *TOO_SHORT)
    if ended and ended["event"] in TOO_SHORT:
        return WINDOW
    start_up = (run.last_event("start") or {}).get("start_up", foreseen["start_up"])
    if run.is_trained:
        return BESIDE + start_up + foreseen["scoring"]
    last, budget = run.last_event("step"), run.plan["seconds"]
    if budget:
        return max(0.0, budget - (last["seconds"] if last else 0.0)) + foreseen["scoring"]
    training = start_up + last["seconds_to_go"] if last else foreseen["training"]
    # An estimate may be off, and what is not used is not charged.
    return BESIDE + 1.2 * training + foreseen["scoring"]


def _make_ready(run: Run) -> None:
    """All that a window needs and that can be had before it opens. A worker inherits what is imported here."""
    import_core()
    from tuner.models.fetch import base_of
    from tuner.models.shape import load_tokenizer, shape_of

    base = base_of(run)
    shape_of(base)
    load_tokenizer(base.folder)


def _in_a_window(run: Run) -> Iterator[dict]:
    yield from _through("train", run, max(LEAST, min(WINDOW, seconds_needed(run))))


def _in_a_process(run: Run) -> Iterator[None]:
    """Train in a process of its own, yielding now and then. Raises TunerError and Died."""
    before = len(run.events())
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
        said = next((e for e in reversed(run.events(before)) if e["event"] == "error"), {})
        raise TunerError(*said.get("problems", [f"Training of run {run.id} could not begin. Try again."]))


def _deaths(run: Run) -> int:
    """Workers that died since the run last learned or answered something."""
    count = 0
    for event in reversed(run.events()):
        if event["event"] in ("checkpoint", "answered", "end", "queued"):
            break
        count += event["event"] == "died"
    return count


def _through(job: str, run: Run, seconds: float, *arguments) -> Iterator:
    """Do the job in a window of so many seconds, or of what can be had. Raises TunerError and Died."""
    if ZERO:
        _make_ready(run)
    while True:
        seconds = int(seconds)  # spaces drops the rest, and the worker must not count on it
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
            seconds = _other_seconds(error, seconds, run, job)


def _other_seconds(error: Exception, seconds: float, run: Run, job: str) -> float:
    """What to ask for instead, after the platform refused; else raises what a person is told, or Died."""
    title, said = getattr(error, "title", "").removeprefix("ZeroGPU "), str(getattr(error, "message", error))
    if (title, said) == ("worker error", "GPU task aborted"):
        if job == "train":
            raise Died from None
        raise TunerError("The GPU was taken away before the answer was whole. Nothing is lost: try again.") from None
    figures = re.search(r"(\d+)s requested vs\. (-?\d+)s left", said)
    if title == "quota exceeded" and figures and job == "train":
        asked, left = map(int, figures.groups())
        if LEAST <= (possible := int(left * seconds / asked)) < seconds:
            return possible
    if title == "illegal duration" and seconds / 2 >= LEAST:
        return seconds / 2
    for kind, pattern, words in REFUSALS:
        if title == kind and (found := re.search(pattern, said)):
            parts = {"wait": _spoken(parts[-1])} if (parts := found.groups()) else {}
            if figures:
                parts |= {"asked": figures[1], "left": max(0, int(figures[2]))}
            raise TunerError(f"{words.format(**parts)} {NEXT[job]}") from None
    log.error("run %s: the GPU platform failed", run.id, exc_info=error)
    raise TunerError(
        f"The GPU service failed in a way that is not known here ({title or said}). {NEXT[job]}"
    ) from None


# ZeroGPU's refusals: the error's title, what its message holds, and what a person is told.
REFUSALS = [
    (
        "quota exceeded",
        r"s left\)\. Try again in (.*)\. ",
        "Your GPU time for today does not reach: {asked} seconds were asked for, {left} are left. It is whole again "
        "in {wait}.",
    ),
    ("quota exceeded", "runs limit", "You have started as many GPU jobs as a day allows."),
    (
        "quota exceeded",
        "",
        "This page has no GPU time of its own left. Open it on huggingface.co and sign in, so that your own counts.",
    ),
    ("queue timeout", "", "No GPU became free within a minute: many people are waiting."),
    ("pending credits exceeded", "", "Too many of your GPU jobs run at once. Wait until one of them has ended."),
    ("illegal duration", "", "The GPU service grants no window that is long enough to load the model."),
    ("client error", "Expired", "The page has been open for too long. Reload it."),
    ("client error", "", "No GPU is to be had at the moment."),
]
NEXT = {
    "train": "The run is safe: open it again and press Go on.",
    "chat": "Nothing is lost: send it again then.",
    "merge": "Nothing is lost: try it again then.",
}


def _spoken(wait: str) -> str:
    """'5:32:00' as '5 h 32 min', '1 day, 0:10:00' as '1 day 10 min'."""
    days, _, clock = wait.rpartition(", ")
    hours, minutes, _ = (int(float(part)) for part in clock.split(":"))
    return " ".join(p for p in (days, f"{hours} h" * bool(hours), f"{minutes} min") if p)


def _perform(job: str, path: str, seconds: float, *arguments) -> Iterator:
    """What a worker does: a run folder's path and a few plain values in, plain values out."""
    run, opened = Run(Path(path)), _opened()
    try:
        yield from JOBS[job](run, seconds, opened, *arguments)
    except TunerError as error:
        yield Refused(error.problems)
    except Exception:
        log.exception("run %s: %s broke", run.id, job)
        yield Refused((f"Something broke that we did not foresee (run {run.id}). Nothing is lost: try again.",))


def _opened() -> float:
    """When this job's window opened, on time.monotonic()'s clock: a cold worker's did when it was forked."""
    global _warm
    if not ZERO or _warm:
        return time.monotonic()
    _warm = True
    # The Trainer collects garbage as it begins; to look through all that was inherited would also copy its memory.
    gc.freeze()
    # Field 22 of stat: when this process was forked, in clock ticks since the machine started.
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
