"""What the sections of gpu.py measure in further processes: a start, and whole runs beside a plain TRL script."""

import json
import subprocess
import sys
import time
from pathlib import Path

import yaml
from gpu_measure import Place, of_kind
from gpu_sections import empty_device

import tuner

HERE = Path(__file__).resolve().parent
RANK, RATE = 16, 1e-4


def start_up(case: dict, place: Place) -> dict:
    """The parts of a start in a process of its own."""
    with place.folder() as folder:
        runs = [place.prepare(folder, case) for _ in ("cold", "warm")]
        empty_device()
        command = [sys.executable, str(HERE / "gpu_start_up.py"), *(str(run.path) for run in runs)]
        return json.loads(_output_of(command).splitlines()[-1])


def _output_of(command: list[str]) -> str:
    """What a process prints. Raises RuntimeError with the end of its errors if it fails."""
    process = subprocess.run(command, cwd=HERE.parent, capture_output=True, text=True)
    if process.returncode:
        raise RuntimeError(f"{Path(command[1]).name} failed: {process.stderr.strip()[-600:]}")
    return process.stdout


def plain_trl(case: dict, place: Place) -> dict:
    """The `tuner` command and a plain TRL script, each in its own process: same base, rows, rank, rate and steps."""
    with place.folder() as folder:
        other = {"shortest": case["length"] // 4, "method.rank": RANK, "training.learning_rate": RATE}
        settings = place.settings(folder, case, **other)
        recipe = folder / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(tuner.Recipe().with_settings(settings).model_dump()))
        empty_device()
        ours, theirs = _tuner(recipe, folder), _plain(settings, folder)
        return {
            **{f"tuner_{name}": value for name, value in ours.items()},
            **{f"plain_{name}": value for name, value in theirs.items()},
            "ratio": {name: ours[name] and theirs[name] and ours[name] / theirs[name] for name in ours},
        }


def _tuner(recipe: Path, folder: Path) -> dict:
    command = [sys.executable, "-m", "tuner", "train", str(recipe), "--out", str(folder / "run"), "--json"]
    began, events = time.monotonic(), []
    with open(folder / "tuner.log", "w+") as log:
        process = subprocess.Popen(command, cwd=HERE.parent, stdout=subprocess.PIPE, stderr=log, text=True)
        for line in process.stdout:
            events.append(json.loads(line))
            if events[-1]["event"] == "end":
                break  # the scores that follow have no counterpart in the plain script
        cold = time.monotonic() - began
        process.kill()
        process.communicate()
        ends = of_kind(events, "end")
        if not ends:
            log.seek(0)
            raise RuntimeError(f"tuner saved no adapter: {events[-1:]} {log.read().strip()[-600:]}")
    tokens = of_kind(events, "step")[-1]["tokens"]
    return {"cold_start": cold, "tokens_per_second": tokens / ends[0]["in_steps"], "peak": ends[0]["peak_memory"]}


def _plain(settings: dict, folder: Path) -> dict:
    values = {"model": settings["model.name"], "rows": settings["data.source"], "out": folder / "plain", "rank": RANK}
    values |= {"steps": settings["budget.steps"], "batch": settings["training.batch_size"], "rate": RATE}
    values["precision"] = settings["model.quantization"]
    command = [sys.executable, str(HERE / "plain_trl.py")]
    command += [str(word) for key, value in values.items() for word in (f"--{key}", value)]
    began = time.monotonic()
    result = json.loads(_output_of(command).splitlines()[-1])
    cold = time.monotonic() - began
    return {
        "cold_start": cold,
        "tokens_per_second": result["tokens"] / result["seconds"],
        "peak": result["peak_memory"],
    }
