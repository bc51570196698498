"""Errors as the sentences that a visitor reads."""

import errno
import logging
import secrets

from tuner.errors import TunerError

log = logging.getLogger(__name__)

FULL = "This machine's disk is full. Delete a run that you no longer need, then try again."
LOCKED = "This machine's disk can't be written to at the moment. What was saved before is kept: try again later."
BROKEN = "This machine's disk can't be read. Nothing can be done from here: tell whoever runs this app."
DISK = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), FULL),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), LOCKED),
    errno.EIO: BROKEN,
}


def problems_of(error: Exception, run: str | None = None) -> list[str]:
    """The sentences for this error, of this run if one is named; an unexpected error is logged with an id."""
    if isinstance(error, TunerError):
        return list(error.problems)
    if type(error).__module__.startswith("gradio") and hasattr(error, "message"):  # ZeroGPU's own, written for people
        return [str(error.message)]
    if isinstance(error, OSError) and error.errno in DISK:
        if DISK[error.errno] != FULL:
            log.error("the disk of the runs", exc_info=error)
        return [DISK[error.errno]]
    if run:  # which may fail the same way each time, so there is no promise that trying again will help
        log.error("run %s: unexpected error", run, exc_info=error)
        return [f"Tuner failed unexpectedly (run {run}). What the run learned is kept."]
    name = secrets.token_hex(4)
    log.error("unexpected error %s", name, exc_info=error)
    return [f"Something unexpected went wrong (error {name}). Nothing you entered is lost: try again."]
