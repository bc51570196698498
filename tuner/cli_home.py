"""The commands with which a run leaves this machine.

tuner push RUN owner/name
tuner download RUN --what run --out run.zip
"""

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path

Options = argparse.Namespace
RUN = ("run", "a run's folder or its id")


def add_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands; `command` makes one: its name, what it does, help, and its positional arguments."""
    push = command("push", _push, "Push adapter or merged model to the Hub.", RUN, ("repo", "owner/name, or a name"))
    push.add_argument("--what", default="adapter", help="adapter (the default), merged or both")
    push.add_argument("--data-name", help="what the card calls a file of your own, whose name it does not tell")
    push.add_argument("--public", action="store_true", help="make it public; it is private by default")
    push.add_argument("--failed-merge", action="store_true", help="push it although merging it failed")
    download = command("download", _download, "Write adapter, merged model or the whole run into one zip.", RUN)
    download.add_argument("--what", default="adapter", help="adapter (the default), merged, gguf or run")
    download.add_argument("--out", type=Path, metavar="FILE", help="the zip; named after the run by default")

def token() -> str | None:
    """The token of whoever runs this command."""
    from huggingface_hub import get_token

    return os.environ.get("HF_TOKEN") or get_token()


def _push(options: Options) -> None:
    from tuner import runs
    from tuner.hub import push
    from tuner.inference import merge

    run = runs.open_run(options.run)
    if options.what != "adapter" and options.what in push.WHAT:
        merge.merge(run)
    given = {"token": token(), "private": not options.public, "failed_merge": options.failed_merge}
    url = push.push(run, options.repo, options.what, data_name=options.data_name, **given)
    print(json.dumps({"url": url}) if options.json else url)


def _download(options: Options) -> None:
    from tqdm import tqdm

    from tuner import runs
    from tuner.hub import download
    from tuner.hub.contents import CONTENTS
    from tuner.inference import merge

    run = runs.open_run(options.run)
    if options.what in CONTENTS and CONTENTS[options.what].needs_merge:
        merge.merge(run)
    archive, name = download.package(run, options.what)
    out = options.out or Path(name)
    partial = out.with_name(f"{out.name}.part")
    with (
        open(partial, "wb") as file,
        tqdm(total=archive.size, unit="B", unit_scale=True, disable=options.json or None) as progress,
    ):
        for chunk in archive.read():
            file.write(chunk)
            progress.update(len(chunk))
    partial.replace(out)
    print(json.dumps({"file": str(out), "bytes": archive.size}) if options.json else out)
