"""Find the files of a base model: shipped with Tuner, on the Hub, or in a folder of the user's own.

A folder is used only if the caller passes one. A shared page never does, so a visitor's model name is never treated as
a path. The cache of downloads belongs to this machine: a visitor may train on a model in it only if the Hub lets that
visitor read the model now or, while the Hub is out of reach, if anybody could read it when it was downloaded. Whoever
has a run's link chats with its adapter on the base that is here already: that is what the run's owner shares.
"""

import json
import os
import re
import secrets
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tuner import hub_errors, models_cleanup, names, recipe, runs_cleanup
from tuner.errors import TunerError
from tuner.models import quantized
from tuner.models.shape import Base
from tuner.models.weights import INDEX, MAX_SHARDS, WHOLE, reading, stored_sizes
from tuner.runs import Run
from tuner.tasks import task_of
from tuner.words import count, gigabytes

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

# The files that we need from a model repository: never pickles, never code.
FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
# Any of them makes a tokenizer; ByT5's needs the last one only.
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.json")
TOKENIZERS += ("vocab.txt", "tokenizer_config.json")
SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})\.safetensors", re.ASCII)
OTHER_WEIGHTS = {".gguf": "GGUF", ".onnx": "ONNX", ".msgpack": "Flax", ".h5": "TensorFlow"}
SHIPPED_NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
STORED_BYTES = 4  # the most that a parameter takes in a file
MOST_FILES = 500  # of a visitor's model
MOST_TEXT = 250 * 2**20  # bytes of all its files but the weights: configurations and vocabularies
RESERVE = 2**30  # bytes of the disk that are left to the runs
PUBLIC = "tuner-public.json"  # in a model's folder of the cache: revision -> commit, of those that anybody may read
PATIENCE = 10.0  # seconds


def base_of(run: Run, token: str | bool | None = None) -> Base:
    """The run's base model, exactly as it was when the run was prepared; downloads it if it is no longer here.

    `token` is that of whoever asks, as for `fetch_model`. Raises TunerError if the model can't be found any more.
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
    pinned = model.model_copy(update={"revision": plan["revision"]})
    folder = models_cleanup.use(lambda: _prepared(run))
    if folder:
        _check_files(folder, model.name)
    folder = folder or fetch_model(pinned, own_folder, token)
    # The folder is the version: one that a recipe names is the same base as the newest, if that is the newest.
    plain = model.model_copy(update={"revision": None})
    return Base(folder, plain, task_of(plan).name, tuple(plan.get("labels", ())))


def is_here(run: Run) -> bool:
    """Whether the run's base model need not be downloaded; a look at the disk tells."""
    return bool(run.plan.get("model_folder") or is_shipped(run.recipe.model.name) or _prepared(run))


def _prepared(run: Run) -> Path | None:
    """The folder of the run's base model in the cache: whoever prepared the run was allowed to read this version."""
    revision = run.plan["revision"]
    return _cached(run.recipe.model.model_copy(update={"revision": revision})) if revision else None


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
    if is_shipped(name):
        return None
    candidates = [folder / os.path.expanduser(name) for folder in (base, Path.cwd()) if folder]
    for folder in candidates:
        if os.path.isdir(folder):
            return folder.resolve()
    return None if names.fits("model", name) else candidates[-1].absolute()


def is_at_hand(model: recipe.Model) -> bool:
    """Whether any visitor may use the model without a download, or none would be tried because of its name.

    It tells nothing of models that not everybody may read.
    """
    if is_shipped(model.name) or names.problems(model=model.name, revision=model.revision):
        return True
    return _public_copy(model) is not None


def fetch_model(
    model: recipe.Model,
    own_folder: Path | None = None,
    token: str | bool | None = None,
    most_parameters: float | None = None,
) -> Path:
    """The folder that holds the model's files: `own_folder`, a shipped one, or one downloaded from the Hub.

    `token` is the visitor's own, False for a visitor without one, and None for this machine's own login. Nothing is
    downloaded of a visitor's model with more than `most_parameters`.
    Raises TunerError if there is no such model or if it can't be used.
    """
    if own_folder is None and is_shipped(model.name):
        return recipe.EXAMPLES / model.name
    if own_folder is None:
        folder = _download(model, token, most_parameters)
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


def _download(model: recipe.Model, token: str | bool | None, most_parameters: float | None) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError

    names.check(model=model.name, revision=model.revision)
    is_own = token is None
    if is_own and model.revision and (folder := models_cleanup.use(lambda: _cached(model))):
        return folder
    hub_errors.limit_waiting()
    api = HfApi(token=token)
    try:
        info = api.model_info(model.name, revision=model.revision, files_metadata=True, timeout=PATIENCE)
        if info.gated or info.private:  # whose description may be open to more people than their files
            api.auth_check(model.name)
        _note_public(model, info)
        newest = model.model_copy(update={"revision": info.sha})
        if folder := models_cleanup.use(lambda: _cached(newest)):
            return folder
        size, folder = _check_listing(info, most_parameters), _storage(model.name) / "snapshots" / info.sha
        if not is_own:
            models_cleanup.make_room(folder, size + RESERVE, runs_cleanup.bases, keep=folder)
        _check_room(info.id, size)
        models_cleanup.begin_download(_storage(model.name))
        revision = model.revision if is_own else info.sha  # the latter leaves no trace of a branch's name
        return Path(
            snapshot_download(model.name, revision=revision, token=token, allow_patterns=[*FILES, quantized.CARD])
        )
    except TunerError:
        raise
    except Exception as error:
        if isinstance(error, RepositoryNotFoundError):  # it is gone, or hidden from whoever asked
            _forget_public(model.name)
        find = _cached if is_own else _public_copy
        if (is_own or not hub_errors.is_answer(error)) and (usable := models_cleanup.use(lambda: find(model))):
            return usable
        page = f"https://huggingface.co/{model.name}"
        raise hub_errors.explain(error, f"the model '{model.name}'", page=page, token=token) or error from error


def _cached(model: recipe.Model) -> Path | None:
    """The folder of the model in the cache, if it is complete. Whether somebody may use it, the caller must know."""
    from huggingface_hub import snapshot_download

    names.check(model=model.name, revision=model.revision)
    with suppress(FileNotFoundError):
        options = {"revision": model.revision, "allow_patterns": FILES, "local_files_only": True}
        folder = Path(snapshot_download(model.name, **options))
        return folder if any(folder.iterdir()) else None  # whose removal was broken off
    return None


def _storage(name: str) -> Path:
    """The folder of all versions of a model in the cache."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model")


def _public_commits(name: str) -> dict[str, str]:
    try:
        return json.loads((_storage(name) / PUBLIC).read_text())
    except (OSError, ValueError):
        return {}


def _public_copy(model: recipe.Model) -> Path | None:
    """The folder of the model in the cache if anybody may use it, without a look at the Hub."""
    commit = _public_commits(model.name).get(model.revision or "main")
    return _cached(model.model_copy(update={"revision": commit})) if commit else None


def _note_public(model: recipe.Model, info: "ModelInfo") -> None:
    """Write down which version of the model anybody may use, or that nobody may without being asked who it is."""
    if info.gated or info.private:
        _forget_public(model.name)
        return
    place, commits = _storage(model.name) / PUBLIC, _public_commits(model.name)
    noted = commits | {model.revision or "main": info.sha, info.sha: info.sha}
    with suppress(OSError):  # the note is needed only while the Hub is out of reach
        if noted != commits:
            place.parent.mkdir(parents=True, exist_ok=True)
            partial = place.with_name(f"{PUBLIC}.{secrets.token_hex(4)}")
            partial.write_text(json.dumps(noted))
            partial.replace(place)


def _forget_public(name: str) -> None:
    """Let nobody have the model from the cache without asking the Hub."""
    with suppress(OSError):
        (_storage(name) / PUBLIC).unlink(missing_ok=True)


def _check_listing(info: "ModelInfo", most_parameters: float | None) -> int:
    """The bytes of the files that we need. Raises TunerError if it is no model, or too large for a visitor."""
    from huggingface_hub.utils import filter_repo_objects

    files = {file.rfilename: file.size or 0 for file in info.siblings or []}
    _check_names(files, info.id)
    _check_shards(files, info.id)
    quantized.precision_of(info.config or {}, info.id, files)
    if not any(file in TOKENIZERS or file.endswith(".tiktoken") for file in files):
        raise TunerError(f"'{info.id}' has no tokenizer (such as tokenizer.json). Choose a model that has one.")
    files = {name: files[name] for name in filter_repo_objects(files, allow_patterns=FILES)}
    weights = sum(size for name, size in files.items() if name.endswith(".safetensors"))
    text = sum(files.values()) - weights
    if most_parameters is not None:
        check_size(info.id, info.safetensors.total if info.safetensors else 0, most_parameters)
        if weights > STORED_BYTES * most_parameters:
            raise TunerError(
                f"{info.id} has {gigabytes(weights)} of weights, and this page allows models of at most "
                f"{most_parameters / 1e9:g} billion parameters. Choose a smaller model, or run Tuner on your own "
                "machine."
            )
        if text > MOST_TEXT or len(files) > MOST_FILES:
            raise TunerError(
                f"{info.id} has {count(len(files), 'file')}, with {gigabytes(text)} beside its weights, and this "
                f"page allows at most {MOST_FILES} files with {gigabytes(MOST_TEXT)}. Choose another model, or run "
                "Tuner on your own machine."
            )
    return weights + text


def _check_room(name: str, size: int) -> None:
    """Raise TunerError if the disk has no room for a download of so many bytes."""
    from huggingface_hub import constants

    free = models_cleanup.free_disk(constants.HF_HUB_CACHE)
    if size > free - RESERVE:
        raise TunerError(
            f"{name} is a download of {gigabytes(size)}, and {gigabytes(max(0, free - RESERVE))} of this machine's "
            "disk are free for it. Choose a smaller model, or try again later."
        )


def check_size(name: str, parameters: int, most: float) -> None:
    """Raise TunerError if a visitor's model has more parameters than the page allows."""
    if parameters > most:
        raise TunerError(
            f"{name} has {parameters / 1e9:.1f} billion parameters, and this page allows at most {most / 1e9:g} "
            "billion. Choose a smaller model, or run Tuner on your own machine."
        )


def _check_files(folder: Path, name: str) -> None:
    """Raise TunerError unless the folder holds a model, with readable weights that are not pickles."""
    with reading(folder, name):
        _check_names(files := os.listdir(folder), name)
        if INDEX not in files:
            _check_shards(files, name)
    stored_sizes(folder, name)


def _check_names(files: Collection[str], name: str) -> None:
    """Raise TunerError unless files of these names can be a model with weights that are not pickles."""
    from transformers.utils import ADAPTER_CONFIG_NAME

    # transformers would load the base that the adapter names, wherever that is, in place of this model.
    if ADAPTER_CONFIG_NAME in files:
        raise TunerError(f"'{name}' is an adapter, not a base model. Give the base model that it was trained on.")
    if "config.json" not in files:
        raise TunerError(f"'{name}' holds no model (no config.json). Give a model, not a dataset or its folder.")
    if not any(file.endswith(".safetensors") and "/" not in file for file in files):
        others = [kind for end, kind in OTHER_WEIGHTS.items() if any(file.endswith(end) for file in files)]
        only = f" (only {' and '.join(others)})" if others else ""
        raise TunerError(
            f"'{name}' has no safetensors weights{only}, and pickles are never loaded. Choose a model, or a revision, "
            "that has them."
        )


def _check_shards(files: Collection[str], name: str) -> None:
    """Raise TunerError if weights are missing by the names of others, such as model-00002-of-00003.safetensors."""
    shard = next(filter(None, map(SHARD.fullmatch, sorted(files))), None)
    if shard and WHOLE not in files and (number := int(shard[2])) <= MAX_SHARDS:
        numbered = (f"{shard[1]}-{i:05}-of-{shard[2]}.safetensors" for i in range(1, number + 1))
        if missing := next((file for file in numbered if file not in files), None):
            raise TunerError(
                f"'{name}' can't be loaded: {missing} is missing. Download or copy it again, or choose another model."
            )
