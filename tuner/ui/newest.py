"""Of one visitor's checks only the newest counts: a slow one must not overwrite what a newer one has shown."""

from collections import OrderedDict
from collections.abc import Iterator

import gradio as gr

MOST_VISITORS = 1000  # whose newest check of the form is remembered
_checking: OrderedDict[str, object] = OrderedDict()  # visitor -> the newest check


def values(visitor: str, checks: Iterator[list]) -> Iterator[list]:
    """The values of a check until the visitor's next one begins."""
    mine = _checking[visitor] = object()
    _checking.move_to_end(visitor)
    while len(_checking) > MOST_VISITORS:
        _checking.popitem(last=False)
    for shown in checks:
        if _checking.get(visitor, mine) is not mine:
            yield [gr.skip()] * len(shown)
            return
        yield shown
