"""What is made before something of a run leaves: in a bounded process where a stranger's files decide of it."""

from tuner import limited
from tuner.errors import TunerError
from tuner.hub.contents import CONTENTS, gguf_name
from tuner.hub.receipt import is_current
from tuner.limited import Asker, Limits
from tuner.models.fetch import is_shipped
from tuner.runs import Run
from tuner.ui.visitor import Visitor

JOBS = "tuner.hub.jobs"
RECEIPT = Limits("Writing the receipt of this run", "Try again, or download the run and push it on your own machine.")
GGUF = Limits("Writing the GGUF file", "Download the merged model and convert it yourself.", 1800, "downloads")


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
) -> str:
    """Push to the visitor's repository; returns its address. Raises TunerError."""
    from tuner.hub import push

    prepare(run, "adapter", visitor)
    options = {"private": private, "failed_merge": failed_merge, "data_name": data_name.strip() or None}
    return push.push(run, repository, what, token=visitor.token, **options)
