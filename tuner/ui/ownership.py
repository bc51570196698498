"""Whose run it is. Its link lets anybody look and chat; whatever changes the run or spends time on it, its owner does.

The owner is whoever has the run's secret, kept by the browser or API client that started the run, or is signed in with
the account that started it, by the account's id: a name can be given up, and taken by somebody else. A run made in a
terminal has no owner on the page.
"""

import hashlib
import hmac
import secrets

from tuner.errors import TunerError
from tuner.runs import Run
from tuner.ui.visitor import Visitor

EXAMPLE = "example"  # the id of the shipped, finished run
FILE = "owner.json"  # in the run's folder
LINK_ONLY = (
    "A link to a run is for looking and chatting. Only the run's owner can resume, stop, delete, merge or push it."
)
BY_LINK = (
    "You opened this run by its owner's link, so it does not continue by itself here. Press Resume to continue it: on "
    "ZeroGPU that uses your own GPU time."
)


def claim(run: Run, visitor: Visitor) -> str:
    """Make the run the visitor's; returns the secret that proves it, of which the run keeps only a hash."""
    secret = secrets.token_urlsafe()
    run.write_json(FILE, {"secret": _hash(secret), "account": visitor.account})
    return secret


def check_owner(run: Run, visitor: Visitor) -> None:
    """Raise TunerError unless the run is the visitor's to change."""
    if run.id == EXAMPLE:
        raise TunerError("The example run belongs to everybody and can't be changed. Train a run of your own.")
    owner = run.read_json(FILE) or {}
    given = _hash(visitor.secrets.get(run.id, ""))
    has_secret = hmac.compare_digest(given.encode(), str(owner.get("secret")).encode())
    if not has_secret and (visitor.account is None or visitor.account != owner.get("account")):
        raise TunerError(LINK_ONLY)


def hindrance(run: Run, visitor: Visitor) -> str:
    """Why the visitor can't change the run; empty if it is the visitor's."""
    try:
        check_owner(run, visitor)
    except TunerError as error:
        return " ".join(error.problems)
    return ""


def is_owner(run: Run, visitor: Visitor) -> bool:
    """Whether the run is the visitor's."""
    return not hindrance(run, visitor)


def is_shared(run: Run, visitor: Visitor) -> bool:
    """Whether the visitor may merge and push the run: it is the visitor's, or the shipped example."""
    return run.id == EXAMPLE or is_owner(run, visitor)


def _hash(secret: str) -> str:
    # A random secret of 256 bits needs no slow hash.
    return hashlib.sha256(secret.encode(errors="surrogatepass")).hexdigest()
