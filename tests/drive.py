"""Trains run folders through the door to the GPU, window after window, as the page does while its tab is open.

python tests/on_stage.py tests/drive.py RUN ...
"""

import json
import sys
from pathlib import Path

from tuner import gpu
from tuner.errors import TunerError
from tuner.runs import Run


def drive(run: Run) -> None:
    """Train until the run is finished and scored, or until a person would have to press a button."""
    while run.status == "paused" or not (run.is_trained and run.read_json("evaluation.json")):
        try:
            for event in gpu.train(run):
                print(json.dumps(event), flush=True)
        except TunerError as error:
            print(json.dumps({"event": "refused", "problems": error.problems}), flush=True)
            return


if __name__ == "__main__":
    for path in sys.argv[1:]:
        drive(Run(Path(path)))
