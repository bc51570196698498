"""The commands with which a run leaves this machine or comes to it, and adapters of the Hub come in.

tuner push RUN owner/name
tuner download RUN --what run --out run.zip
tuner import run.zip
tuner verify owner/name --merged owner/name-merged --server http://127.0.0.1:8080
tuner reproduce owner/name --data rows.csv
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from tuner.errors import TunerError
from tuner.names import PULL_REQUEST

if TYPE_CHECKING:
    from tuner.runs import Run

Options = argparse.Namespace
RUN = ("run", "a run's folder or its id")
EXPORT = ("export", "owner/name on the Hub, or the folder of a run or of an unzipped download")


def add_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands; `command` makes one: its name, what it does, help, and its positional arguments."""
    push = command("push", _push, "Push adapter or merged model to the Hub.", RUN, ("repo", "owner/name, or a name"))
    push.add_argument("--what", default="adapter", help="adapter (the default), merged or both")
    push.add_argument("--data-name", help="what the card calls a file of your own, whose name it does not tell")
    into = push.add_mutually_exclusive_group()
    into.add_argument("--branch", default="main", help="another branch of a repository that exists")
    pull_request = {"dest": "branch", "action": "store_const", "const": PULL_REQUEST}
    into.add_argument("--pull-request", **pull_request, help="open a pull request there instead")
    push.add_argument("--public", action="store_true", help="make it public; it is private by default")
    push.add_argument("--failed-merge", action="store_true", help="push it although merging it failed")
    download = command("download", _download, "Write adapter, merged model or the whole run into one zip.", RUN)
    download.add_argument("--what", default="adapter", help="adapter (the default), merged, gguf or run")
    download.add_argument("--out", type=Path, metavar="FILE", help="the zip; named after the run by default")
    bring = "Take in the zip of a whole run, which goes on here."
    importing = command("import", _import, bring, ("file", "the zip, made by tuner download --what run or on a page"))
    importing.add_argument("--out", type=Path, metavar="RUN", help="the run's folder; under the runs by default")
    again = "Train a pushed run once more, and compare its adapter. Exit status 1: something differs."
    reproduce = command("reproduce", _reproduce, again, EXPORT)
    reproduce.add_argument("--revision", help="a branch, tag or commit of the repository")
    reproduce.add_argument("--data", type=Path, metavar="FILE", help="the rows, if the run's were a file of your own")
    reproduce.add_argument("--out", type=Path, metavar="RUN", help="the new run's folder")
    reproduce.add_argument("--anyway", action="store_true", help="train it although rows differ")
    _add_verify(command)


def _add_verify(command: Callable[..., argparse.ArgumentParser]) -> None:
    what = "Check that an export reads prompts and answers as its run did. Exit status 1: it differs; 2: can't tell."
    verify = command("verify", _verify, what, EXPORT)
    verify.add_argument("--revision", help="a branch, tag or commit of the repository")
    verify.add_argument("--merged", metavar="MODEL", help="the merged model: owner/name or a folder")
    verify.add_argument("--server", metavar="URL", help="a server with OpenAI's interface: llama.cpp, vLLM, Ollama")
    verify.add_argument("--model", help="the model's name on the server")
    verify.add_argument("--api-key-env", metavar="NAME", help="the environment variable with the server's key")


@contextmanager
def opened(given: list[str]) -> Iterator[list["Run"]]:
    """The runs of these names; one that is no run's, owner/name, is an adapter of the Hub, which is here for as long
    as this lasts, in the precision of the first run.

    Raises TunerError."""
    from tuner import names, runs

    found: dict[str, Run | None] = {}
    for name in given:
        try:
            found[name] = runs.open_run(name)
        except TunerError:
            if not names.fits("dataset", name.partition("@")[0]):
                raise
            found[name] = None
    with TemporaryDirectory(prefix="tuner-") as folder:
        own = next(filter(None, found.values()), None)
        for name in [name for name, run in found.items() if run is None]:
            from tuner.planning.adopt import adopt

            precision = own.recipe.model.quantization if own else "none"
            found[name] = adopt(name, precision, token=token(), path=Path(folder) / name.replace("/", "--"))
        yield [found[name] for name in given]


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
    given |= {"data_name": options.data_name, "into": options.branch}
    url = push.push(run, options.repo, options.what, **given, tell=_tell if options.json else lambda event: None)
    print(json.dumps({"url": url}) if options.json else url)


def _tell(event: dict) -> None:
    print(json.dumps(event), flush=True)


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


def _import(options: Options) -> None:
    from tuner.hub.import_run import import_run

    run = import_run(options.file, options.out)
    print(json.dumps({"run": str(run.path), "status": run.status}) if options.json else run.path)


def _verify(options: Options) -> None:
    from tuner.hub import verify_server
    from tuner.hub.verify import verify

    key = os.environ.get(options.api_key_env or "")
    server = verify_server.Server(options.server, options.model, key) if options.server else None
    report = verify(options.export, revision=options.revision, merged=options.merged, server=server, token=token())
    if options.json:
        found = {"same": report.same, "differs": report.differs, "unchecked": report.unchecked}
        print(json.dumps({"status": report.status, **found}))
    else:
        for mark, sentences in (("same", report.same), ("DIFFERS", report.differs), ("unchecked", report.unchecked)):
            for sentence in sentences:
                print(f"{mark:9}  {sentence}")
    if report.status:
        raise SystemExit(report.status)


def _reproduce(options: Options) -> None:
    from tuner import terminal
    from tuner.hub.reproduce import reproduce

    settings = {"revision": options.revision, "data": options.data, "anyway": options.anyway, "path": options.out}
    show, differs = terminal.Progress(), []
    try:
        for event in reproduce(options.export, **settings, token=token()):
            if options.json:
                print(json.dumps(event), flush=True)
            elif event["event"] not in ("compared", "heartbeat"):
                show(event)
            if event["event"] == "compared":
                differs += event["differs"] if event["what"] in ("rows", "adapter") else []
                if not options.json:
                    print(
                        "\n".join([f"{event['what']}: {'differ' if event['differs'] else 'same'}", *event["differs"]])
                    )
    except TunerError as error:
        if not differs:
            raise
        print("\n".join(f"tuner: {problem}" for problem in error.problems), file=sys.stderr)
    if differs:
        raise SystemExit(1)
