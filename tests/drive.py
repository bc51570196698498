"""Runs GPU jobs as the page would, one per line on standard input: {"job": ..., "run": folder, "prompt": ...}.

python tests/on_stage.py tests/drive.py
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

from gradio.context import LocalContext

from tuner import gpu
from tuner.errors import TunerError
from tuner.runs import Run


def train(run: Run) -> None:
    """Window after window, until it is scored or a person would have to press a button."""
    while True:
        for event in gpu.train(run):
            say(event)
        if run.ending != "paused":
            return


def chat(run: Run, prompt: str = "need that report asap") -> None:
    """One message to base and adapter."""
    turns = [{"role": "user", "content": prompt}]
    *_, texts = gpu.chat({"adapter": run}, {}, {"base": turns, "adapter": turns}, max_new_tokens=8)
    say({"event": "answer", **texts})


def merge(run: Run) -> None:
    """Merge the adapter and check the merge."""
    say({"event": "merged", **gpu.merge(run)})


def say(value: dict) -> None:
    """Report one value to the test."""
    print(json.dumps(value), flush=True)


def main() -> None:
    """Do the jobs that are asked for."""
    for line in sys.stdin:
        request = json.loads(line)
        if request.get("token"):
            headers = SimpleNamespace(get=lambda name, t=request["token"]: t if name == "x-ip-token" else None)
            LocalContext.request.set(SimpleNamespace(headers=headers))
        more = {"prompt": request["prompt"]} if "prompt" in request else {}
        try:
            {"train": train, "chat": chat, "merge": merge}[request["job"]](Run(Path(request["run"])), **more)
            say({"event": "done"})
        except TunerError as error:
            say({"event": "refused", "problems": list(error.problems)})


if __name__ == "__main__":
    main()
