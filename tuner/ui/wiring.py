"""What the tabs' event handlers share: who may call them, and how many run at once."""

from dataclasses import replace
from typing import Any

from tuner import limited
from tuner.models.device import ZERO
from tuner.runs import ID
from tuner.ui.visitor import Visitor

# For the page only; programs use the named endpoints.
PRIVATE = {"api_visibility": "private", "show_progress": "hidden"}
# Whose turn it is, limited.py decides: here one visitor's slow checks would hold up all others. So more than it lets
# one network address ask for.
CHECKS = {"concurrency_limit": 4 * limited.MOST_ASKED["address"], "concurrency_id": "check"}
# Base and adapter share one model that switches adapters row by row, so it gives one answer at a time. On ZeroGPU each
# job has a worker of its own.
MODELS = {"concurrency_limit": 8 if ZERO else 1, "concurrency_id": "models"}
# Each reads a file of up to 64 MB.
LOOKS = {"concurrency_limit": 4, "concurrency_id": "rows"}
MOST_LISTED = 500  # in a browser's list
MOST_SECRET = 100  # characters
BY_LINK = "link:"  # what a browser keeps before the secret of a run of Visitor.by_link
# What a new visitor's browser remembers: the visitor's runs, newest first, with their secrets; and the one last shown.
NOBODY = {"runs": {}, "shown": ""}


def remembered(kept: Any) -> dict:
    """What a browser remembers, in the form of NOBODY; anybody can send anything, and older pages kept no secrets."""
    kept = kept if isinstance(kept, dict) else {}
    runs, shown = kept.get("runs"), kept.get("shown")
    if isinstance(runs, list):
        runs = dict.fromkeys([run for run in runs if isinstance(run, str)], "")
    listed = [pair for pair in runs.items() if _is_id(pair[0])][:MOST_LISTED] if isinstance(runs, dict) else []
    return {
        "runs": {
            run: secret if isinstance(secret, str) and len(secret) <= MOST_SECRET else "" for run, secret in listed
        },
        "shown": shown if _is_id(shown) else "",
    }


def _is_secret(secret: Any) -> bool:
    return isinstance(secret, str) and len(secret) <= MOST_SECRET


def _is_id(run: Any) -> bool:
    return isinstance(run, str) and ID.fullmatch(run) is not None


def with_run(kept: Any, run: str, secret: str) -> dict:
    """What the browser remembers once this run is its newest and shown."""
    runs = remembered(kept)["runs"]
    newest = {run: secret or runs.pop(run, "")}
    return {"runs": newest | {id: runs[id] for id in runs if id != run}, "shown": run}


def resumed(kept: Any, run: str) -> dict:
    """What the browser remembers once the run was resumed in it: from now on the run continues there by itself."""
    kept = remembered(kept)
    return {**kept, "runs": {id: s.removeprefix(BY_LINK) if id == run else s for id, s in kept["runs"].items()}}


def with_list(visitor: Visitor, kept: Any) -> Visitor:
    """The visitor with the secrets of the runs that the browser remembers."""
    runs = remembered(kept)["runs"]
    secrets = {run: secret.removeprefix(BY_LINK) for run, secret in runs.items()}
    return replace(visitor, secrets=secrets, by_link=frozenset(run for run in runs if runs[run] != secrets[run]))
