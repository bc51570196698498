"""What strangers' files decide of what leaves and comes in: jobs for processes with limits, as in planning/jobs.py.

A tokenizer and a chat template are strangers' programs. Elsewhere than on a page they are read without limits.
"""

from pathlib import Path

from tuner.hub import gguf_file, import_run, receipt
from tuner.models import device as devices
from tuner.planning.imported import check_here
from tuner.runs import Run


def write_receipt(run: str) -> None:
    """Write the receipt of the run at this path. Raises TunerError."""
    receipt.write_receipt(Run(Path(run)))


def write_gguf(run: str, name: str) -> None:
    """Write the GGUF file of the merged run at this path. Raises TunerError."""
    gguf_file.files(Run(Path(run)), name)


def unpack(file: str, path: str, most: int) -> None:
    """Make a run of a zip: see hub/import_run.py. Raises TunerError with all problems."""
    import_run.import_run(file, Path(path), most=most)


def check(device: dict, run: str, token: str | bool) -> None:
    """Check whether the unpacked run at this path can go on here: see planning/imported.py. Raises TunerError."""
    with devices.described(device):
        check_here(Run(Path(run)), token)
