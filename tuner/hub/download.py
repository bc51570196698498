"""What somebody downloads of a run: one zip with a folder, and in it all that is needed to load what was trained.

archive, name = package(run, "adapter")
"""

import re
from pathlib import PurePath

from tuner.errors import TunerError
from tuner.hub import contents
from tuner.hub.archive import Archive, lay_out
from tuner.hub.card_data import without_paths
from tuner.hub.card_use import HERE, code, kind_of
from tuner.hub.contents import CONTENTS, Files
from tuner.models.fetch import is_shipped
from tuner.runs import Run

BASE = "base"  # the folder of a base model that comes with Tuner, beside its adapter
# The lines before those of the card: the folder may be anywhere.
IN_ITS_FOLDER = "import os\n\nos.chdir(os.path.dirname(os.path.abspath(__file__)))\n"


def package(run: Run, what: str, data_name: str | None = None) -> tuple[Archive, str]:
    """The zip of `what` (one of CONTENTS), and its name. Reads each file once, which takes seconds for gigabytes.

    `data_name` is what the card calls a file of one's own. Raises TunerError if the run has no such content.
    """
    if what not in CONTENTS:
        raise TunerError(f"'{what[:40]}' can't be downloaded. Choose one of: {', '.join(CONTENTS)}.")
    if problem := CONTENTS[what].problem(run):
        raise TunerError(problem)
    name = file_name(run, what)
    files = {f"{name}/{path}": content for path, content in _files(run, what, data_name).items()}
    return lay_out(files), f"{name}.zip"


def file_name(run: Run, what: str) -> str:
    """A name for the file, in letters that every system can write."""
    words = re.sub(r"[^a-z0-9]+", "-", (run.recipe.name or "").lower()).strip("-")[:60]
    return f"{words or 'run'}-{run.id[:8]}-{what}"


def _files(run: Run, what: str, data_name: str | None) -> Files:
    model = run.recipe.model.name
    base = BASE if what == "adapter" and is_shipped(model) else None
    files = CONTENTS[what].files(run, HERE, base, data_name=data_name)
    if what in ("run", "gguf"):
        return files
    if base:
        copied = contents.base(run, PurePath(model).name)
        files |= {f"{BASE}/{path}": content for path, content in copied.items() if path != "README.md"}
    kind = "merged" if what == "merged" else kind_of(run)
    loading = IN_ITS_FOLDER + code(run, without_paths(run), base, HERE, kind)
    return files | {"load.py": f"{loading}\n".encode()}
