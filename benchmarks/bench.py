"""Tuner against a plain TRL script with the same model, rows, rank, learning rate and steps; prints ratios.

    python benchmarks/bench.py [--rounds 3] [--steps 100]

Cold start: from starting the process to the saved adapter. Training: real (unpadded) tokens per second, from the first
step to the last.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODEL, ROWS = ROOT / "examples/tiny-office", ROOT / "examples/corporate.jsonl"
RANK, BATCH, RATE = 16, 16, 4e-3
QUIET = os.environ | {"TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}


def tuner(steps: int, out: Path) -> tuple[float, float]:
    """Seconds to the saved adapter, and tokens per second, of the `tuner` command."""
    settings = {
        "budget.steps": steps,
        "training.batch_size": BATCH,
        "training.learning_rate": RATE,
        "method.rank": RANK,
    }
    settings |= {"evaluation.loss_every": 0}
    command = [sys.executable, "-m", "tuner", "train", "corporate", "--out", str(out), "--json"]
    command += [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    began, trained, tokens = time.monotonic(), None, 0
    process = subprocess.Popen(command, cwd=ROOT, env=QUIET, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    for line in process.stdout:
        event = json.loads(line)
        if event["event"] == "step":
            tokens = event["tokens"]
        if event["event"] == "end":
            # The held-out evaluation that follows has no counterpart in the plain script.
            cold, trained = time.monotonic() - began, event["seconds"]
            process.kill()
            break
    process.wait()
    if trained is None or not (out / "adapter/adapter_model.safetensors").is_file():
        raise SystemExit("tuner saved no adapter")
    return cold, tokens / trained


def plain(steps: int, out: Path, *extra: str) -> tuple[float, float]:
    """The same for the plain script."""
    values = {"model": MODEL, "rows": ROWS, "out": out, "rank": RANK, "steps": steps, "batch": BATCH, "rate": RATE}
    command = [sys.executable, str(ROOT / "benchmarks/plain_trl.py"), *extra]
    command += [word for key, value in values.items() for word in (f"--{key}", str(value))]
    began = time.monotonic()
    process = subprocess.run(command, env=QUIET, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    cold = time.monotonic() - began
    if not (out / "adapter_model.safetensors").is_file():
        raise SystemExit("the plain script saved no adapter")
    result = json.loads(process.stdout.splitlines()[-1])
    return cold, result["tokens"] / result["seconds"]


RUNNERS = {
    "tuner": tuner,
    "plain TRL": plain,
    "plain TRL in float32, no gradient checkpointing": lambda steps, out: plain(steps, out, "--by-hand"),
}


def main() -> None:
    """Run all in turn and print the medians of the ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()
    figures: dict[str, list[tuple[float, float]]] = {name: [] for name in RUNNERS}
    for turn in range(options.rounds):
        for name, run in RUNNERS.items():
            with tempfile.TemporaryDirectory() as folder:
                figures[name].append(run(options.steps, Path(folder) / "out"))
            print(
                f"round {turn + 1}  {name:48} cold {figures[name][-1][0]:6.1f} s  {figures[name][-1][1]:7.0f} tokens/s"
            )
    print(f"\n{platform.machine()}, {os.cpu_count()} cores; {options.steps} steps of {BATCH} rows, rank {RANK}, NF4")
    for name in list(RUNNERS)[1:]:
        cold = statistics.median(a[0] / b[0] for a, b in zip(figures["tuner"], figures[name]))
        speed = statistics.median(a[1] / b[1] for a, b in zip(figures["tuner"], figures[name]))
        print(f"tuner / {name}: cold start to saved adapter {cold:.2f}, real tokens per second {speed:.2f}")


if __name__ == "__main__":
    main()
