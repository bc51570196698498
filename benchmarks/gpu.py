"""Tuner on a GPU, section by section: what works, how fast, in how much memory. No network, no downloads.

    python benchmarks/gpu.py --list
    python benchmarks/gpu.py all --out figures.jsonl
    python benchmarks/gpu.py speed memory --only 8B nf4
    python benchmarks/gpu.py all --rehearse

Base models have Qwen3's shapes and random weights (gpu_bases.py). Each figure is one JSON line on standard output, and
in the file of --out. A section ends within its seconds; what was left out then stands in its last line, and --only
measures it later. Cases run in processes of their own, so that one which crashes takes no other with it.
--rehearse does all of it with tiny models on whatever machine there is; its lines are marked and mean nothing else.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)]

SECONDS = 450  # for a section
QUIET = {"TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}
QUIET |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}


@dataclass(frozen=True)
class Scale:
    """How large the cases are: base models, and the rows and tokens of a step."""

    sizes: tuple[str, ...] = ("0.6B", "1.7B", "4B", "8B")
    main: str = "1.7B"  # for what is not measured on every size
    fewer: tuple[tuple[str, str], ...] = (("0.6B", "nf4"), ("1.7B", "nf4"), ("1.7B", "none"), ("8B", "nf4"))
    rows: int = 16
    other_rows: tuple[int, ...] = (1, 4, 64)
    length: int = 512  # tokens
    other_lengths: tuple[int, ...] = (128, 2048)
    steps: int = 12
    answers: tuple[int, ...] = (8, 32, 64)
    answer_tokens: int = 48


REAL = Scale()
TINY = Scale(("0.6B", "8B"), "0.6B", (("0.6B", "nf4"),), 4, (1,), 64, (32,), 6, (2, 4), 4)
BASES = {"llama_adapter": "8-llama"}  # of methods that don't work on the others
PRECISIONS = ("nf4", "int8", "none")
# Base, precision and method of what is done several times. The checkpoints of a full fine-tune are large, so it gets a
# smaller base.
KINDS = (("0.6B", "nf4", "lora"), ("0.6B", "none", "lora"), ("0.6B", "none", "adalora"), ("8-layers", "none", "full"))
OTHER_METHODS = (*(("0.6B", "none", method) for method in ("dora", "adalora", "prefix_tuning")), KINDS[-1])
Case = dict[str, str | int | tuple[int, ...]]


def _on(size: str, precision: str, rows: int, length: int, steps: int, **more: str | int) -> Case:
    return {"size": size, "precision": precision, "rows": rows, "length": length, "steps": steps, **more}


def _methods(scale: Scale) -> list[Case]:
    from tuner.methods.registry import METHODS

    length = min(64, scale.length)
    return [_on(BASES.get(m, "8-layers"), p, 4, length, 3, method=m) for p, m in product(PRECISIONS, METHODS)]


def _speed(scale: Scale) -> list[Case]:
    return [
        *(_on(s, p, scale.rows, scale.length, scale.steps) for s, p in product(scale.sizes, ("nf4", "none"))),
        _on(scale.main, "int8", scale.rows, scale.length, scale.steps),
        *(_on(scale.main, "nf4", rows, scale.length, scale.steps) for rows in scale.other_rows),
        *(_on(scale.main, "nf4", 4, length, scale.steps) for length in scale.other_lengths),
    ]


def _memory(scale: Scale) -> list[Case]:
    half = scale.rows // 2
    return [
        *(_on(s, p, half, scale.length, 3, method="lora") for s, p in product(scale.sizes, ("nf4", "none"))),
        _on(scale.main, "int8", half, scale.length, 3, method="lora"),
        *(_on(scale.main, "nf4", rows, scale.length, 3, method="lora") for rows in scale.other_rows),
        *(_on(scale.main, "nf4", 4, length, 3, method="lora") for length in scale.other_lengths),
        *(_on(*base, half, scale.length, 3, method=method) for *base, method in OTHER_METHODS),
    ]


def _start_up(scale: Scale) -> list[Case]:
    return [_on(*kind, 4, 64, 2) for kind in scale.fewer]


def _scoring(scale: Scale) -> list[Case]:
    answers = {"answers": scale.answers, "answer_tokens": scale.answer_tokens}
    return [_on(*kind, 4, min(256, scale.length), 2) | answers for kind in scale.fewer]


def _determinism(scale: Scale) -> list[Case]:
    return [
        _on(*base, 4, min(256, scale.length), scale.steps // 2, method=method, algorithms=algorithms)
        for algorithms, (*base, method) in product(("default", "deterministic"), KINDS)
    ]


def _out_of_memory(scale: Scale) -> list[Case]:
    return [_on(*base, scale.rows, scale.length, 3, method=method) for *base, method in KINDS]


def _plain_trl(scale: Scale) -> list[Case]:
    return [_on(*kind, scale.rows, scale.length, 2 * scale.steps) for kind in scale.fewer]


@dataclass(frozen=True)
class Section:
    """A group of cases that are measured in the same way."""

    title: str
    cases: Callable[[Scale], list[Case]]
    apart: str | None = None  # cases that differ in this are measured in processes of their own


SECTIONS = {
    "environment": Section("GPU, driver, libraries, memory", lambda scale: [{}]),
    "methods": Section("every method and precision: three steps, resumed before the last one, and scored", _methods),
    "speed": Section("tokens per second by size, precision, rows and length; how busy the GPU is", _speed),
    "memory": Section("estimated and measured memory, part by part", _memory),
    "start_up": Section("from the start of a process to the first step; cold and warm", _start_up),
    "scoring": Section("answers of base and adapter in one batch, or one after the other", _scoring),
    "determinism": Section("equal runs, and resumed ones: how far they differ", _determinism, apart="algorithms"),
    "out_of_memory": Section("what a job that runs out of memory leaves behind", _out_of_memory),
    "plain_trl": Section("beside a plain TRL script: speed, cold start, memory", _plain_trl),
}


def name_of(case: Case) -> str:
    """The case's values, such as "1.7B nf4 16 512 12"."""
    return " ".join(map(str, case.values()))


def measure(section: str, cases: list[Case], options: argparse.Namespace) -> Iterator[dict]:
    """The section's results, one for each case, and a last one if some were left out."""
    deadline = time.monotonic() + options.seconds
    waiting, apart = list(cases), SECTIONS[section].apart
    while waiting and time.monotonic() < deadline:
        group = [case for case in waiting if case.get(apart) == waiting[0].get(apart)]
        began = time.monotonic()
        with Worker(section, group, options, deadline) as process:
            for line in process.stdout:
                del waiting[0]
                yield json.loads(line)
        if process.returncode and time.monotonic() < deadline:
            reason = f"its process ended with status {process.returncode}"
            seconds = round(time.monotonic() - began, 3)
            yield {"section": section, **waiting.pop(0), "outcome": "failed", "reason": reason, "seconds": seconds}
    if waiting:
        reason = f"the {options.seconds:g} seconds of this section were over"
        left = [name_of(case) for case in waiting]
        yield {"section": section, "outcome": "left out", "reason": reason, "cases": left}


class Worker:
    """A process that measures cases and is killed, with all that it started, at the deadline or when left."""

    def __init__(self, section: str, cases: list[Case], options: argparse.Namespace, deadline: float):
        job = {"section": section, "cases": cases, "scratch": str(options.scratch), "rehearsal": options.rehearse}
        options.scratch.mkdir(parents=True, exist_ok=True)
        self.runs = tempfile.mkdtemp(prefix="runs-", dir=options.scratch)
        command = [sys.executable, str(HERE / "gpu_work.py"), json.dumps(job)]
        self.process = subprocess.Popen(
            command,
            env=os.environ | QUIET | {"TUNER_RUNS": self.runs},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.timer = threading.Timer(max(0.0, deadline - time.monotonic()), self.kill)

    def kill(self) -> None:
        """Kill the process and those that it started."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)

    def __enter__(self) -> subprocess.Popen:
        self.timer.start()
        return self.process

    def __exit__(self, *error: object) -> None:
        self.timer.cancel()
        if error[0]:
            self.kill()
        self.process.wait()
        self.process.stdout.close()
        shutil.rmtree(self.runs)  # those of a case that was cut off


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"all, or any of {', '.join(SECTIONS)}")
    parser.add_argument("--list", action="store_true", help="list the sections and their numbers of cases")
    parser.add_argument("--out", type=Path, metavar="FILE", help="add the lines to this file, too")
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="cases with these words, such as 8B nf4")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"for each section; {SECONDS} by default")
    parser.add_argument("--scratch", type=Path, metavar="FOLDER", help="for base models and runs, up to 50 GB")
    parser.add_argument("--rehearse", action="store_true", help="tiny models, to see that everything runs")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Measure the sections that the command line names; returns the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    for name in {*options.sections} - {*SECTIONS, "all"}:
        parser.error(f"there is no section '{name}'. Choose from {', '.join(SECTIONS)}, or all.")
    scale = TINY if options.rehearse else REAL
    if options.list or not options.sections:
        for name, section in SECTIONS.items():
            print(f"{name:14} {len(section.cases(scale)):4}  {section.title}")
        return 0
    from tuner.models.device import device_type

    if not options.rehearse and device_type() == "cpu":
        parser.error("there is no GPU here. Add --rehearse to see that everything runs, with tiny models.")
    sections = list(SECTIONS) if "all" in options.sections else options.sections
    options.out = options.out or Path(os.devnull)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        options.scratch = options.scratch or Path(folder)
        for section in sections:
            cases = [c for c in SECTIONS[section].cases(scale) if set(options.only) <= set(name_of(c).split())]
            for result in measure(section, cases, options):
                line = json.dumps(result | ({"rehearsal": True} if options.rehearse else {}))
                print(line, flush=True)
                with open(options.out, "a", encoding="utf-8") as file:
                    print(line, file=file)
    return 0


if __name__ == "__main__":
    sys.exit(main())
