"""What went wrong, as a visitor is told it."""

import logging
import secrets

from tuner.errors import TunerError

log = logging.getLogger(__name__)


def problems_of(error: Exception) -> list[str]:
    """The sentences that a visitor is shown; anything unforeseen is logged under an id."""
    if isinstance(error, TunerError):
        return list(error.problems)
    if type(error).__module__.startswith("gradio") and hasattr(error, "message"):  # ZeroGPU's own, made for people
        return [str(error.message)]
    if isinstance(error, OSError) and error.errno == 28:
        return ["The disk of this machine is full. Delete a run that you no longer need, then try again."]
    name = secrets.token_hex(4)
    log.error("unforeseen error %s", name, exc_info=error)
    return [f"Something broke that we did not foresee (error {name}). Nothing that you entered is lost: try again."]
