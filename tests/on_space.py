"""Run a script with `spaces` and torch as on ZeroGPU, on a machine without a GPU; torch must be built for CUDA.

python tests/on_space.py SCRIPT

The environment is that of a `stage.Stage`. Unlike on_stage.py, `spaces` patches torch here, as it does on a Space.
"""

import runpy
import sys
from pathlib import Path

import spaces.zero


def main(script: str) -> None:
    """Run the script as `__main__`."""
    # What a new worker does to its card: there is none, so the worker goes on with the CPU.
    spaces.zero.torch.init = spaces.zero.torch.move = lambda *arguments, **settings: None
    sys.path[0] = str(Path(script).resolve().parent)
    sys.argv = [script]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1])
