"""Does a server answer as the run did? Asked through OpenAI's interface, which llama.cpp, vLLM and Ollama offer.

Where the server tells its prompt's tokens (llama.cpp, vLLM), these are compared as well.
"""

import json
import time
import urllib.error
import urllib.request
from http.client import HTTPException, HTTPResponse
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from tuner.errors import TunerError
from tuner.hub.verify_report import Report
from tuner.tasks import TASKS

PATIENCE = 120  # seconds for an answer, all of it
MOST_BYTES = 10 * 2**20  # of an answer
CLOSE = 0.5  # nats between the two likeliest tokens, where rounding or a file's precision may choose the other
TEMPLATE = "Give the server the run's chat template (llama.cpp: --jinja --chat-template-file)."


class Server(NamedTuple):
    """A server with OpenAI's interface."""

    url: str
    model: str | None = None
    key: str | None = None

    def ask(self, path: str, body: dict) -> dict | None:
        """What it answers; None if it has no such address. Raises TunerError if it can't be asked."""
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        base = self.url.rstrip("/").removesuffix("/v1")
        if not _is_address(base):
            raise TunerError(f"--server {self.url}: this is no address. Give one such as http://127.0.0.1:8080.")
        data = json.dumps(body | ({"model": self.model} if self.model else {})).encode()
        try:
            request = urllib.request.Request(base + path, data, headers)
            with _OPENER.open(request, timeout=PATIENCE) as answer:
                found = json.loads(_read(answer))
        except urllib.error.HTTPError as error:
            if not path.startswith("/v1/chat"):  # the others are extras, and gateways refuse them in many ways
                return None
            raise TunerError(
                f"The server at {base} answers {path} with status {error.code}. Check --model and --api-key-env."
            ) from None
        except (OSError, ValueError, HTTPException, RecursionError) as error:
            raise TunerError(
                f"The server at {base} gives no usable answer ({type(error).__name__}). Check that it runs."
            ) from None
        return found if isinstance(found, dict) else None


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:  # such as a port that is no number
        return False


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: it would take the key to another server."""

    def redirect_request(self, *given: Any) -> None:
        """None: the redirect is an error."""


_OPENER = urllib.request.build_opener(_NoRedirect)


def _read(answer: HTTPResponse) -> bytes:
    """The whole answer. Raises TimeoutError if it takes longer than PATIENCE."""
    content, end = b"", time.monotonic() + PATIENCE
    while len(content) < MOST_BYTES and (chunk := answer.read1(2**16)):
        content += chunk
        if time.monotonic() > end:
            raise TimeoutError
    return content


def check_server(report: Report, server: Server, known: dict) -> None:
    """Whether the server answers the receipt's prompts as the run did; adds to the report."""
    prompts = [prompt for prompt in known.get("prompts") or () if prompt["answer"] is not None]
    if not TASKS[known["task"]].chats or not prompts:
        report.leave_open("The server: the receipt has no answers of a chat to compare with.")
        return
    _check_tokens(report, server, prompts)
    for number, prompt in enumerate(prompts, 1):
        options = {"temperature": 0, "max_tokens": known["max_new_tokens"], "logprobs": True, "top_logprobs": 5}
        found = server.ask("/v1/chat/completions", {"messages": prompt["messages"], **options})
        text, is_cut, tokens = _answer(found, "chat")
        if prompt["ended"] and is_cut:
            report.differs.append(
                f"The server does not end its answer to prompt {number}, which ended in training: {text[-60:]!r}. Set "
                "the run's stop tokens (Ollama: PARAMETER stop; GGUF: tokenizer.ggml.eos_token_id)."
            )
            return
        if _is_same(text, prompt["answer"], tokens):
            continue
        if _is_same(_completion(server, prompt, known), prompt["answer"]):
            why = f"Of the run's rendered prompt it is the same, so the server's chat template is another. {TEMPLATE}"
        else:
            why = f"Check its weights and precision, and its chat template. {TEMPLATE}"
        report.differs.append(
            f"The server answers prompt {number} with {text[:80]!r}, not {prompt['answer'][:80]!r}. {why}"
        )
        return
    report.same.append(f"The server: {len(prompts)} answers, which end")


def _completion(server: Server, prompt: dict, known: dict) -> str:
    body = {"prompt": prompt["text"], "temperature": 0, "max_tokens": known["max_new_tokens"]}
    found = server.ask("/v1/completions", body)
    return _answer(found, "text")[0] if found else ""


def _answer(found: dict | None, kind: str) -> tuple[str, bool, list[dict]]:
    """The text, whether it was cut, and its tokens with the likeliest others where the server tells them."""
    try:
        choice = found["choices"][0]
        text = choice["message"]["content"] if kind == "chat" else choice["text"]
        told = choice.get("logprobs") if kind == "chat" else None
        tokens = told.get("content") if isinstance(told, dict) else None
        is_list = isinstance(tokens, list) and all(isinstance(entry, dict) for entry in tokens)
        return str(text or ""), choice.get("finish_reason") == "length", tokens if is_list else []
    except (KeyError, IndexError, TypeError, AttributeError):
        raise TunerError("The server's answer has no choices, as OpenAI's interface gives them.") from None


def _is_same(text: str, expected: str, tokens: Any = ()) -> bool:
    """Whether the answers are the same up to where two tokens are about as likely as each other."""
    if text.strip() == expected.strip():
        return True
    written = ""
    for entry in tokens:
        token = str(entry.get("token", ""))
        rest = expected[len(written) :]
        if not rest.startswith(token):
            others = entry.get("top_logprobs")
            others = [e for e in others if isinstance(e, dict)] if isinstance(others, list) else []
            near = [e for e in others if e.get("token") and rest.startswith(str(e["token"]))]
            # A token that is said though it is less likely was drawn, or chosen by a penalty.
            return any(abs(_number(entry, 0.0) - _number(e, -100.0)) <= CLOSE for e in near)
        written += token
    return False


def _number(entry: dict, otherwise: float) -> float:
    value = entry.get("logprob")
    return value if isinstance(value, int | float) else otherwise


def _check_tokens(report: Report, server: Server, prompts: list[dict]) -> None:
    """The prompts' tokens, from llama.cpp's or vLLM's own addresses."""
    for number, prompt in enumerate(prompts, 1):
        rendered = server.ask("/apply-template", {"messages": prompt["messages"]})
        if rendered and isinstance(text := rendered.get("prompt"), str):
            body = {"content": text, "add_special": True, "parse_special": True}
        else:
            body = {"messages": prompt["messages"], "add_generation_prompt": True}
        found = server.ask("/tokenize", body)
        ids = found and found.get("tokens")
        if not isinstance(ids, list) or prompt["ids"] is None:
            report.unchecked.append("The server does not tell its prompts' tokens, so only its answers are compared.")
            return
        if ids == prompt["ids"]:
            continue
        if ids[1:] == prompt["ids"] or (ids[:1] * 2 == ids[:2] and ids[1:] == prompt["ids"]):
            why = "There is one begin token more: switch off that it is added (tokenizer.ggml.add_bos_token)."
        else:
            why = TEMPLATE
        report.differs.append(f"The server reads prompt {number} as {len(ids)} other tokens than in training. {why}")
        return
    report.same.append(f"The server: the tokens of {len(prompts)} prompts")
