"""Push a run to the Hub: adapter, tokenizer, card, recipe and scores, in one commit, so that one line loads it back.

    url = push(run, "my-adapter", token=token)        # private, under the token's own name
    AutoPeftModelForCausalLM.from_pretrained("me/my-adapter")

A shipped base model is on the Hub under no name, so it is pushed too, to the repository's name with "-base" behind it.
Everything that can be checked is checked before anything is written. The token is used for the requests and goes
nowhere else; there is no default, because on a shared page this machine's own login is not the visitor's.
"""

import json
import logging
from pathlib import Path

from tuner import hub_errors
from tuner.errors import TunerError
from tuner.hub.card import base_card, card, public_recipe
from tuner.methods.files import CONFIG, SECOND
from tuner.methods.files import WEIGHTS as ADAPTER
from tuner.models.fetch import FILES, fetch_model, is_shipped
from tuner.runs import Run

log = logging.getLogger(__name__)

BASE_SUFFIX = "-base"
TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json", "added_tokens.json",
    "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "merges.txt",
)  # fmt: skip
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".pkl", ".gguf", ".h5", ".onnx")
TOKENS_PAGE = "https://huggingface.co/settings/tokens"

Files = dict[str, Path | bytes]  # path in the repository -> a file, or its content


def push(run: Run, repo: str, *, token: str | None, private: bool = True, endpoint: str | None = None) -> str:
    """Push the run's adapter to `repo` ("name", or "owner/name") and return the repository's address.

    `endpoint` is another Hub than huggingface.co. Raises TunerError where the run, the name or the token will not do,
    and where the Hub or the network fails; nothing in the run is changed.
    """
    from huggingface_hub import HfApi

    repo = repo.strip()
    problems = [p for p in (_name_problem(repo), _run_problem(run), None if token else _NO_TOKEN) if p]
    if problems:
        raise TunerError(*problems)
    hub_errors.limit_waiting()
    api = HfApi(endpoint=endpoint, token=token)
    try:
        account = api.whoami()
        repo_id = repo if "/" in repo else f"{account['name']}/{repo}"
        pushes = _pushes(run, repo_id)
        _check_rights(account, pushes)
        # Both are looked at before either is written.
        there = {name: _look(api, name, files, private) for name, files in pushes.items()}
        for name, files in pushes.items():
            _upload(api, name, files, there[name], private)
    except TunerError:
        raise
    except Exception as error:
        raise _in_plain_words(error, repo) from error
    return f"{api.endpoint}/{repo_id}"


_NO_TOKEN = (
    f"There is no token, so the Hub can't know you. Make one with write rights at {TOKENS_PAGE} and give it as "
    "HF_TOKEN or with `hf auth login`; on the page, sign in."
)


def _name_problem(repo: str) -> str | None:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        # The base's repository must have a name as well.
        validate_repo_id(repo + BASE_SUFFIX)
        validate_repo_id(repo)
    except HFValidationError:
        return (
            f"'{repo}' can't be a repository's name. Give name or owner/name, in letters, digits, '-', '_' and '.', "
            "without '--' or '..', not beginning or ending with '-' or '.', not ending with '.git', in at most "
            f"{96 - len(BASE_SUFFIX)} characters."
        )
    return None


def _run_problem(run: Run) -> str | None:
    if run.is_training:
        return f"Run {run.id} is still in training. Wait until it has ended, or stop it: what it learned is kept."
    if not (run.adapter / CONFIG).is_file() or not (run.adapter / ADAPTER).is_file():
        if any(run.adapter.glob("*.bin")):
            return f"The adapter of run {run.id} is a pickle, which is never pushed. Save it as safetensors."
        return f"Run {run.id} has no adapter yet. Train it first, then push."
    name = run.recipe.model.name
    if Path(name).is_dir() and not is_shipped(name):
        folder = Path(name).name
        return (
            f"The base model '{folder}' is a folder on this machine, so nobody could load the adapter. Push the base "
            "to the Hub first, then train with its name there."
        )
    return None


def _pushes(run: Run, repo_id: str) -> dict[str, Files]:
    """What goes into which repository; a base that the Hub does not have first."""
    name = run.recipe.model.name
    base = repo_id + BASE_SUFFIX if is_shipped(name) else None
    adapter = _adapter_files(run, repo_id, base)
    return {base: _base_files(run, repo_id), repo_id: adapter} if base else {repo_id: adapter}


def _adapter_files(run: Run, repo_id: str, base: str | None) -> Files:
    scores = run.read_json("evaluation.json")
    files: Files = {
        **_part(run, "", base),
        "README.md": card(run, repo_id, base).encode(),
        "recipe.yaml": public_recipe(run.recipe).to_yaml().encode(),
    }
    if (run.adapter / SECOND).is_dir():
        files |= _part(run, f"{SECOND}/", base)
    files |= {name: run.adapter / name for name in TOKENIZER if (run.adapter / name).is_file()}
    return files | ({"evaluation.json": _json(scores)} if scores else {})


def _part(run: Run, place: str, base: str | None) -> Files:
    """Weights and configuration of an adapter, or of one part of a hybrid."""
    config = run.read_json(f"adapter/{place}{CONFIG}")
    config["base_model_name_or_path"] = base or run.recipe.model.name
    # The very base that it was trained on, whatever its name comes to mean later.
    config["revision"] = None if base else run.plan.get("revision") or run.recipe.model.revision
    return {place + CONFIG: _json(config), place + ADAPTER: run.adapter / place / ADAPTER}


def _base_files(run: Run, adapter: str) -> Files:
    model = run.recipe.model
    folder = fetch_model(model)
    found = {path.name: path for pattern in FILES for path in sorted(folder.glob(pattern))}
    return found | {"README.md": base_card(model.name, adapter).encode()}


def _json(value) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _check_rights(account: dict, repos: dict[str, Files]) -> None:
    """Raises TunerError where whoami already tells that the token can't write."""
    owner = next(iter(repos)).partition("/")[0]
    token = account.get("auth", {}).get("accessToken") or {}
    scoped = (token.get("fineGrained") or {}).get("scoped", [])
    granted = {scope["entity"].get("name") for scope in scoped if "repo.write" in scope["permissions"]}
    names = {account["name"], *(org["name"] for org in account.get("orgs", []))}
    if owner not in names | {name.partition("/")[0] for name in granted if name}:
        raise TunerError(
            f"'{owner}' is neither you ({account['name']}) nor an organisation that your token knows. Push to "
            f"{account['name']}/{list(repos)[-1].partition('/')[2]}, or use a token of theirs."
        )
    if token.get("role") == "read":
        raise TunerError(f"Your token may only read. Make one with write rights at {TOKENS_PAGE} and use that.")
    denied = [repo for repo in repos if not {owner, repo} & granted]
    if token.get("role") == "fineGrained" and denied:
        raise TunerError(
            f"Your fine-grained token may not write to {' and '.join(denied)}. Give it 'Write access to contents of "
            f"all repos' under {owner} at {TOKENS_PAGE}, or use one with write rights."
        )


def _look(api, repo_id: str, files: Files, private: bool) -> set[str] | None:
    """What the repository holds, or None where it is yet to be made. Raises TunerError where it must be left alone."""
    from huggingface_hub.utils import RepositoryNotFoundError

    try:
        info = api.model_info(repo_id, files_metadata=True)
    except RepositoryNotFoundError:
        return None
    if bool(info.private) != private:
        is_, asked = ("private", "public") if info.private else ("public", "private")
        raise TunerError(
            f"{repo_id} exists already and is {is_}, and this push is to be {asked}. Push {is_}, change it on "
            f"{api.endpoint}/{repo_id}/settings, or choose another name."
        )
    there = {sibling.rfilename: sibling for sibling in info.siblings or []}
    for name in filter(lambda name: name.endswith(WEIGHTS), there):
        # An adapter may take an older one's place; a base is never changed.
        if name not in files or (not name.endswith(ADAPTER) and not _is_same(there[name], files[name])):
            raise TunerError(f"{repo_id} exists already and holds another model ({name}). Choose another name.")
    return set(there)


def _is_same(sibling, file: Path) -> bool:
    from huggingface_hub.utils.sha import sha_fileobj

    with open(file, "rb") as content:
        return bool(sibling.lfs) and sibling.lfs.sha256 == sha_fileobj(content).hex()


def _upload(api, repo_id: str, files: Files, there: set[str] | None, private: bool) -> None:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    if there is None:
        api.create_repo(repo_id, private=private)
    # A tokenizer that an earlier push left behind would be read along with this one's.
    stale = sorted((there or set()) & set(TOKENIZER) - set(files))
    api.create_commit(
        repo_id,
        [*(CommitOperationAdd(path, content) for path, content in files.items()), *map(CommitOperationDelete, stale)],
        commit_message="Push with Tuner",
    )


def _in_plain_words(error: Exception, repo: str) -> TunerError:
    known = hub_errors.explain(error, f"the push to '{repo}'", "The run is kept as it is.")
    if known:
        return known
    log.error("push to %s", repo, exc_info=error)
    return TunerError(
        f"The push to '{repo}' failed in a way we did not foresee ({type(error).__name__}). The run is kept as it is: "
        "try again, or upload the run's adapter folder by hand."
    )
