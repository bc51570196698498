"""What the Hub, or the way to it, answers when something fails: in plain words, with the remedy.

It knows the errors of huggingface_hub, httpx, requests, transformers and datasets by the names of their classes, so
it imports none of them. These libraries wrap each other's errors, so the whole chain of causes is looked at, and the
row that says most comes first.
"""

import errno
import re
from collections.abc import Iterator

from tuner.errors import TunerError

PATIENCE = 30.0  # seconds without a byte

# (names of classes, HTTP statuses, what is shown). The first row that fits any error of the chain wins.
ROWS: list[tuple[set[str], set[int], str]] = [
    (
        {"DiskFull"},
        {507},
        "{What}: this machine's disk is full. Free some space and try again; what was saved before is whole.",
    ),
    (
        {"PermissionError", "ReadOnly"},
        set(),
        "{What}: a folder on this machine can't be written. Mend its rights (downloads go to HF_HOME), and try again.",
    ),
    (
        {"OfflineModeIsEnabled"},
        set(),
        "{What}: HF_HUB_OFFLINE is set, so the Hub is not asked. Unset it and try again. {otherwise}",
    ),
    (
        {"GatedRepoError"},
        set(),
        "{What} is gated: its owner asks for your consent first. Give it on its page at https://huggingface.co, "
        "then try again with a token of yours (HF_TOKEN, or `hf auth login`).",
    ),
    ({"DisabledRepoError"}, set(), "{What} was disabled by the Hub. Choose another."),
    (
        {"RevisionNotFoundError"},
        set(),
        "{What} has no such revision. Leave the revision out, or give a branch, tag or commit of it.",
    ),
    (
        {"RepositoryNotFoundError", "DatasetNotFoundError"},
        set(),
        "{What} is not on the Hub, or it is private and you are not signed in as somebody who may read it. "
        "Check the spelling (owner/name, capitals count).",
    ),
    (
        {"HFValidationError", "HfUriError"},
        set(),
        "{What}: the Hub has no names like this. Give it as owner/name, in letters, digits, '-', '_' and '.'.",
    ),
    (
        {"RemoteEntryNotFoundError", "FileMissing"},
        {404},
        "{What} lacks a file that is needed. Look at its page on the Hub, or choose another.",
    ),
    (
        set(),
        {401},
        "{What}: the Hub does not know this token; it is mistyped, expired or withdrawn. "
        "Make a new one at https://huggingface.co/settings/tokens.",
    ),
    (set(), {429}, "{What}: the Hub asks for a pause, there were too many requests. Try again in some minutes."),
    (
        set(),
        {500, 502, 503, 504},
        "{What}: the Hub itself has trouble just now. Nothing is lost; try again in some minutes.",
    ),
    (
        set(),
        {400, 402, 403, 409, 413, 422},
        "{What} was refused by the Hub{said}. Check the rights of your token and your storage at "
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
        "{What}: the connection to the Hub broke off. Nothing is lost; try again.",
    ),
    (
        {"TransportError", "ConnectionError", "gaierror", "LocalEntryNotFoundError", "FileMetadataError"},
        set(),
        "{What}: the Hub can't be reached. Nothing is lost; check your network and try again. {otherwise}",
    ),
]


def explain(
    error: BaseException, what: str, otherwise: str = "The shipped examples need no network."
) -> TunerError | None:
    """The error about `what` ("the model 'a/b'") in plain words; None if it is neither the Hub's nor the network's.

    `otherwise` is said where the Hub can't be had at all: what there is to do without it.
    """
    chain = list(_causes(error))
    names = set().union(*map(_names, chain))
    statuses = {getattr(getattr(e, "response", None), "status_code", None) for e in chain}
    said = next((s.strip(" .") for e in chain if (s := getattr(e, "server_message", None))), "")
    for kinds, codes, sentence in ROWS:
        if kinds & names or codes & statuses:
            shown = f': "{said[:200]}"' if said else ""
            return TunerError(sentence.format(What=what[:1].upper() + what[1:], said=shown, otherwise=otherwise))
    return None


def limit_waiting() -> None:
    """Let no request of huggingface_hub wait longer than PATIENCE for the next byte; some would wait for ever.

    To be called before each piece of work with the Hub: after a failed connection huggingface_hub starts anew.
    """
    from huggingface_hub.utils import get_session

    hooks = get_session().event_hooks["request"]
    if _limit not in hooks:
        hooks.append(_limit)


def _limit(request) -> None:
    # Not the client's own timeout, because model_info and others overrule that with None.
    timeout = request.extensions.get("timeout", {})
    request.extensions["timeout"] = {
        kind: timeout.get(kind) or PATIENCE for kind in ("connect", "read", "write", "pool")
    }


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _names(error: BaseException) -> set[str]:
    """What the error is: its classes, its errno's meaning, and what only its text tells."""
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
