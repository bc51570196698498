"""Why a job got no GPU window, or broke in it: the platform's errors and the device's, as sentences."""

import logging
import re
from dataclasses import dataclass

from tuner.errors import TunerError
from tuner.models import device_errors
from tuner.run_files import deleted
from tuner.runs import Run

log = logging.getLogger(__name__)

LEAST = 10  # seconds; a shorter window is not worth loading a model for


@dataclass(frozen=True)
class Refused:
    """A TunerError as a value: an exception raised in a worker would lose all but its class name."""

    problems: tuple[str, ...]
    is_final: bool = False  # whether the GPU is lost to the process that says this


class NoWindow(TunerError):
    """The platform gave no window, and would give another run none either."""


class Died(Exception):
    """The process that did the job was killed."""


def shorter_window(error: Exception, seconds: float, run: Run, job: str) -> float:
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
            details = {"wait": spoken(match[1])} if match.groups() else {}
            if figures:
                details |= {"requested": figures[1], "left": max(0, int(figures[2]))}
            raise NoWindow(f"{sentence.format(**details)} {NEXT[job]}") from None
    log.error("run %s: the GPU platform failed", run.id, exc_info=error)
    # This may happen every time, so the message does not promise that resuming will help.
    safe = "The run is safe." if job == "train" else NEXT[job]
    kind = TunerError if title == "worker error" else NoWindow  # a worker had its window
    raise kind(f"The GPU service failed with an unknown error ({title or message}). {safe}") from None


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


def spoken(wait: str) -> str:
    """'5:32:00' as '5 h 32 min', '1 day, 0:10:00' as '1 day 10 min'."""
    days, _, clock = wait.rpartition(", ")
    hours, minutes, _ = (int(float(part)) for part in clock.split(":"))
    return " ".join(p for p in (days, f"{hours} h" * bool(hours), f"{minutes} min") if p)


# What a visitor reads if a job ran out of memory. Training has a sentence of its own.
OUT_OF_MEMORY = {
    "chat": "These answers ran out of memory. Start a new conversation, ask for shorter answers, choose "
    "fewer runs to compare, or train with 4-bit precision or a smaller base model.",
    "merge": "Merging run {run} ran out of memory. Its adapter works without being merged. To merge it, use a machine "
    "with more memory: download the run and use `tuner merge` there.",
}
FRESH = {
    "train": "What the run learned is kept. Resume it: a fresh worker will continue it.",
    "chat": "Nothing is lost: send the message again, and a fresh worker will answer it.",
    "merge": "Nothing is lost: try the merge again, and a fresh worker will do it.",
}
RESTART = "This app can't use the GPU again until it is restarted: whoever runs it has to do that."


def explain(error: Exception, job: str, run: Run, *, is_worker: bool) -> Refused:
    """What broke a job, in plain words; `is_worker` tells whether a new process can follow this one."""
    if reason := device_errors.breakdown(error):
        log.error("run %s: %s broke the GPU", run.id, job, exc_info=error)
        # In training the sentences are made where what the run keeps is known.
        told = [link.problems for link in device_errors.chain(error) if isinstance(link, TunerError)]
        broken = device_errors.BROKEN.format(reason=reason)
        return Refused(told[0] if told else (f"{broken} {FRESH[job] if is_worker else RESTART}",), is_final=True)
    if isinstance(problem := deleted(run.path) or error, TunerError):
        return Refused(problem.problems)
    if device_errors.is_out_of_memory(error) and job in OUT_OF_MEMORY:
        return Refused((OUT_OF_MEMORY[job].format(run=run.id),))
    log.error("run %s: %s broke", run.id, job, exc_info=error)
    safe = "What the run learned is kept." if job == "train" else NEXT[job]
    return Refused((f"Tuner failed unexpectedly (run {run.id}). {safe}",))
