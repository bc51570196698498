"""Errors of the Hub and of the network: each is told for what it is, the most specific one first."""

import errno
from types import SimpleNamespace

import pytest

from tuner import hub_errors


def named(name: str, text: str = "", *bases: type, **facts) -> Exception:
    """An error of a class of this name, as a library has it."""
    error = type(name, bases or (Exception,), {})(text)
    vars(error).update(facts)
    return error


def answered(status: int, message: str | None = None) -> Exception:
    """An answer of the Hub that is not a success."""
    return named("HfHubHTTPError", "", response=SimpleNamespace(status_code=status), server_message=message)


def because(error: Exception, cause: Exception | None = None, context: Exception | None = None) -> Exception:
    """The error with what led to it."""
    error.__cause__, error.__context__ = cause, context
    return error


LOST = ("RemoteProtocolError", "ReadError", "WriteError", "ConnectionResetError", "BrokenPipeError")
UNREACHED = ("TransportError", "ConnectionError", "gaierror", "LocalEntryNotFoundError", "FileMetadataError")
REFUSED = (
    "The model 'a/B' was refused by the Hub. Check your token's permissions and your storage at "
    "https://huggingface.co/settings, then try again."
)
TOLD = {
    "The model 'a/B': this machine's disk is full. Free some space and try again; nothing saved before is lost.": [
        OSError(errno.ENOSPC, "No space left on device", "/root/secret/place"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError("Not enough disk space to download the file."),
        answered(507),
        because(named("ConnectionError"), OSError(errno.ENOSPC, "No space left on device")),
    ],
    "The model 'a/B': a folder on this machine is not writable. Fix its permissions (downloads go to HF_HOME), then "
    "retry.": [
        PermissionError(errno.EACCES, "Permission denied"),
        OSError(errno.EROFS, "Read-only file system"),
        because(named("LocalEntryNotFoundError"), None, PermissionError()),
    ],
    "The model 'a/B': HF_HUB_OFFLINE is set, so the Hub can't be used. Unset it and try again. The shipped examples "
    "need no network.": [
        named("OfflineModeIsEnabled"),
        ConnectionError("Couldn't reach 'a/B' on the Hub (OfflineModeIsEnabled)"),
        named("LocalEntryNotFoundError", "not cached, and outgoing traffic has been disabled. Set HF_HUB_OFFLINE."),
    ],
    "The model 'a/B' is gated: accept its terms at https://huggingface.co, then try again with your token "
    "(HF_TOKEN, or `hf auth login`).": [
        named("GatedRepoError", "", type("RepositoryNotFoundError", (Exception,), {})),
        named("DatasetNotFoundError", "Dataset 'a/B' is a gated dataset on the Hub."),
    ],
    "The model 'a/B' has been disabled on the Hub. Choose another.": [
        named("DisabledRepoError", response=SimpleNamespace(status_code=403)),
    ],
    "The model 'a/B' has no such revision. Leave the revision out, or give one of its branches, tags or commits.": [
        named("RevisionNotFoundError", response=SimpleNamespace(status_code=404)),
        named("DatasetNotFoundError", "Revision 'v9' doesn't exist for dataset 'a/B'."),
    ],
    "The model 'a/B' is not on the Hub, or it is private and you are not signed in as somebody who can read it. Check "
    "the spelling (owner/name, capital letters matter).": [
        named("RepositoryNotFoundError", response=SimpleNamespace(status_code=401)),
        named("DatasetNotFoundError", "Dataset 'a/B' doesn't exist. Revision?"),
    ],
    "The model 'a/B': this can't be a name on the Hub. Give it as owner/name, in letters, digits, '-', '_' and '.'.": [
        named("HFValidationError"),
        named("HfUriError"),
    ],
    "The model 'a/B' lacks a required file. Check its page on the Hub, or choose another.": [
        named("RemoteEntryNotFoundError"),
        OSError("a/B does not appear to have a file named config.json."),
        answered(404),
    ],
    "The model 'a/B': the Hub rejects this token; it is mistyped, expired or revoked. Create a new one at "
    "https://huggingface.co/settings/tokens.": [answered(401)],
    "The model 'a/B': too many requests to the Hub. Try again in a few minutes.": [
        answered(429), because(ValueError(), answered(429))
    ],
    "The model 'a/B': the Hub is having problems. Nothing is lost; try again in a few minutes.": [
        answered(500), answered(502), answered(503), answered(504)
    ],
    REFUSED: [answered(400), answered(402), answered(403), answered(409), answered(413), answered(422)],
    REFUSED.replace(" Hub.", ' Hub: "storage limit reached".', 1): [answered(403, " storage limit reached. ")],
    REFUSED.replace(" Hub.", f' Hub: "{"x" * 200}".', 1): [
        because(answered(409), answered(418, "x" * 201)),
        because(answered(403, "x" * 200), answered(403, "behind it")),
    ],
    "The model 'a/B': the Hub did not answer in time. Nothing is lost; check your network and try again. The shipped "
    "examples need no network.": [
        named("ReadTimeout", "", type("TimeoutException", (type("TransportError", (Exception,), {}),), {})),
        named("Timeout"),
        TimeoutError(),
        because(ConnectionError(), TimeoutError()),
    ],
    "The model 'a/B': the connection to the Hub was lost. No data is lost; try again.": [
        *map(named, (*LOST, "ChunkedEncodingError")),
        because(named("ConnectionError"), ConnectionResetError()),
    ],
    "The model 'a/B': the Hub can't be reached. Nothing is lost; check your network and try again. The shipped "
    "examples need no network.": [
        *map(named, UNREACHED),
        because(ValueError(), None, because(KeyError(), named("gaierror"))),
        because(ValueError(), named("gaierror"), PermissionError()),  # its cause, and not what was handled before
    ],
}  # fmt: skip


@pytest.mark.parametrize("sentence", TOLD)
def test_each_error_is_told_for_what_it_is(sentence):
    for error in TOLD[sentence]:
        assert str(hub_errors.explain(error, "the model 'a/B'")) == sentence, repr(error)


def test_what_can_be_done_without_the_hub_is_the_callers_to_say():
    for name, said in (
        ("gaierror", "the Hub can't be reached. Nothing is lost; check your network and try again."),
        ("Timeout", "the Hub did not answer in time. Nothing is lost; check your network and try again."),
        ("OfflineModeIsEnabled", "HF_HUB_OFFLINE is set, so the Hub can't be used. Unset it and try again."),
    ):
        told = hub_errors.explain(named(name), "the push to 'x'", "The run is unchanged.")
        assert str(told) == f"The push to 'x': {said} The run is unchanged."


def test_other_errors_are_not_the_hubs():
    around = ValueError("a bug")
    because(around, because(KeyError("x"), around))  # each is the cause of the other
    words = ValueError("gated"), ValueError("Revision 'v9'"), named("HTTPError", "GatedRepoError (x) y")
    for error in (*words, OSError(errno.ENOENT, "No such file"), answered(418), answered(200), around):
        assert hub_errors.explain(error, "the model 'a/B'") is None


def test_each_wait_for_the_next_byte_has_a_limit_of_its_own(monkeypatch):
    from huggingface_hub.utils import get_session

    for _ in range(2):
        hub_errors.limit_waiting()
    hooks = get_session().event_hooks["request"]
    (limit,) = [hook for hook in hooks if hook.__module__ == hub_errors.__name__]
    monkeypatch.setattr(hub_errors, "PATIENCE", 7.5)
    for given, expected in (
        ({}, {}),
        ({"timeout": {"connect": 5.0, "read": None}}, {"connect": 5.0}),
        ({"timeout": {"write": 1.0, "pool": 30.0}}, {"write": 1.0, "pool": 30.0}),
    ):
        request = SimpleNamespace(extensions=given)
        limit(request)
        assert request.extensions["timeout"] == dict.fromkeys(("connect", "read", "write", "pool"), 7.5) | expected
