"""The visible part of a name that a person gives a run: on one line, with nothing in it that hides or turns text."""

import re
from unicodedata import category

UNSEEN = ("Cc", "Cf", "Zl", "Zp")  # control characters, those that change the direction of what follows, ...
JOINERS = "\u200c\u200d"  # without these, emoji and words of some languages would be others
CHARACTER = re.compile("\U0001f3f4[\U000e0030-\U000e007a]{3,6}\U000e007f|.", re.S)  # or a flag, such as Scotland's
BLANK = re.compile(  # Unicode's Default_Ignorable_Code_Point, as far as it is not dropped, and Braille's blank
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200c\u200d\u2065\u2800\u3164\ufe00-\ufe0f\uffa0\ufff0-\ufff8"
    "\U000e0000-\U000e0fff ]*"
)


def visible(name: str) -> str:
    """The name without what is not seen; empty if nothing is."""
    kept = (c for c in CHARACTER.findall(name) if c.isspace() or c in JOINERS or category(c[0]) not in UNSEEN)
    shown = " ".join("".join(kept).split()).strip(f"{JOINERS} ")
    return "" if BLANK.fullmatch(shown) else shown
