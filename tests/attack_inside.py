"""One process of the attack: does cases as the page would, without HTTP, and reports what became of each.

python attack_inside.py '{"seed": 0, "folder": "/tmp/x", "token": "hf_..."}'    # then a line for each case: recipe/17
"""

import asyncio
import json
import logging
import os
import re
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attack_cases
import attack_files
from attack_cases import ACCEPT, REFUSE, Case

UNEXPECTED = re.compile(r"unexpected", re.IGNORECASE)
ALL_MEMORY = 12 * 2**30  # bytes of address space, so that a bomb ends this process and not the machine


def rows_given(given: dict) -> str:
    """The rows that go with a recipe."""
    rows = given.get("rows", attack_cases.ROWS)
    return {"chat": attack_files.CHAT, "check": attack_cases.ROWS}.get(rows, rows)


class Inside:
    """What the cases are done with."""

    def __init__(self, folder: Path, token: str):
        from tuner.ui import actions, api, home_api
        from tuner.ui.visitor import Visitor

        self.folder, self.actions, self.api, self.home = folder, actions, api, home_api
        self.visitor = Visitor("ann", "127.0.0.1")
        self.pusher = Visitor("ann", "127.0.0.1", "alice", token)
        actions.install_example()

    def check(self, given: dict) -> Any:
        """A recipe with pasted rows; what is accepted must read back as the same recipe."""
        answer = self.api.check(
            given["recipe"].replace("HERE", str(self.folder)), None, rows_given(given), self.visitor
        )
        if "plan" in answer:
            from tuner.recipe import Recipe

            read = Recipe.from_yaml(given["recipe"])
            assert Recipe.from_yaml(read.to_yaml()) == read, "the recipe does not read back"
        return answer

    def file(self, given: dict) -> Any:
        """An uploaded file, which Gradio would have put into a folder of its own."""
        content = given["content"]
        path = self.folder / f"upload-{os.getpid()}" / given["name"]
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        try:
            return self.api.check(attack_cases.GOOD, str(path), "", self.visitor)
        finally:
            path.unlink()

    def pasted(self, given: dict) -> Any:
        """Pasted text."""
        return self.api.check(attack_cases.GOOD, None, given["text"], self.visitor)

    def push(self, given: dict) -> Any:
        """A push of the example to a repository."""
        return self.home.push("example", given["repository"], private=True, visitor=self.pusher)

    def of_run(self, call: str) -> Callable[[dict], Any]:
        """An endpoint that takes a run."""

        def do(given: dict) -> Any:
            if call in ("open", "status"):
                return self.api.status(given["run"]) if call == "status" else self.actions.open_run(given["run"]).id
            answer = getattr(self.api, call)(given["run"], *["hi"] * (call == "chat"), visitor=self.visitor)
            if hasattr(answer, "__anext__"):
                return asyncio.run(anext(answer))
            return next(answer) if hasattr(answer, "__next__") else answer

        return do

    def do(self, case: Case) -> dict:
        """Do a case: whether it was accepted or refused, in which words, and in how many seconds of this process."""
        call = getattr(self, case.call, None) or self.of_run(case.call)
        given = {key: value() if callable(value) else value for key, value in case.given.items()}
        if case.call not in ("check", "file", "pasted"):
            fifo = str(self.folder / "fifo")
            given = {key: fifo if value == "FIFO" else value for key, value in given.items()}
        elif "FIFO" in str(given.get("recipe", ""))[:500]:
            given = given | {"recipe": given["recipe"].replace("FIFO", str(self.folder / "fifo"))}
        started = time.process_time()
        try:
            answer = call(given)
            refused = isinstance(answer, dict) and bool(answer.get("problems"))
            outcome, text = (REFUSE if refused else ACCEPT), json.dumps(answer, default=str)
        except Exception as error:
            known = type(error).__name__ in ("TunerError", "Error")
            outcome = REFUSE if known else "fault"
            text = str(error) if known else f"{type(error).__name__}: {error}"
        seconds = time.process_time() - started
        size = len(str(case.given)) if not callable(case.given.get("content")) else 0
        text = text.replace(str(self.folder / "fifo")[:40], "FIFO")  # which the attack itself named
        return {"outcome": outcome, "text": text[:20_000], "seconds": seconds, "size": size}


class Kept(logging.Handler):
    """Keeps the last traceback that was logged."""

    text = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        if record.exc_info:
            self.text = logging.Formatter().formatException(record.exc_info)


def main() -> None:
    """Do the cases that are named on standard input."""
    settings = json.loads(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (ALL_MEMORY, ALL_MEMORY))
    inside, kept = Inside(Path(settings["folder"]), settings["token"]), Kept()
    logging.getLogger().addHandler(kept)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not come between
    inside.check({"recipe": attack_cases.GOOD})  # loads what is loaded once
    print(os.getpid(), file=out, flush=True)
    for line in sys.stdin:
        family, _, number = line.strip().partition("/")
        kept.text = ""
        result = inside.do(attack_cases.make(family, int(number), settings["seed"]))
        print(json.dumps(result | {"traceback": kept.text}), file=out, flush=True)


if __name__ == "__main__":
    main()
