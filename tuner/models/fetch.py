"""Find the files of a base model: shipped with Tuner, on the Hub, or in a folder of the user's own.

A folder is used only if the caller passes one. A shared page never does, so a visitor's model name is never treated as
a path.
"""

import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

from tuner import hub_errors, recipe
from tuner.errors import TunerError
from tuner.models.shape import Base
from tuner.models.weights import stored_sizes
from tuner.runs import Run
from tuner.tasks import task_of

# The files that we need from a model repository: never pickles, never code.
FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
SHIPPED_NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
# huggingface_hub looks for a revision in its cache by joining paths, and would follow "..".
REVISION = re.compile(r"(?!.*\.\.)\w[\w./+-]*", re.ASCII)


def base_of(run: Run) -> Base:
    """The run's base model, exactly as it was when the run was prepared; downloads it if necessary.

    Raises TunerError if the model can't be found any more.
    """
    model, plan = run.recipe.model, run.plan
    own_folder = Path(plan["model_folder"]) if plan.get("model_folder") else None
    if own_folder:
        # Two recipes may write the path of one folder in two ways, and nobody else should read it.
        model = model.model_copy(update={"name": own_folder.name})
        if not own_folder.is_dir():
            raise TunerError(
                f"The base model of run {run.id}, the folder '{own_folder.name}', was moved or deleted. Put it back: "
                "plan.json in the run's folder says where it was."
            )
    folder = fetch_model(model.model_copy(update={"revision": plan["revision"]}), own_folder)
    return Base(folder, model, task_of(plan).name, tuple(plan.get("labels", ())))


def is_shipped(name: str) -> bool:
    """Whether a base model of this name comes with Tuner."""
    # Unlike those of Path, the tests of os.path accept names of any length.
    return bool(SHIPPED_NAME.fullmatch(name)) and os.path.isfile(recipe.EXAMPLES / name / "config.json")


def find_folder(name: str, base: Path | None = None) -> Path | None:
    """The user's own folder that `name` refers to, as an absolute path; None for a shipped model or a Hub name.

    Relative paths start from `base` (the recipe's folder), then from the working directory. As in transformers, an
    existing folder takes precedence over a Hub model of the same name. A path to nothing is returned as it is, so that
    `fetch_model` can refuse it.
    """
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    if is_shipped(name):
        return None
    candidates = [folder / os.path.expanduser(name) for folder in (base, Path.cwd()) if folder]
    for folder in candidates:
        if os.path.isdir(folder):
            return folder.resolve()
    try:
        validate_repo_id(name)
    except HFValidationError:
        return candidates[-1].absolute()
    return None


def fetch_model(model: recipe.Model, own_folder: Path | None = None) -> Path:
    """The folder that holds the model's files: `own_folder`, a shipped one, or one downloaded from the Hub.

    Raises TunerError if there is no such model or if it can't be used.
    """
    if own_folder is None and is_shipped(model.name):
        return recipe.EXAMPLES / model.name
    if own_folder is None:
        folder = _download(model)
    else:
        folder = own_folder
        if not os.path.isdir(folder):
            raise TunerError(
                f"There is no folder '{model.name}', neither in the recipe's folder nor in {Path.cwd()}. Check the "
                "path, or give a Hub model as owner/name."
            )
        if model.revision:
            raise TunerError(f"model.revision: '{model.name}' is a folder and has no revisions. Leave it out.")
    _check_files(folder, model.name)
    return folder


def _download(model: recipe.Model) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import HFValidationError, LocalEntryNotFoundError

    if model.revision and not REVISION.fullmatch(model.revision):
        raise TunerError(f"model.revision: '{model.revision}' is no branch, tag or commit. Give one, or leave it out.")
    hub_errors.limit_waiting()
    options = {"revision": model.revision, "allow_patterns": FILES}
    try:
        if model.revision:
            with suppress(LocalEntryNotFoundError):  # not in the cache yet
                return Path(snapshot_download(model.name, **options, local_files_only=True))
        return Path(snapshot_download(model.name, **options))
    except HFValidationError:
        raise TunerError(f"'{model.name}' can't be a model's name. Give one as on the Hub: owner/name.") from None
    except Exception as error:
        raise hub_errors.explain(error, f"the model '{model.name}'") or error from error


def _check_files(folder: Path, name: str) -> None:
    """Raise TunerError unless the folder holds a model, with readable weights that are not pickles."""
    from transformers.utils import ADAPTER_CONFIG_NAME

    # transformers would load the base that the adapter names, wherever that is, in place of this model.
    if (folder / ADAPTER_CONFIG_NAME).is_file():
        raise TunerError(f"'{name}' is an adapter, not a base model. Give the base model that it was trained on.")
    if not (folder / "config.json").is_file():
        raise TunerError(f"'{name}' holds no model (no config.json). Give a model, not a dataset or its folder.")
    if not any(folder.glob("*.safetensors")):
        raise TunerError(
            f"'{name}' has no safetensors weights, and pickles are never loaded. Choose a model, or a revision, that "
            "has them."
        )
    stored_sizes(folder, name)


def free_disk(path: Path) -> int:
    """Free bytes on the disk that holds `path`."""
    return shutil.disk_usage(path).free
