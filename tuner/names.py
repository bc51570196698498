"""Names on the Hub: one strict pattern for each kind, checked before anything else sees a name.

Libraries join such names to paths: huggingface_hub a revision to its cache's folder, datasets a configuration to its
own, and load_dataset reads a folder that has the dataset's name.
"""

import re
from typing import NamedTuple

from tuner.errors import TunerError

LONGEST = 200  # characters of any name
SHOWN = 100  # characters of a name in a sentence
BASE_SUFFIX = "-base"  # of the repository for a shipped base model that is pushed beside its adapter
MERGED_SUFFIX = "-merged"  # of the one for a merged model that is pushed together with its adapter
WHAT = {"adapter": "Adapter", "merged": "Merged model", "both": "Both"}  # that a push may be of
MAIN, PULL_REQUEST = "main", "pull request"  # where a push may go, beside a branch of any other name
_LEFT = 96 - max(len(BASE_SUFFIX), len(MERGED_SUFFIX))  # characters of a repository's name

_PART = r"\w(?:[\w.-]{0,94}\w)?"  # an owner or a repository
_UNLIKE = r"(?!.*(?:--|\.\.|\.git$))"  # what the Hub allows nowhere in a repository's name


class Kind(NamedTuple):
    """What a name of one kind looks like, and what is said of any other."""

    pattern: re.Pattern
    sentence: str


NAMES = {
    kind: Kind(re.compile(pattern, re.ASCII), sentence)
    for kind, (pattern, sentence) in {
        "model": (
            rf"{_UNLIKE}(?:{_PART}/)?{_PART}",
            "'{name}' can't be a model's name. Give one as on the Hub: owner/name.",
        ),
        "revision": (
            r"(?!.*(?:\.\.|//|/\.|\.lock))\w[\w./+-]*(?<![./])",
            "model.revision: '{name}' is no branch, tag or commit. Give one, or leave it out.",
        ),
        "branch": (
            r"(?!refs/)(?!.*(?:\.\.|//|/\.|\.lock))\w[\w./+-]*(?<![./])",
            "'{name}' can't be a branch's name. Give letters, digits, '-', '_', '.' and '/', such as version-2.",
        ),
        "dataset": (
            rf"{_UNLIKE}{_PART}/{_PART}",
            "'{name}' can't be a dataset's name. Give one as on the Hub: owner/name.",
        ),
        "config": (
            r"(?!.*\.\.)[\w(][\w .,+=()-]*",
            "data.config: '{name}' can't be a configuration's name. Give one of the dataset's, or leave it out.",
        ),
        "split": (
            r"\w+(?:[.-]\w+)*",
            "data.split: '{name}' can't be a split's name. Give one of the dataset's, or leave it out.",
        ),
        "heldout_split": (
            r"\w+(?:[.-]\w+)*",
            "data.heldout_split: '{name}' can't be a split's name. Give one of the dataset's, or leave it out.",
        ),
        "repository": (
            rf"{_UNLIKE}(?:{_PART}/)?\w(?:[\w.-]{{0,{_LEFT - 2}}}\w)?",
            "'{name}' can't be a repository's name. Give name or owner/name: letters, digits, '-', '_' and '.', at "
            f"most {_LEFT} characters, no '--' or '..', no '-' or '.' at either end, and no '.git' at "
            "the end.",
        ),
    }.items()
}


def fits(kind: str, name: str) -> bool:
    """Whether this can be the name of such a thing on the Hub."""
    return len(name) <= LONGEST and bool(NAMES[kind].pattern.fullmatch(name))


def problems(**names: str | None) -> list[str]:
    """A sentence for each name that is none of its kind, such as revision="..", in the order given."""
    return [
        NAMES[kind].sentence.format(name=shown(name))
        for kind, name in names.items()
        if name is not None and not fits(kind, name)
    ]


def check(**names: str | None) -> None:
    """Raise TunerError with the `problems` of these names, if there are any."""
    if found := problems(**names):
        raise TunerError(*found)


def shown(name: str) -> str:
    """The name as a sentence can hold it: printable, and not long."""
    text = name if name.isprintable() else ascii(name)[1:-1]
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
