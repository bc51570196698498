"""Load the adapters of runs in a separate process and save their answers, to compare with those in the process that
trained them. `python tests/reload.py EXAMPLES RUN...` writes logits.pt into each run's folder."""

import sys
from pathlib import Path

import torch

from tuner import recipe, runs
from tuner.inference.variants import load_variants
from tuner.models.losses import SCORES, collate


def logits(run: runs.Run, model, objective: str) -> torch.Tensor:
    """What the model says at every place of the run's held-out rows that has a label."""
    from datasets import load_from_disk

    batch = collate([dict(row) for row in load_from_disk(str(run.data / "heldout"))])
    with torch.inference_mode():
        return SCORES[objective](model, batch)[0].float()


if __name__ == "__main__":
    recipe.EXAMPLES = Path(sys.argv[1])
    for path in sys.argv[2:]:
        run = runs.Run(Path(path))
        loaded = load_variants({"adapter": run})
        with loaded.model_for("adapter") as model:
            torch.save(logits(run, model, loaded.base.row.objective), run.path / "logits.pt")
