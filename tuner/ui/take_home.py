"""What is made before something of a run leaves, and what is looked at before a run comes in: in bounded processes
where a stranger's files decide of it."""

import os
import shutil
from collections.abc import Callable

from tuner import limited, runs, runs_cleanup
from tuner.data.table import MAX_FILE_BYTES
from tuner.errors import TunerError
from tuner.hub.contents import CONTENTS, gguf_name
from tuner.hub.receipt import is_current
from tuner.limited import Asker, Limits
from tuner.models.fetch import is_shipped
from tuner.names import MAIN
from tuner.runs import Run
from tuner.ui import checking, ownership, run_queue
from tuner.ui.visitor import Visitor

JOBS = "tuner.hub.jobs"
RECEIPT = Limits("Writing the receipt of this run", "Try again, or download the run and push it on your own machine.")
GGUF = Limits("Writing the GGUF file", "Download the merged model and convert it yourself.", 1800, "downloads")
IMPORT = Limits("Reading this run", "Import it in a terminal: tuner import FILE.", 120)
UNPACKED = 4 * MAX_FILE_BYTES  # bytes that a run may take; what Tuner zips is as large as its zip


def prepare(run: Run, what: str, visitor: Visitor) -> None:
    """Write the receipt, and the GGUF file if that is what leaves. Raises TunerError."""
    if is_shipped(run.recipe.model.name) or what not in CONTENTS:
        return
    if problem := CONTENTS[what].problem(run):
        raise TunerError(problem)
    asker, path = Asker(visitor.session, visitor.address), str(run.path.absolute())
    if not is_current(run):
        limited.run(f"{JOBS}:write_receipt", path, limits=RECEIPT, asker=asker)
    if what == "gguf":
        limited.run(f"{JOBS}:write_gguf", path, gguf_name(run), limits=GGUF, asker=asker)


def push(
    run: Run,
    repository: str,
    visitor: Visitor,
    *,
    private: bool,
    failed_merge: bool = False,
    what: str = "adapter",
    data_name: str = "",
    into: str = MAIN,
    tell: Callable[[dict], None] = lambda event: None,
) -> str:
    """Push to the visitor's repository; returns the address of what was pushed. Raises TunerError."""
    from tuner.hub import push

    prepare(run, "adapter", visitor)
    options = {"private": private, "failed_merge": failed_merge, "data_name": data_name.strip() or None}
    options |= {"into": into.strip(), "tell": tell}
    return push.push(run, repository, what, token=visitor.token, **options)


def import_run(file: str, visitor: Visitor) -> tuple[Run, str]:
    """The run of an uploaded zip, which becomes the visitor's, and its secret. Raises TunerError with all problems."""
    runs_cleanup.make_room(keep=run_queue.kept(), needed=os.path.getsize(file))
    path, asker = runs.new_path().absolute(), Asker(visitor.session, visitor.address)
    try:
        limited.run(f"{JOBS}:unpack", file, str(path), UNPACKED, limits=IMPORT, asker=asker)
        run = Run(path)
        # With the visitor's own sign-in: the zip may name a model that only others may read.
        checking.fetch_base(run, visitor)
        limited.run(f"{JOBS}:check", checking.device(), str(path), visitor.token or False, limits=IMPORT, asker=asker)
        runs_cleanup.make_room_for(run, run_queue.kept() | {run.id})
        return run, ownership.claim(run, visitor)
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise
