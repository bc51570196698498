"""Errors of the Hub and of the network in plain words, with what to do.

Errors of huggingface_hub, httpx, requests, transformers and datasets are recognized by their class names, so that none
of these libraries is imported. They wrap each other's errors, so the whole chain of causes is searched. The most
specific rows come first.
"""

import errno
import re
from collections.abc import Iterator

from tuner.errors import TunerError

PATIENCE = 30.0  # seconds to wait for the next byte, and the most to wait because the Hub says so
PASSING = {408, 429, 500, 502, 503, 504}  # statuses that another attempt may not meet
BROKEN = {"TransportError", "ConnectionError", "TimeoutError", "ChunkedEncodingError"}

# (names of classes, HTTP statuses, what is shown). The first row that fits any error of the chain wins.
ROWS: list[tuple[set[str], set[int], str]] = [
    (
        {"DiskFull"},
        {507},
        "{What}: this machine's disk is full. Free some space and try again; nothing saved before is lost.",
    ),
    (
        {"PermissionError", "ReadOnly"},
        set(),
        "{What}: a folder on this machine is not writable. Fix its permissions (downloads go to HF_HOME), then retry.",
    ),
    (
        {"OfflineModeIsEnabled"},
        set(),
        "{What}: HF_HUB_OFFLINE is set, so the Hub can't be used. Unset it and try again. {otherwise}",
    ),
    (
        {"GatedRepoError"},
        set(),
        "{What} is gated: accept its terms at {page}, then {sign_in}.",
    ),
    ({"DisabledRepoError"}, set(), "{What} has been disabled on the Hub. Choose another."),
    (
        {"RevisionNotFoundError"},
        set(),
        "{What} has no such revision. Leave the revision out, or give one of its branches, tags or commits.",
    ),
    (
        {"RepositoryNotFoundError", "DatasetNotFoundError"},
        set(),
        "{What} is not on the Hub, or it is private and {unreadable}. "
        "Check the spelling (owner/name, capital letters matter).",
    ),
    (
        {"HFValidationError", "HfUriError"},
        set(),
        "{What}: this can't be a name on the Hub. Give it as owner/name, in letters, digits, '-', '_' and '.'.",
    ),
    (
        {"RemoteEntryNotFoundError", "FileMissing"},
        {404},
        "{What} lacks a required file. Check its page on the Hub, or choose another.",
    ),
    (
        set(),
        {401},
        "{What}: {rejected}.",
    ),
    (set(), {429}, "{What}: too many requests to the Hub. Try again in a few minutes."),
    (
        set(),
        {500, 502, 503, 504},
        "{What}: the Hub is having problems. Nothing is lost; try again in a few minutes.",
    ),
    (
        set(),
        {400, 402, 403, 409, 413, 422},
        "{What} was refused by the Hub{reason}. Check your token's permissions and your storage at "
        "https://huggingface.co/settings, then try again.",
    ),
    (
        {"TimeoutException", "Timeout", "TimeoutError"},
        set(),
        "{What}: the Hub did not answer in time. Nothing is lost; check your network and try again. {otherwise}",
    ),
    (
        {
            "RemoteProtocolError",
            "ReadError",
            "WriteError",
            "ConnectionResetError",
            "BrokenPipeError",
            "ChunkedEncodingError",
        },
        set(),
        "{What}: the connection to the Hub was lost. No data is lost; try again.",
    ),
    (
        {"TransportError", "ConnectionError", "gaierror", "LocalEntryNotFoundError", "FileMetadataError"},
        set(),
        "{What}: the Hub can't be reached. Nothing is lost; check your network and try again. {otherwise}",
    ),
]

# What somebody can do about it: in a terminal, or on a page, which has nothing to do with this machine's login.
TERMINAL = {
    "sign_in": "try again with your token (HF_TOKEN, or `hf auth login`)",
    "unreadable": "you are not signed in as somebody who can read it",
    "rejected": "the Hub rejects this token; it is mistyped, expired or revoked. Create a new one at "
    "https://huggingface.co/settings/tokens",
}
PAGE = {
    "sign_in": "sign in on this page as the account that accepted them, and try again",
    "unreadable": "this page does not ask for access to private repositories, not even for yours: Tuner on your own "
    "machine can read it",
    "rejected": "the Hub rejects your sign-in; it has probably expired. Sign out, sign in again and retry",
}


def explain(
    error: BaseException,
    what: str,
    otherwise: str = "The shipped examples need no network.",
    *,
    page: str = "https://huggingface.co",
    token: str | bool | None = None,
) -> TunerError | None:
    """The error about `what` ("the model 'a/b'") in plain words; None if neither the Hub nor the network caused it.

    `otherwise` is added if the Hub can't be reached at all: what can be done without it. `page` is its address on the
    Hub; `token` is what the request carried: None for this machine's login, and anything else for a visitor.
    """
    chain = list(_causes(error))
    names = set().union(*map(_names, chain))
    statuses = {getattr(getattr(e, "response", None), "status_code", None) for e in chain}
    message = next((s.strip(" .") for e in chain if (s := getattr(e, "server_message", None))), "")
    for kinds, codes, sentence in ROWS:
        if kinds & names or codes & statuses:
            reason = f': "{message[:200]}"' if message else ""
            advice = (TERMINAL if token is None else PAGE) | {"page": page, "reason": reason, "otherwise": otherwise}
            return TunerError(sentence.format(What=what[:1].upper() + what[1:], **advice))
    return None


def is_passing(error: BaseException) -> bool:
    """Whether the Hub may well answer the next time: it was busy or broken, or the connection was."""
    chain = list(_causes(error))
    statuses = {getattr(getattr(e, "response", None), "status_code", None) for e in chain} - {None}
    if statuses:
        return bool(statuses & PASSING)
    return bool(BROKEN & set().union(*map(_names, chain)))


def is_answer(error: BaseException) -> bool:
    """Whether the Hub was reached and said no, rather than being out of reach, broken or too busy."""
    statuses = {getattr(getattr(e, "response", None), "status_code", None) for e in _causes(error)} - {None, 408, 429}
    return any(400 <= status < 500 for status in statuses)


def limit_waiting() -> None:
    """Limit how long huggingface_hub waits to PATIENCE: for the next byte, which some requests would wait for forever,
    and before it asks a Hub again that is busy, which might say: in an hour.

    Call it before each use of the Hub: after a failed connection huggingface_hub makes a new session.
    """
    from huggingface_hub.utils import get_session

    hooks = get_session().event_hooks
    if _limit not in hooks["request"]:
        hooks["request"].append(_limit)
        hooks["response"].append(_limit_pause)


def _limit(request) -> None:
    # Not the client's own timeout, because model_info and others override that with None.
    timeout = request.extensions.get("timeout", {})
    request.extensions["timeout"] = {
        kind: timeout.get(kind) or PATIENCE for kind in ("connect", "read", "write", "pool")
    }


def _limit_pause(response) -> None:
    pause = response.headers.get("retry-after")
    if pause is not None and not (pause.isdigit() and int(pause) <= PATIENCE):
        response.headers["retry-after"] = f"{PATIENCE:.0f}"
    response.headers.pop("ratelimit", None)  # which says the same in another way


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _names(error: BaseException) -> set[str]:
    """Names for the error: its classes, the meaning of its errno, and what only its text tells."""
    text = str(error)
    code = getattr(error, "errno", None)
    names = {kind.__name__ for kind in type(error).__mro__}
    # datasets drops the cause and keeps its name: "Couldn't reach 'a/b' on the Hub (OfflineModeIsEnabled)".
    names |= set(re.findall(r"\((\w+)\)$", text))
    return names | {
        name
        for name, fits in {
            "OfflineModeIsEnabled": "outgoing traffic has been disabled" in text,
            "DiskFull": code in (errno.ENOSPC, errno.EDQUOT) or "Not enough disk space" in text,
            "ReadOnly": code == errno.EROFS,
            "GatedRepoError": "DatasetNotFoundError" in names and "gated" in text,
            "RevisionNotFoundError": "DatasetNotFoundError" in names and text.startswith("Revision"),
            "FileMissing": "does not appear to have" in text,
        }.items()
        if fits
    }
