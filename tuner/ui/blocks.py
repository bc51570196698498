"""Gradio's Blocks, from which no error comes raw: neither a handler's nor an endpoint's, nor one of Gradio's own."""

from html import escape
from typing import Any

import gradio as gr

from tuner.ui.problems import problems_of

UNREADABLE = "These inputs don't fit: there are too many or too few, or one has the wrong type."


class Page(gr.Blocks):
    """Blocks whose visitors read sentences, whatever goes wrong."""

    async def preprocess_data(self, block_fn: gr.blocks.BlockFunction, *arguments: Any) -> list:
        """The inputs of a handler. Raises gr.Error if they can't be read."""
        try:
            return await super().preprocess_data(block_fn, *arguments)
        except gr.Error:
            raise
        except Exception:  # whatever a component trips over in what a program sent
            raise _error(UNREADABLE) from None

    async def process_api(self, block_fn: gr.blocks.BlockFunction, *arguments: Any, **named: Any) -> dict:
        """Run a handler or the next step of one. Raises gr.Error with sentences."""
        try:
            return await super().process_api(block_fn, *arguments, **named)
        except Exception as error:
            message = "\n".join(problems_of(error))
            # The page shows an error's message as HTML, programs read it as it is.
            raise _error(escape(message) if block_fn.api_visibility == "private" else message) from None


def _error(message: str) -> gr.Error:
    return gr.Error(message, title="Tuner", print_exception=False)
