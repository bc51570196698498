"""The one door to the GPU: what trains, answers, evaluates or merges for the page passes through here.

On ZeroGPU everything goes through one decorated generator, so that all jobs share one warm worker. Elsewhere training
runs in a process of its own, so that runs do not share random states, a crash takes nobody along, and a closed page or
a restarted app leaves it going; what remains (answers, merges) runs in this process.
"""

import os
import subprocess
import sys
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

from tuner.errors import TunerError
from tuner.runs import Run

ZERO = os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "true")
KEPT = 2  # runs whose models stay loaded for the playground
POLL = 0.2  # seconds between looks at a run's events
START_UP = 30  # seconds beside the training itself that a window is asked for
LONGEST = 120  # seconds that a visitor's window may take

_loaded: OrderedDict[tuple, object] = OrderedDict()


def train(run: Run) -> Iterator[dict]:
    """Train and evaluate the run, yielding its events. Raises TunerError."""
    yield from _window("train", str(run.path), _train_seconds(run)) if ZERO else _train_in_a_process(run)


def chat(run: Run, conversations: dict[str, list[dict]], **sampling) -> Iterator[dict[str, str]]:
    """Answers to each variant's conversation, as they grow. Raises TunerError."""
    yield from _window("chat", str(run.path), 60, conversations, sampling)


def merge(run: Run) -> dict:
    """Merge the run's adapter; returns the merge check. Raises TunerError."""
    return next(iter(_window("merge", str(run.path), 60)))


def _train_in_a_process(run: Run) -> Iterator[dict]:
    start = len(run.events())
    with open(run.path / "train.log", "ab") as log:
        command = [sys.executable, "-m", "tuner", "train", str(run.path.resolve()), "--json"]
        process = subprocess.Popen(
            command,
            cwd=Path(__file__).resolve().parent.parent,
            env={k: v for k, v in os.environ.items() if not k.endswith("TOKEN")},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
        )
    while process.poll() is None:
        for event in run.events(start):
            start += 1
            yield event
        yield {"event": "heartbeat"}
        time.sleep(POLL)
    yield from run.events(start)
    if process.returncode:
        raise TunerError(*_last_words(run, process.returncode))


def _last_words(run: Run, code: int) -> list[str]:
    last = next((e for e in reversed(run.events()) if e["event"] == "error"), None)
    if last:
        return last["problems"]
    return [
        f"Training of run {run.id} ended before its time (status {code}). What it had learned is kept: start it again."
    ]


def _train_seconds(run: Run) -> int:
    return int(min(LONGEST, (run.plan["seconds"] or 60) + START_UP))


def _perform(job: str, path: str, seconds: int, *arguments) -> Iterator:
    """What a worker does: a run folder's path and a few plain values in, plain values out."""
    run = Run(Path(path))
    if job == "train":
        from tuner.train import train as train_here

        yield from train_here(run)
    elif job == "chat":
        from tuner import generate

        conversations, sampling = arguments
        yield from generate.stream(_models(run), conversations, generate.Sampling(**sampling))
    elif job == "merge":
        from tuner import export

        yield export.merge(run)


def _models(run: Run):
    """The run's loaded models; the least lately used are dropped."""
    from tuner import generate

    # A run that was trained on or merged since is loaded anew.
    key = (str(run.path), run.merged.is_dir(), (run.adapter / "adapter_model.safetensors").stat().st_mtime_ns)
    if key not in _loaded:
        _loaded[key] = generate.load(run)
    _loaded.move_to_end(key)
    while len(_loaded) > KEPT:
        _loaded.popitem(last=False)
    return _loaded[key]


if ZERO:
    import spaces

    _window = spaces.GPU(duration=lambda job, path, seconds, *arguments: seconds)(_perform)
else:
    _window = _perform
