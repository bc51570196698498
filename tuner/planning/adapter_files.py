"""Fetch an adapter of the Hub: its configuration, safetensors and chat template, whose sizes are looked at first."""

from pathlib import Path
from typing import TYPE_CHECKING

from tuner import hub_errors, models_cleanup, names, runs_cleanup
from tuner.errors import TunerError
from tuner.hub_retry import Retries
from tuner.methods.files import CONFIG, SECOND, WEIGHTS
from tuner.models.fetch import PATIENCE, RESERVE
from tuner.words import gigabytes

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

# What the adapter answers with: never pickles, never code, and none of the checkpoints in subfolders.
TEMPLATES = ("chat_template.jinja", "tokenizer_config.json")
RECEIPT = "receipt.json"  # with the names of the labels, if the adapter was pushed from here
FILES = (CONFIG, WEIGHTS, *TEMPLATES, RECEIPT)
PICKLE = "adapter_model.bin"
MOST_BYTES = 2 * 2**30  # of a visitor's adapter; one of rank 256 on all layers of a model with 8 billion parameters
MOST_CONFIG = 2**20  # bytes of its configuration


def split_name(name: str) -> tuple[str, str | None]:
    """Repository and revision of owner/name[@revision]. Raises TunerError if it can't be an adapter's name."""
    repository, _, revision = name.strip().partition("@")
    if not names.fits("dataset", repository):  # with its owner, unlike a model's
        raise TunerError(
            f"'{names.shown(name)}' can't be an adapter's name. Give one as on the Hub: owner/name, or "
            "owner/name@revision."
        )
    names.check(revision=revision or None)
    return repository, revision or None


def fetch_adapter(name: str, token: str | bool | None) -> Path:
    """The folder in the cache with the files of an adapter, owner/name[@revision].

    `token` is the visitor's own, False for a visitor without one, and None for this machine's own login. The folder's
    name is the commit. Raises TunerError if there is no such adapter or if it can't be used; nothing is downloaded
    then.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    repository, revision = split_name(name)
    hub_errors.limit_waiting()
    api, retry = HfApi(token=token), Retries()
    try:
        info = retry(lambda: api.model_info(repository, revision=revision, files_metadata=True, timeout=PATIENCE))
        if info.gated or info.private:  # whose description may be open to more people than their files
            retry(lambda: api.auth_check(repository))
        size = _check_listing(info, repository, is_own=token is None)
        storage = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model")
        folder = storage / "snapshots" / info.sha
        if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
            models_cleanup.make_room(storage, size + RESERVE, runs_cleanup.bases, keep=folder)
            _check_room(repository, size, storage)
            models_cleanup.begin_download(storage)
            options = {"revision": info.sha, "token": token, "allow_patterns": list(FILES)}
            retry(lambda: snapshot_download(repository, **options))
        return models_cleanup.use(lambda: folder)
    except TunerError:
        raise
    except Exception as error:
        page = f"https://huggingface.co/{repository}"
        raise hub_errors.explain(error, f"the adapter '{repository}'", page=page, token=token) or error from error


def _check_listing(info: "ModelInfo", name: str, *, is_own: bool) -> int:
    """The bytes that we need. Raises TunerError if it is no adapter that can be used, or too large for a visitor."""
    files = {file.rfilename: file.size or 0 for file in info.siblings or []}
    if CONFIG not in files:
        what = "a base model" if "config.json" in files else "no adapter"
        raise TunerError(f"'{name}' is {what}: it has no {CONFIG}. Give the name of an adapter in PEFT's format.")
    if WEIGHTS not in files:
        only = " (only pickles)" if PICKLE in files else ""
        raise TunerError(
            f"'{name}' has no {WEIGHTS}{only}, and pickles are never loaded. Ask its author for safetensors, or "
            "choose another adapter."
        )
    if f"{SECOND}/{CONFIG}" in files:
        raise TunerError(
            f"'{name}' consists of two adapters, one on top of the other, and only single ones can be used here. "
            "Choose another."
        )
    if files[CONFIG] > MOST_CONFIG:
        raise TunerError(
            f"'{name}' can't be used: its {CONFIG} has {files[CONFIG] >> 20:,} MB. Choose another adapter."
        )
    size = sum(files.get(file, 0) for file in FILES)
    if size > MOST_BYTES and not is_own:
        raise TunerError(
            f"'{name}' has {gigabytes(size)}, and this page allows adapters of at most {gigabytes(MOST_BYTES)}. "
            "Choose a smaller one, or run Tuner on your own machine."
        )
    return size


def _check_room(name: str, size: int, storage: Path) -> None:
    free = models_cleanup.free_disk(storage)
    if size > free - RESERVE:
        raise TunerError(
            f"{name} is a download of {gigabytes(size)}, and {gigabytes(max(0, free - RESERVE))} of this machine's "
            "disk are free for it. Choose a smaller one, or try again later."
        )
