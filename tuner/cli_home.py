"""The commands with which a run leaves this machine.

tuner push RUN owner/name
"""

import argparse
import json
import os
from collections.abc import Callable

Options = argparse.Namespace
RUN = ("run", "a run's folder or its id")


def add_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands; `command` makes one: its name, what it does, help, and its positional arguments."""
    push = command("push", _push, "Push the adapter and its card to the Hub.", RUN, ("repo", "owner/name, or a name"))
    push.add_argument("--public", action="store_true", help="make it public; it is private by default")
    push.add_argument("--failed-merge", action="store_true", help="push it although merging it failed")


def token() -> str | None:
    """The token of whoever runs this command."""
    from huggingface_hub import get_token

    return os.environ.get("HF_TOKEN") or get_token()


def _push(options: Options) -> None:
    from tuner import runs
    from tuner.hub import push

    run = runs.open_run(options.run)
    url = push.push(run, options.repo, token=token(), private=not options.public, failed_merge=options.failed_merge)
    print(json.dumps({"url": url}) if options.json else url)
