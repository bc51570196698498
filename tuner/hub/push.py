"""Push a run to the Hub: adapter or merged model, with tokenizer, card, recipe and scores; one line of code loads it.

    url = push(run, "my-adapter", token=token)        # private, under the token's own name
    AutoPeftModelForCausalLM.from_pretrained("me/my-adapter")

A shipped base model is not on the Hub, so it is pushed as well, to a repository whose name ends with "-base".
Everything that can be checked is checked before anything is written. The token is used for these requests only. It has
no default, because on a shared page this machine's login is not the visitor's.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuner import hub_errors, names
from tuner.errors import TunerError
from tuner.hub import contents, receipt
from tuner.hub.card_data import public_recipe
from tuner.hub.contents import TOKENIZER, Files
from tuner.hub.licenses import licenses
from tuner.hub.retry import Retry
from tuner.inference import merge_check
from tuner.methods.files import WEIGHTS as ADAPTER
from tuner.methods.registry import METHODS
from tuner.metrics import metric_of
from tuner.models.fetch import is_shipped
from tuner.names import BASE_SUFFIX, MERGED_SUFFIX, WHAT
from tuner.run_files import deleted
from tuner.runs import Run

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoSibling

log = logging.getLogger(__name__)

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".pkl", ".gguf", ".h5", ".onnx")
EMPTY = {".gitattributes"}  # what a repository holds that was just made
TOKENS_PAGE = "https://huggingface.co/settings/tokens"


def push(
    run: Run,
    repo: str,
    what: str = "adapter",
    *,
    token: str | None,
    private: bool = True,
    failed_merge: bool = False,
    data_name: str | None = None,
    endpoint: str | None = None,
) -> str:
    """Push `what` (one of WHAT) of the run to `repo` ("name" or "owner/name"); returns the address of the repository.

    Each repository gets one commit. With both, the merged model's name ends with "-merged".
    A run whose merge has failed is pushed only with `failed_merge`: whoever merges what was pushed fails as well.
    `data_name` is what the card calls a file of one's own, whose name it does not tell.
    `endpoint` is a Hub other than huggingface.co. Raises TunerError if the run, the name or the token can't be used,
    or if the Hub or the network fails. The run itself is not changed.
    """
    from huggingface_hub import HfApi

    repo = repo.strip()
    problems = [
        *names.problems(repository=repo),
        *filter(None, (_run_problem(run, what, failed_merge), None if token else _NO_TOKEN)),
    ]
    if problems:
        raise TunerError(*problems)
    hub_errors.limit_waiting()
    api, retry = HfApi(endpoint=endpoint, token=token), Retry()
    try:
        account = retry(api.whoami)
        repo_id = repo if "/" in repo else f"{account['name']}/{repo}"
        pushes = _pushes(run, repo_id, what, data_name=data_name, licenses=licenses(api, run))
        _check_rights(account, pushes)
        # Both repositories are checked before either is written.
        present = {name: retry(_list_files, api, name, files, private) for name, files in pushes.items()}
    except TunerError:
        raise
    except Exception as error:
        raise _in_plain_words(error, repo, run) from error
    _upload_all(api, retry, pushes, present, private, repo, run)
    return f"{api.endpoint}/{repo_id}"


_NO_TOKEN = (
    "There is no token, so the Hub does not know who you are. On the page, sign in. In a terminal, create a token "
    f"with write access at {TOKENS_PAGE} and set HF_TOKEN, or run `hf auth login`."
)


def _run_problem(run: Run, what: str, failed_merge: bool) -> str | None:
    if what not in WHAT:
        return f"'{what[:40]}' can't be pushed. Choose one of: {', '.join(WHAT)}."
    if run.is_training:
        return f"Run {run.id} is still in training. Wait until it ends, or stop it: what it learned is kept."
    if problem := contents.CONTENTS["adapter"].problem(run):
        return problem
    if what != "merged" and (own_folder := run.plan.get("model_folder")):
        return (
            f"The base model '{Path(own_folder).name}' is a folder on this machine, so nobody else could load the "
            "adapter. Push that model to the Hub first, then train with its name there."
        )
    if what != "adapter" and (problem := contents.CONTENTS["merged"].problem(run)):
        return problem
    if not failed_merge and (failure := merge_check.problem(run.read_json("merge_check.json") or {})):
        return (
            f"{failure} To push the adapter all the same, tick '{merge_check.CONSENT}' on the page, or use "
            "--failed-merge in a terminal."
        )
    return None


def _pushes(run: Run, repo_id: str, what: str, **told: Any) -> dict[str, Files]:
    """The files of each repository to push to; a shipped base model comes first."""
    name = run.recipe.model.name
    base = repo_id + BASE_SUFFIX if is_shipped(name) and what != "merged" else None
    pushes = {base: contents.base(run, repo_id)} if base else {}
    if what != "adapter":
        place = repo_id if what == "merged" else repo_id + MERGED_SUFFIX
        pushes[place] = contents.merged(run, place, base, **told)
    return pushes if what == "merged" else pushes | {repo_id: contents.adapter(run, repo_id, base, **told)}


def _check_rights(account: dict, repos: dict[str, Files]) -> None:
    """Raise TunerError if whoami's answer shows that the token can't write to all these repositories."""
    owner = next(iter(repos)).partition("/")[0]
    token = account.get("auth", {}).get("accessToken") or {}
    scoped = (token.get("fineGrained") or {}).get("scoped", [])
    granted = {scope["entity"].get("name") for scope in scoped if "repo.write" in scope["permissions"]}
    names = {account["name"], *(org["name"] for org in account.get("orgs", []))}
    if owner not in names | {name.partition("/")[0] for name in granted if name}:
        raise TunerError(
            f"'{owner}' is neither you ({account['name']}) nor an organization that your token can access. Push to "
            f"{account['name']}/{list(repos)[-1].partition('/')[2]}, or use a token for that organization."
        )
    if token.get("role") == "read":
        raise TunerError(f"Your token may only read. Create one with write access at {TOKENS_PAGE}.")
    denied = [repo for repo in repos if not {owner, repo} & granted]
    if token.get("role") == "fineGrained" and denied:
        raise TunerError(
            f"Your fine-grained token may not write to {' and '.join(denied)}. Give it 'Write access to contents of "
            f"all repos' under {owner} at {TOKENS_PAGE}, or use a token with write access."
        )


def _list_files(api: "HfApi", repo_id: str, files: Files, private: bool) -> set[str] | None:
    """Paths in the repository, or None if it does not exist. Raises TunerError if it must not be changed."""
    from huggingface_hub.utils import RepositoryNotFoundError

    try:
        info = api.model_info(repo_id, files_metadata=True)
    except RepositoryNotFoundError:
        return None
    if bool(info.private) != private:
        current, requested = ("private", "public") if info.private else ("public", "private")
        raise TunerError(
            f"{repo_id} already exists and is {current}, but this push would be {requested}. Push it as {current}, "
            f"change the repository at {api.endpoint}/{repo_id}/settings, or choose another name."
        )
    present = {sibling.rfilename: sibling for sibling in info.siblings or []}
    is_ours = (
        receipt.NAME in files and {receipt.NAME, "recipe.yaml"} <= present.keys()
    )  # an earlier push of a merged model
    for name in filter(lambda name: name.endswith(WEIGHTS), present):
        # An adapter or merged model may replace an older one of ours; a base model is never changed.
        if name not in files or not (is_ours or name.endswith(ADAPTER) or _is_same(present[name], files[name])):
            raise TunerError(f"{repo_id} already exists and holds another model ({name}). Choose another name.")
    return set(present)


def _is_same(sibling: "RepoSibling", file: Path) -> bool:
    """Whether a file in the repository has the content of `file`."""
    from huggingface_hub.utils.sha import sha_fileobj

    with open(file, "rb") as content:
        return bool(sibling.lfs) and sibling.lfs.sha256 == sha_fileobj(content).hex()


def _upload_all(
    api: "HfApi",
    retry: Retry,
    pushes: dict[str, Files],
    present: dict[str, set[str] | None],
    private: bool,
    repo: str,
    run: Run,
) -> None:
    """Make the repositories that are missing and commit to all; if anything fails, none of the new ones is left."""
    made: list[str] = []
    doubtful: set[str] = set()  # repositories of which it is not known whether they were made
    message = _message(run)
    try:
        for name, files in pushes.items():
            if present[name] is None:
                retry(_create, api, name, private, made, doubtful)
            retry(_commit, api, name, files, present[name], message)
    except BaseException as error:  # Ctrl-C as well
        if len(made) == len(pushes) and all(set(files) <= _files_now(api, name) for name, files in pushes.items()):
            return  # only the Hub's answer was lost
        made += [name for name in doubtful if name not in made and _files_now(api, name) <= EMPTY]
        left = [sentence for name in made if (sentence := _delete(api, retry, name))]
        if not isinstance(error, Exception):
            raise
        raise TunerError(*_in_plain_words(error, repo, run).problems, *left) from error


def _create(api: "HfApi", repo_id: str, private: bool, made: list[str], doubtful: set[str]) -> None:
    try:
        api.create_repo(repo_id, private=private)
    except Exception as error:
        # Without an answer, it may have been made; if it holds anything, somebody else made it.
        if repo_id not in doubtful and hub_errors.is_answer(error):
            raise
        doubtful.add(repo_id)
        if _files_now(api, repo_id) != EMPTY:
            raise
    made.append(repo_id)


def _message(run: Run) -> str:
    """A line that names the run, by what anybody may know of it."""
    model, method = public_recipe(run).model.name, METHODS[run.recipe.method.name].title
    named = f"{run.recipe.name}: " if run.recipe.name else ""
    scores = run.read_json("evaluation.json") or {}
    metric = metric_of(scores) if scores.get("gain") else None
    figures = [scores.get(variant, {}).get(metric.name) for variant in ("base", "adapter")] if metric else []
    told = f", {metric.title} {figures[0]:.3f} -> {figures[1]:.3f}" if metric and None not in figures else ""
    return f"{named}{method} on {model}{told} (Tuner)"


def _commit(api: "HfApi", repo_id: str, files: Files, present: set[str] | None, message: str) -> None:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    # Tokenizer files left over from an earlier push would be loaded together with the new ones.
    stale = sorted((present or set()) & set(TOKENIZER) - set(files))
    api.create_commit(
        repo_id,
        [*(CommitOperationAdd(path, content) for path, content in files.items()), *map(CommitOperationDelete, stale)],
        commit_message=message,
    )


def _files_now(api: "HfApi", repo_id: str) -> set[str]:
    """The files that the repository holds, as far as the Hub answers."""
    try:
        return {file.rfilename for file in api.model_info(repo_id).siblings or []}
    except Exception as error:
        log.info("%s can't be looked at: %s", repo_id, type(error).__name__)
        return set()


def _delete(api: "HfApi", retry: Retry, repo_id: str) -> str | None:
    """Delete a repository that this push has made; what to say if it is perhaps left."""
    try:
        retry(api.delete_repo, repo_id, missing_ok=True)
    except Exception as error:
        log.warning("%s can't be deleted: %s", repo_id, type(error).__name__)
        return (
            f"{repo_id} may have been created, and could not be deleted again. Push to it once more, or delete it at "
            f"{api.endpoint}/{repo_id}/settings."
        )
    return None


def _in_plain_words(error: Exception, repo: str, run: Run) -> TunerError:
    if problem := deleted(run.path) or hub_errors.explain(error, f"the push to '{repo}'", "The run is unchanged."):
        return problem
    log.error("push to %s", repo, exc_info=error)
    return TunerError(
        f"The push to '{repo}' failed with an unexpected error ({type(error).__name__}). The run is unchanged: try "
        "again, or upload its adapter folder yourself."
    )
