"""How training was started: in one process, as it must be. Imports no torch."""

import os

from tuner.errors import TunerError


def refuse_several_processes() -> None:
    """Raise TunerError in each of several processes that accelerate or torchrun started to share a training."""
    if (number := int(os.environ.get("WORLD_SIZE", 1))) > 1:
        raise TunerError(
            f"Tuner trains on one GPU, and this is one of {number} processes. Start it without `accelerate launch` "
            "or torchrun, or with --num_processes 1."
        )
