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
from tuner.hub.contents import Files
from tuner.hub.licenses import licenses
from tuner.hub.upload import Present, Tell, Upload
from tuner.hub_retry import Retries
from tuner.inference import merge_check
from tuner.methods.files import WEIGHTS as ADAPTER
from tuner.methods.registry import METHODS
from tuner.metrics import metric_of
from tuner.models.fetch import is_shipped
from tuner.names import BASE_SUFFIX, MAIN, MERGED_SUFFIX, PULL_REQUEST, WHAT
from tuner.run_files import deleted
from tuner.runs import Run

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoSibling

log = logging.getLogger(__name__)

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".pkl", ".gguf", ".h5", ".onnx")
TOKENS_PAGE = "https://huggingface.co/settings/tokens"


def push(
    run: Run,
    repo: str,
    what: str = "adapter",
    *,
    token: str | None,
    into: str = MAIN,
    private: bool = True,
    failed_merge: bool = False,
    data_name: str | None = None,
    endpoint: str | None = None,
    tell: Tell = lambda event: None,
) -> str:
    """Push `what` (one of WHAT) of the run to `repo` ("name" or "owner/name"); returns the address of what was pushed.

    Each repository gets one commit. With both, the merged model's name ends with "-merged".
    `into` is main, another branch, which is made if it is missing, or "pull request"; all but main need a repository
    that exists. `tell` gets an event before each file is sent: {"event": "push", "repo", "file", "sent", "bytes"}.
    A run whose merge has failed is pushed only with `failed_merge`: whoever merges what was pushed fails as well.
    `data_name` is what the card calls a file of one's own, whose name it does not tell.
    `endpoint` is a Hub other than huggingface.co. Raises TunerError if the run, the name or the token can't be used,
    or if the Hub or the network fails. The run itself is not changed.
    """
    from huggingface_hub import HfApi

    repo = repo.strip()
    problems = [
        *names.problems(repository=repo, branch=None if into in (MAIN, PULL_REQUEST) else into),
        *filter(None, (_run_problem(run, what, failed_merge), None if token else _NO_TOKEN)),
    ]
    if problems:
        raise TunerError(*problems)
    hub_errors.limit_waiting()
    api = HfApi(endpoint=endpoint, token=token)
    retry, upload = Retries(), None
    try:
        account = retry(api.whoami)
        repo_id = repo if "/" in repo else f"{account['name']}/{repo}"
        pushes = _pushes(run, repo_id, what, data_name=data_name, licenses=licenses(api, run))
        _check_rights(account, pushes, into)
        # All repositories are checked before any is written.
        present = {name: _look_at(api, retry, name, files, private, into) for name, files in pushes.items()}
        if into != MAIN:
            pushes = _existing(pushes, present)
        upload = Upload(api, into, private, _message(run), retry, tell)
        address = upload.run(pushes, present)
    except BaseException as error:  # Ctrl-C as well
        left = upload.undo() if upload else []
        if not isinstance(error, Exception) or (isinstance(error, TunerError) and not left):
            raise
        raise TunerError(*_in_plain_words(error, repo, run).problems, *left) from error
    return f"{api.endpoint}/{repo_id}" if into == MAIN else address


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


def _existing(pushes: dict[str, Files], present: dict[str, Present | None]) -> dict[str, Files]:
    """What is pushed to a branch or as a pull request: no shipped base model, since it never changes."""
    if missing := [name for name in pushes if not present[name]]:
        raise TunerError(
            f"{' and '.join(missing)} does not exist yet, so there is nothing to make a branch of or to open a pull "
            "request for. Push to the main branch first."
        )
    return {name: files for name, files in pushes.items() if not name.endswith(BASE_SUFFIX) or "recipe.yaml" in files}


def _check_rights(account: dict, repos: dict[str, Files], into: str) -> None:
    """Raise TunerError if whoami's answer shows that the token can't write to all these repositories."""
    owner = next(iter(repos)).partition("/")[0]
    token = account.get("auth", {}).get("accessToken") or {}
    scoped = (token.get("fineGrained") or {}).get("scoped", [])
    granted = {scope["entity"].get("name") for scope in scoped if "repo.write" in scope["permissions"]}
    names = {account["name"], *(org["name"] for org in account.get("orgs", []))}
    if into == PULL_REQUEST and token.get("role") != "read":
        return  # anybody may open one for what they can read
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


def _look_at(api: "HfApi", retry: Retries, repo_id: str, files: Files, private: bool, into: str) -> Present | None:
    """What is in the repository, None if it does not exist. Raises TunerError if it must not be changed."""
    from huggingface_hub.utils import RepositoryNotFoundError, RevisionNotFoundError

    has_branch, branch = True, None if into in (MAIN, PULL_REQUEST) else into
    try:
        info = retry(lambda: api.model_info(repo_id, revision=branch, files_metadata=True))
    except RepositoryNotFoundError:
        return None
    except RevisionNotFoundError:
        has_branch = False
    if not has_branch:
        info = retry(lambda: api.model_info(repo_id, files_metadata=True))
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
    return Present(frozenset(present), info.sha, has_branch)


def _is_same(sibling: "RepoSibling", file: Path) -> bool:
    """Whether a file in the repository has the content of `file`."""
    from huggingface_hub.utils.sha import sha_fileobj

    with open(file, "rb") as content:
        return bool(sibling.lfs) and sibling.lfs.sha256 == sha_fileobj(content).hex()


def _message(run: Run) -> str:
    """A line that names the run, by what anybody may know of it."""
    model, method = public_recipe(run).model.name, METHODS[run.recipe.method.name].title
    named = f"{run.recipe.name}: " if run.recipe.name else ""
    scores = run.read_json("evaluation.json") or {}
    metric = metric_of(scores) if scores.get("gain") else None
    figures = [scores.get(variant, {}).get(metric.name) for variant in ("base", "adapter")] if metric else []
    told = f", {metric.title} {figures[0]:.3f} -> {figures[1]:.3f}" if metric and None not in figures else ""
    return f"{named}{method} on {model}{told} (Tuner)"


def _in_plain_words(error: Exception, repo: str, run: Run) -> TunerError:
    if isinstance(error, TunerError):
        return error
    if problem := deleted(run.path) or hub_errors.explain(error, f"the push to '{repo}'", "The run is unchanged."):
        return problem
    log.error("push to %s", repo, exc_info=error)
    return TunerError(
        f"The push to '{repo}' failed with an unexpected error ({type(error).__name__}). The run is unchanged: try "
        "again, or upload its adapter folder yourself."
    )
