"""The named endpoints with which a run leaves this Space, and runs and adapters come in, for programs."""

import gradio as gr

from tuner.errors import TunerError
from tuner.ui import actions, adopting, take_home
from tuner.ui.visitor import ANYBODY, Visitor, for_visitor, with_secret, with_token
from tuner.ui.wiring import CHECKS


def build() -> None:
    """Add the endpoints to the page that is being built."""
    gr.api(for_visitor(push), api_name="push", concurrency_limit=4)
    gr.api(for_visitor(download), api_name="download", concurrency_limit=4)
    with gr.Row(visible=False):  # because gr.File accepts nothing but uploaded files
        given = gr.File(label="Zip of a run")
        gr.Button().click(for_visitor(import_run), given, gr.JSON(label="Answer"), api_name="import_run", **CHECKS)
    gr.api(for_visitor(adopt), api_name="adopt", concurrency_limit=4)


def push(
    run: str,
    repository: str,
    token: str = "",
    private: bool = True,
    failed_merge: bool = False,
    what: str = "adapter",
    data_name: str = "",
    into: str = "main",
    secret: str = "",
    visitor: Visitor = ANYBODY,
) -> str:
    """Push the adapter or the merged model with its tokenizer and model card to your repository; returns its address.

    Args:
        run: The run's id.
        repository: owner/name, or a name.
        token: A Hub token with write access, used once and not stored; without it, your sign-in is used.
        private: Whether only you can see the repository.
        failed_merge: Whether to push it although merging it changed its answers; such a push is refused without.
        what: "adapter", "merged" or "both"; the merged model's repository then ends with -merged.
        data_name: What the card calls a file of yours, whose own name it does not tell.
        into: "main", another branch by its name, or "pull request"; all but main need a repository that exists.
        secret: The run's secret, which /train gave you.
    """
    visitor = with_secret(with_token(visitor, token), run, secret)
    options = {"failed_merge": failed_merge, "what": what, "data_name": data_name, "into": into}
    return actions.push(run, repository, private, visitor, **options)


def download(run: str, what: str = "adapter", secret: str = "", visitor: Visitor = ANYBODY) -> dict:
    """Offer a zip for download: the adapter, the merged model, or the whole run.

    Fetch it within an hour from this server, for example with `curl -C - -O`, which resumes.

    Args:
        run: The run's id.
        what: "adapter", "run", or "merged" or "gguf" (call /merge first).
        secret: The run's secret, which /train gave you.

    Returns:
        {"address": path on this server, "name": file name, "bytes": size}.
    """
    return actions.download(run, what, with_secret(visitor, run, secret))


def import_run(file: str | None, visitor: Visitor = ANYBODY) -> dict:
    """Take in the zip of a whole run, as /download makes it with "run": from then on it is yours here, too.

    Args:
        file: The zip.

    Returns:
        {"run": id, "secret": what lets you resume, stop, delete, merge and push it}.
    """
    if not file:
        raise TunerError("There is no file. Give the zip of a whole run.")
    run, secret = take_home.import_run(file, visitor)
    return {"run": run.id, "secret": secret}


def adopt(adapter: str, quantization: str = "none", visitor: Visitor = ANYBODY) -> dict:
    """Fetch an adapter of the Hub and its base, to chat with them and to train on from it (method.start_from).

    Private and gated ones are fetched with your sign-in. Only safetensors are loaded, and no code.

    Args:
        adapter: owner/name, or owner/name@revision.
        quantization: The base's precision, "nf4", "int8" or "none" for 16-bit; runs answer side by side in the same.

    Returns:
        {"run": id, "secret": text, "model": the base's name}; chat with the run by /chat.
    """
    run, secret = adopting.adopt(adapter, quantization, visitor)
    return {"run": run.id, "secret": secret, "model": run.recipe.model.name}
