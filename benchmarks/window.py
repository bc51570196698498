"""How a granted window is spent, Tuner against the usual way, with real `spaces` workers on the tests' stage.

python benchmarks/window.py [--rounds 1]

The share of a 60 s window inside optimizer steps, and real tokens trained per granted second of a 20 s window; with a
cold worker and with a warm one. The usual way loads, tokenizes and trains in the decorated function; its steps are
counted until the platform ends it.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

from stage import Stage  # noqa: E402

MODEL, ROWS = ROOT / "examples/tiny-office", ROOT / "examples/corporate.jsonl"
ON_STAGE = [sys.executable, str(ROOT / "tests/on_stage.py")]
QUIET = os.environ | {"TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1"}
PLACES = ("cold", "warm")


def tuner(seconds: int, folder: Path) -> list[tuple[float, float]]:
    """Share inside steps and tokens per granted second, of a cold and of a warm worker."""
    settings = {"budget.seconds": 10 * seconds}
    prepare = (
        "import sys; from pathlib import Path; from tuner.planning import plan; from tuner.recipe import Recipe\n"
        f"plan.prepare(Recipe.load('corporate').with_settings({settings}), path=Path(sys.argv[1]))"
    )
    run = folder / "run"
    subprocess.run([sys.executable, "-c", prepare, str(run)], cwd=ROOT, env=QUIET, check=True, capture_output=True)
    figures, tokens, before = [], 0, 0
    with Stage() as stage:
        process = subprocess.Popen(
            [*ON_STAGE, str(ROOT / "tests/drive.py")],
            cwd=ROOT,
            env=QUIET | stage.environment | {"TUNER_WINDOW_SECONDS": str(seconds), "TUNER_RUNS": str(folder)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        process.stdin.write(json.dumps({"job": "train", "run": str(run)}) + "\n")
        process.stdin.flush()
        for line in process.stdout:
            event = json.loads(line) if line.startswith("{") else {"event": ""}
            if event["event"] == "step":
                tokens = event["tokens"]
            if event["event"] == "end":
                figures.append((event["in_steps"] / seconds, (tokens - before) / seconds))
                before = tokens
            if len(figures) == len(PLACES):
                break
        process.kill()
        process.wait()
    return figures


def usual(seconds: int, folder: Path) -> list[tuple[float, float]]:
    """The same for the usual way."""
    figures = []
    for steps in (["1000000"], ["2", "1000000"]):  # the second one's last call finds a warm worker
        log = folder / f"log{len(steps)}"
        with Stage() as stage:
            subprocess.run(
                [
                    *ON_STAGE,
                    str(ROOT / "benchmarks/usual_way.py"),
                    str(MODEL),
                    str(ROWS),
                    str(seconds),
                    str(log),
                    *steps,
                ],
                cwd=ROOT,
                env=QUIET | stage.environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        # Of the call that the platform ended.
        (_, begun, _), *_, (_, ended, tokens) = [line for line in lines if line[0] == len(steps) - 1]
        figures.append(((ended - begun) / seconds, tokens / seconds))
    return figures


def main() -> None:
    """Measure both and print the medians."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seconds", type=int, nargs="*", default=[60, 20], help="lengths of the windows")
    options = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, no GPU; real workers of `spaces` on a stage")
    for seconds in options.seconds:
        results = {"tuner": [], "usual way": []}
        for _ in range(options.rounds):
            for name, way in (("tuner", tuner), ("usual way", usual)):
                with tempfile.TemporaryDirectory() as folder:
                    results[name].append(way(seconds, Path(folder)))
        for index, place in enumerate(PLACES):
            shares, speeds = (
                {name: statistics.median(r[index][part] for r in rounds) for name, rounds in results.items()}
                for part in (0, 1)
            )
            print(
                f"{seconds} s window, {place} worker: inside optimizer steps {shares['tuner']:.3f}, the usual way "
                f"{shares['usual way']:.3f}; real tokens per granted second {speeds['tuner']:,.0f}, the usual way "
                f"{speeds['usual way']:,.0f}, ratio {speeds['tuner'] / speeds['usual way']:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
