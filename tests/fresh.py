"""Separate processes that start at once: forked from a server that has already imported torch and other libraries.

The server imports nothing of `tuner`, so each process reads its own environment. Only variables that libraries read
when they are imported, such as HF_ENDPOINT, are the server's: a test that needs another Hub starts a new process.
"""

import multiprocessing
import os
import runpy
import sys
from pathlib import Path
from subprocess import CompletedProcess

from conftest import ROOT

PATIENCE = 240  # seconds
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch", "transformers", "peft", "trl", "datasets", "bitsandbytes"])


def start(arguments: list[str], folder: Path, given: str = "", **environment: str) -> multiprocessing.Process:
    """`python ARGUMENTS` in `folder`, begun; it writes to the files `stdout` and `stderr` in there."""
    (folder / "stdin").write_text(given)
    process = _context.Process(target=_main, args=(arguments, folder, environment))
    process.start()
    return process


def run(arguments: list[str], folder: Path, given: str = "", **environment: str) -> CompletedProcess:
    """`python ARGUMENTS` in `folder`, with its end awaited."""
    process = start(arguments, folder, given, **environment)
    process.join(PATIENCE)
    assert process.exitcode is not None, f"{arguments} did not end"
    out, err = ((folder / name).read_text() for name in ("stdout", "stderr"))
    return CompletedProcess(arguments, process.exitcode, out, err)


def _main(arguments: list[str], folder: Path, environment: dict[str, str]) -> None:
    os.chdir(folder)
    os.environ.update(environment)
    writing = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    for number, (name, flags) in enumerate({"stdin": os.O_RDONLY, "stdout": writing, "stderr": writing}.items()):
        os.dup2(os.open(name, flags), number)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115  multiprocessing has closed it
    sys.path[:0] = [str(ROOT)]
    kind, what, *rest = arguments
    sys.argv = [what, *rest]
    if kind == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(what, {"__name__": "__main__"})
