"""Measures cases of one section of gpu.py in a process of its own, and prints a JSON line for each.

python benchmarks/gpu_work.py JOB

JOB is JSON: section, cases, scratch (a folder) and rehearsal.
"""

import gc
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import gpu_processes as processes
import gpu_sections as sections
import torch
from gpu_measure import IS_CUDA, Place, Refusal

from tuner import gpu
from tuner.training.window import device_name

MEASURES: dict[str, Callable[[dict, Place], dict]] = {
    "environment": sections.environment,
    "methods": sections.methods,
    "speed": sections.speed,
    "memory": sections.memory,
    "start_up": processes.start_up,
    "scoring": sections.scoring,
    "determinism": sections.determinism,
    "out_of_memory": sections.out_of_memory,
    "plain_trl": processes.plain_trl,
}


def main() -> None:
    """Measure the cases, one after the other; end early if an error has made the GPU unusable."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints
    job = json.loads(sys.argv[1])
    place = Place(Path(job["scratch"]), job["rehearsal"])
    gpu.import_core()
    gc.freeze()  # as a worker of the page does
    for case in job["cases"]:
        began = time.monotonic()
        outcome = attempt(MEASURES[job["section"]], case, place)
        line = {"section": job["section"], **case, "seconds": round(time.monotonic() - began, 3), **outcome}
        print(json.dumps(line | {"device": device_name()}), file=out, flush=True)
        if outcome["outcome"] == "failed" and is_device_broken():
            os._exit(0)  # at once: freeing what is on the device would fail, too


def attempt(measure: Callable[[dict, Place], dict], case: dict, place: Place) -> dict:
    """The figures of a case and its outcome: done, refused or failed, the last two with a reason."""
    try:
        return {"outcome": "done", **measure(case, place)}
    except Refusal as refusal:
        return {"outcome": "refused", "reason": str(refusal)}
    except Exception as error:  # the other cases are measured all the same
        return {"outcome": "failed", "reason": causes(error)}


def causes(error: BaseException) -> str:
    """The error, and what caused it."""
    text = f"{type(error).__name__}: {error}"
    return f"{text} / {causes(error.__cause__)}" if error.__cause__ else text


def is_device_broken() -> bool:
    """Whether an error has left CUDA unusable for this process."""
    try:
        if IS_CUDA:
            torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


if __name__ == "__main__":
    main()
