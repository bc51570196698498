"""How answers are sampled: what a visitor may set, and within which bounds."""

import math

from tuner.errors import TunerError

# Type, minimum and maximum of what a visitor may set; 0.01 because a top-p of 0 leaves no token.
SAMPLING = {
    "temperature": (float, 0, 5),
    "top_p": (float, 0.01, 1),
    "max_new_tokens": (int, 1, 2048),
    "seed": (int, 0, 2**31 - 1),
}


def checked_sampling(sampling: dict) -> dict:
    """Sampling settings as the numbers they must be. Raises TunerError with all problems."""
    checked, problems = {}, []
    for name, (kind, low, high) in SAMPLING.items():
        try:
            checked[name] = kind(sampling[name])
        except (TypeError, ValueError, OverflowError):
            checked[name] = math.nan
        if not low <= checked[name] <= high:
            given = f"{sampling[name]:g}" if isinstance(sampling[name], float) else sampling[name]
            problems.append(f"{name}: {given} can't be used. Give a number from {low} to {high}.")
    if problems:
        raise TunerError(*problems)
    return checked
