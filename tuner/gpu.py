"""The one door to the GPU: everything that trains, answers, scores or merges for the page passes through here.

On ZeroGPU one decorated generator does it all, so that all jobs share one warm worker and its loaded base models.
Elsewhere each run trains in its own process: runs share no random state, a crash takes nothing else down, and
a closed page or a restarted app leaves it running. The rest runs in this process.
"""

import gc
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tuner import environment, hub_errors, run_files
from tuner.errors import TunerError
from tuner.gpu_refusals import LEAST, Died, Refused, explain, shorter_window
from tuner.heartbeat import with_heartbeat
from tuner.models.device import ZERO
from tuner.runs import Run

log = logging.getLogger(__name__)

WINDOW = float(os.environ.get("TUNER_WINDOW_SECONDS", 60))  # the longest window requested
BESIDE = 8  # seconds requested for a window of training beyond its training and scoring
SCORING = 30  # seconds of scoring, for runs without a forecast
DEATHS = 3  # workers that may die before anything was learned
TOO_SHORT = ("died", "unscored", "error")  # endings of a window that may have been too short
BEHIND = 10  # the nice value of a training process: the page comes first where they share a processor
POLL = 0.2  # seconds between looks at a run's events

_importing = threading.Lock()
_warm = False  # whether this worker has done a job
_broken: tuple[str, ...] | None = None  # the sentence, once the GPU is lost to this process


class Windows:
    """A fold of a run's events: how its windows began and ended."""

    def __init__(self):
        self.start_up: float | None = None  # the longest, in seconds
        self.deaths = 0  # workers that died since the run last learned or answered something

    def add(self, event: dict) -> None:
        """Take the next event into account."""
        if (start_up := event.get("start_up")) is not None:
            self.start_up = max(start_up, self.start_up or 0.0)
        if event["event"] in ("checkpoint", "answered", "end", "queued"):
            self.deaths = 0
        elif event["event"] == "died":
            self.deaths += 1


def train(run: Run, slot: int = 0) -> Iterator[dict]:
    """One window of training, or of the scoring after it; yields the run's events. Raises TunerError.

    Elsewhere than on ZeroGPU it has one of this machine's cards, if there are any: the one that belongs to `slot`.

    If the budget is longer than a window, the run is left paused, and the next call resumes it. A killed worker leaves
    it paused, too, unless DEATHS workers were killed before anything was learned.
    """
    reader = run.reader()
    reader.skip()  # what happened before this window
    try:
        for _ in _in_a_window(run) if ZERO else _in_a_process(run, slot):
            yield from reader.read()
            yield {"event": "heartbeat"}
    except Died:
        run.append({"event": "died"})
        if run.log.fold(Windows).deaths >= DEATHS:
            raise TunerError(
                f"Training of run {run.id} was killed {DEATHS} times before it learned anything new. The base model "
                "probably needs more memory than is available: choose a smaller one, set Precision to 4-bit, or use "
                "shorter rows. What was learned before is kept."
            ) from None
    yield from reader.read()


def chat(
    adapters: dict[str, Run],
    merged: dict[str, Path],
    conversations: dict[str, list[dict] | str],
    *,
    max_new_tokens: int,
    **sampling: float,
) -> Iterator[dict[str, str]]:
    """The answers so far to each variant's conversation, by variant. Raises TunerError.

    Variants are the base model, the adapters of runs on it and folders of merged models.
    """
    paths = ({variant: str(run.path) for variant, run in adapters.items()}, {v: str(f) for v, f in merged.items()})
    run = next(iter(adapters.values()))
    seconds = _window_for(run, len(merged), max_new_tokens, len(adapters))
    sampling["max_new_tokens"] = max_new_tokens
    yield from filter(None, _through("chat", run, seconds, *paths, conversations, sampling))


def merge(run: Run) -> dict:
    """Merge the run's adapter into its base, in a window only if the CPU can't; returns the merge check.

    Raises TunerError.
    """
    from tuner.inference import merge

    check = merge.existing_check(run) or (merge.on_the_cpu(run, token=False) if ZERO or cards() else None)
    # It loads the base as it was trained on, then in 16 bits, and what was merged.
    return check or next(filter(None, _through("merge", run, _window_for(run, 2, 0))))


def import_core() -> None:
    """Import what jobs need before a window opens; transformers' lazy modules break if two threads import them."""
    with _importing:
        import bitsandbytes  # noqa: F401
        import regex  # noqa: F401

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
    forecast = run.plan.get("forecast") or {"training": WINDOW, "scoring": SCORING, "start_up": BESIDE}
    ended = run.last_event("checkpoint", "answered", "end", *TOO_SHORT)
    if ended and ended["event"] in TOO_SHORT:
        return WINDOW
    # A later window may have had the base loaded already, but the next one's worker may be new.
    started = run.log.fold(Windows).start_up
    start_up = forecast["start_up"] if started is None else started
    if run.is_trained:
        return BESIDE + start_up + forecast["scoring"]
    last, budget = run.last_event("step") or {}, run.plan["seconds"]
    if budget:
        return max(0.0, budget - (last.get("seconds") or 0.0)) + forecast["scoring"]
    training = forecast["training"] if (left := last.get("seconds_to_go")) is None else start_up + left
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


def _window_for(run: Run, merged: int, tokens: int, adapters: int = 1) -> float:
    """Seconds to request for loading these models and answering with them; off ZeroGPU nothing is requested."""
    if not ZERO:
        return 0.0
    from tuner.planning.forecast import chat_seconds

    return max(LEAST, BESIDE + 1.2 * chat_seconds(run, merged, tokens, adapters))


def _in_a_window(run: Run) -> Iterator[dict]:
    yield from _through("train", run, max(LEAST, min(WINDOW, seconds_needed(run))))


def cards() -> list[str]:
    """This machine's GPUs, as CUDA_VISIBLE_DEVICES names them; none on a CPU, nor on ZeroGPU, which grants its own."""
    if ZERO:
        return []
    import torch

    count, given = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    return (given.split(",") if given else list(map(str, range(count))))[:count]


def _bind(run: Run, slot: int) -> dict[str, str]:
    """What a training's environment says of its card, which is cleared of the models that are kept for chat."""
    if not (visible := cards()):
        return {}
    number = slot % len(visible)
    if number == 0 and not _broken:  # where this process loads its models
        from tuner.models.load import forget_bases

        forget_bases()
        _free_memory("train", run)
    return {"CUDA_VISIBLE_DEVICES": visible[number]}


def _in_a_process(run: Run, slot: int) -> Iterator[None]:
    """Train in a separate process, yielding now and then. Raises TunerError and Died."""
    earlier_error = run.last_event("error")
    with open(run_files.appendable(run.path / "train.log"), "ab") as log_file:
        process = subprocess.Popen(
            [sys.executable, "-m", "tuner", "train", str(run.path.resolve()), "--json"],
            cwd=Path(__file__).resolve().parent.parent,
            env=environment.for_child() | _bind(run, slot),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log_file,
            **environment.OWN_GROUP,
        )
        os.setpriority(os.PRIO_PROCESS, process.pid, os.nice(0) + BEHIND)
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


def _through(job: str, run: Run, seconds: float, *arguments) -> Iterator:
    """Do the job in a window of this many seconds, or of as many as are granted. Raises TunerError and Died."""
    if ZERO:
        _make_ready(run)
    elif _broken:
        raise TunerError(*_broken)
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
            seconds = shorter_window(error, seconds, run, job)


def _perform(job: str, path: str, seconds: float, *arguments) -> Iterator:
    """What a worker does: a run folder's path and a few plain values in, plain values out."""
    global _broken
    run, opened, refused = Run(Path(path)), _opening_time(), None
    try:
        try:
            yield from JOBS[job](run, seconds, opened, *arguments)
        except Exception as error:
            refused = explain(error, job, run, is_worker=ZERO)
        finally:
            # Not before: an error's frames hold the job's tensors.
            if not (refused and refused.is_final):
                refused = _free_memory(job, run) or refused
            if refused and refused.is_final:
                _broken = refused.problems  # here, since perhaps nobody listens any more
        if refused:
            yield refused
    finally:
        if refused and refused.is_final and ZERO:
            os._exit(1)  # spaces has passed the sentence on, and never comes back to a worker that is gone


def _free_memory(job: str, run: Run) -> Refused | None:
    """Give back what the job held on the device; why the device is lost if that shows only now."""
    import torch

    from tuner.models.load import forget_batches

    forget_batches()
    gc.collect()
    try:
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
    except RuntimeError as error:  # kernels run later than they are called, and so do their errors
        return explain(error, job, run, is_worker=ZERO)
    return None


def _opening_time() -> float:
    """When this job's window opened, on time.monotonic()'s clock; a cold worker's opened when it was forked."""
    global _warm
    if not ZERO or _warm:
        return time.monotonic()
    _warm = True
    environment.drop_secrets()  # which a worker inherits from the app
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

    yield from with_heartbeat(lambda put: put(merge.merge_here(run, token=False)), lambda: None)


JOBS = {"train": _train, "chat": _chat, "merge": _merge}

if ZERO:
    import spaces

    _window = spaces.GPU(duration=lambda job, path, seconds, *arguments: seconds)(_perform)
else:
    _window = _perform
