"""A `tuner` command in a process of its own that sees no GPU, for work that needs none."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

from tuner import environment
from tuner.errors import TunerError
from tuner.models.shape import Base, shape_of

log = logging.getLogger(__name__)

FLOAT = 4  # bytes; on a CPU models compute in float32 unless the recipe says otherwise
BESIDE = 3 * 2**30  # bytes for the libraries, and for the logits that are compared
CGROUP = Path("/sys/fs/cgroup")  # a container's own limits, which psutil does not know


def has_room(base: Base, copies: int = 2) -> bool:
    """Whether the CPU's memory holds so many copies of the base's weights in float32.

    A merge needs two: one while merging and one while checking. While the first is written, safetensors holds the
    bytes of the file as well, and Python may return the memory of the first later than it could.
    """
    return copies * FLOAT * shape_of(base).parameters + BESIDE <= _free_memory()


def _free_memory() -> int:
    """Bytes that are free on this machine, and in the container if there is one.

    A container's memory in use includes the files that were read, such as the model's: they make room when needed.
    """
    import psutil

    free = psutil.virtual_memory().available
    try:
        limit, used = (int((CGROUP / name).read_text()) for name in ("memory.max", "memory.current"))
        held = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no container, or one without a limit
        return free
    return min(free, limit - used + int(held["active_file"]) + int(held["inactive_file"]))


def tuner(*arguments: str) -> dict | None:
    """What `tuner ARGUMENTS --json` prints; None if it was killed or broke. Raises TunerError."""
    hidden = ("SPACES_", "CUDA_VISIBLE_DEVICES")
    kept = {name: value for name, value in environment.for_child().items() if not name.startswith(hidden)}
    root = str(Path(__file__).resolve().parent.parent.parent)
    paths = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    process = subprocess.run(
        [sys.executable, "-m", "tuner", *arguments, "--json"],
        env=kept | {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": paths},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if process.returncode not in (0, 2):
        log.warning("tuner %s ended with %s: %s", arguments[0], process.returncode, process.stderr[-2000:])
        return None
    printed = json.loads(process.stdout.splitlines()[-1])
    if process.returncode:
        raise TunerError(*printed["problems"])
    return printed
