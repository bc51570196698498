"""How training was started: in one process, as it must be. Imports no torch."""

import os

from tuner.errors import TunerError


def ensure_one_process() -> None:
    """Raise TunerError if this is one of several processes that accelerate or torchrun started to share a training.

    A single one forgets who started it, or the Trainer would wrap its model as if there were others.
    """
    if (number := int(os.environ.get("WORLD_SIZE") or 1)) > 1:
        raise TunerError(
            f"Tuner trains on one GPU, and this is one of {number} processes. Start it without `accelerate launch` "
            "or torchrun, or with --num_processes 1."
        )
    for name in ("WORLD_SIZE", "LOCAL_RANK"):
        os.environ.pop(name, None)
