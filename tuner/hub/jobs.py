"""What a base model's own files decide of what leaves: jobs for processes with limits, as in planning/jobs.py.

A tokenizer and a chat template are strangers' programs. Elsewhere than on a page they are read without limits.
"""

from pathlib import Path

from tuner.hub import gguf_file, receipt
from tuner.runs import Run


def write_receipt(run: str) -> None:
    """Write the receipt of the run at this path. Raises TunerError."""
    receipt.write_receipt(Run(Path(run)))


def write_gguf(run: str, name: str) -> None:
    """Write the GGUF file of the merged run at this path. Raises TunerError."""
    gguf_file.files(Run(Path(run)), name)
