"""Finding base models: folders shipped under examples/, or the Hub's. The only part that uses the network."""

import shutil
from contextlib import suppress
from pathlib import Path

from tuner import hub_errors, recipe
from tuner.errors import TunerError
from tuner.models.shape import Base
from tuner.runs import Run
from tuner.tasks import task_of

# What a base model's folder on the Hub may hold that we need: never pickles, never code.
FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]


def base_of(run: Run) -> Base:
    """The run's base at the revision that it was prepared with, fetched if need be. Raises TunerError."""
    model, plan = run.recipe.model, run.plan
    folder = fetch_model(model.model_copy(update={"revision": plan["revision"]}))
    return Base(folder, model, task_of(plan).name, tuple(plan.get("labels", ())))


def is_shipped(name: str) -> bool:
    return Path(name).name == name and (recipe.EXAMPLES / name / "config.json").is_file()


def fetch_model(model: recipe.Model) -> Path:
    """The folder that holds the model, downloaded if need be. Raises TunerError."""
    if is_shipped(model.name):
        return recipe.EXAMPLES / model.name
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import HFValidationError, LocalEntryNotFoundError

    hub_errors.limit_waiting()
    wanted = {"revision": model.revision, "allow_patterns": FILES}
    try:
        if model.revision:
            with suppress(LocalEntryNotFoundError):  # then it is downloaded
                return Path(snapshot_download(model.name, **wanted, local_files_only=True))
        folder = Path(snapshot_download(model.name, **wanted))
    except HFValidationError:
        raise TunerError(f"'{model.name}' can't be a model's name. Give one as on the Hub: owner/name.") from None
    except Exception as error:
        raise hub_errors.explain(error, f"the model '{model.name}'") or error from error
    if not (folder / "config.json").is_file():
        raise TunerError(f"'{model.name}' on the Hub holds no model (no config.json). Is it a dataset or an adapter?")
    if not any(folder.glob("*.safetensors")):
        raise TunerError(f"'{model.name}' has no safetensors weights. Choose a model, or a revision, that has them.")
    return folder


def free_disk(path: Path) -> int:
    """Bytes free where `path` lies."""
    return shutil.disk_usage(path).free
