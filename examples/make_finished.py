"""Makes examples/finished, the run that first-time visitors see: the shipped recipe, trained.

    python -m examples.make_finished

Left out is what nobody reads: checkpoints, training rows and the lock.
"""

import shutil
import tempfile
from pathlib import Path

from tuner.planning import plan
from tuner.recipe import EXAMPLES, Recipe
from tuner.training.window import train

with tempfile.TemporaryDirectory() as folder:
    run = plan.prepare(Recipe.load("corporate"), path=Path(folder) / "finished")
    for event in train(run):
        if event["event"] in ("heldout", "end", "evaluation"):
            print(event)
    shutil.rmtree(EXAMPLES / "finished", ignore_errors=True)
    shutil.copytree(
        run.path, EXAMPLES / "finished", ignore=shutil.ignore_patterns("checkpoints", "train", "lock", "merged")
    )
