"""Run a script or a module with `spaces` as it is on ZeroGPU, on a machine without a GPU.

python tests/on_stage.py SCRIPT [argument ...]
python tests/on_stage.py -m MODULE [argument ...]

The environment is that of a `stage.Stage`.
"""

import runpy
import sys
from pathlib import Path


def main(arguments: list[str]) -> None:
    """Run what the arguments name as `__main__`."""
    if not arguments or arguments == ["-m"]:
        sys.exit(__doc__)
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    # A torch without CUDA cannot be patched by spaces, which leaves alone what it cannot import.
    torch = sys.modules.pop("torch", None)  # already imported in a process of tests/fresh.py
    sys.modules["torch"] = None
    import spaces

    del sys.modules["torch"]
    if torch:
        sys.modules["torch"] = torch
    if not spaces.config.Config.zero_gpu:
        sys.exit("spaces does nothing here: the environment of a stage is missing")
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
