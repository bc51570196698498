"""Gradio's Blocks, from which no error comes raw: neither a handler's nor an endpoint's, nor one of Gradio's own.

Programs can send anything to any handler, so what a function gets is of the types that it names.
"""

import inspect
from collections.abc import Callable
from functools import cache
from html import escape
from typing import Any

import gradio as gr
import orjson
from gradio.blocks import BlocksConfig
from gradio.components.api_component import Api
from gradio_client.utils import is_file_obj_with_meta, is_http_url_like, traverse
from pydantic import TypeAdapter, ValidationError

from tuner.ui.problems import problems_of
from tuner.ui.visitor import GIVEN

UNREADABLE = "These inputs don't fit: there are too many or too few, or one has the wrong type."
WRONG_TYPE = "The input '{name}' has the wrong type. What the endpoints take is described at /gradio_api/info."
# Of what takes no rows. Much of it is kept for a while: in a session's state, or in an answer until it is read.
MOST_BYTES = 2**20
TOO_LARGE = "This is more than 1 MB, which is too much at once. Shorten it, or clear the conversation."
FILE_ELSEWHERE = "A file is given by an address. Upload the file itself, or name a dataset of the Hub in the recipe."
# A page's own, which is mended wherever it is read; and an input that the page has not shown yet holds nothing.
KEPT = (gr.State, gr.BrowserState)

# The path is all that is needed. Gradio's own leaves an empty file behind each time that one is read, and a page's
# update makes a component anew, so it is the class that is changed.
FILES = (gr.File, gr.UploadButton)
for _kind in FILES:
    _kind._process_single_file = lambda self, file: file.path

HOLD_ONE = (gr.Textbox, gr.Dropdown, gr.Radio, gr.Number, gr.Slider, gr.Checkbox)
ONE = TypeAdapter(str | float | bool | None)  # what was emptied, or not shown yet, holds None


class Page(gr.Blocks):
    """Blocks whose visitors read sentences, whatever goes wrong."""

    def __init__(self, **named: Any):
        super().__init__(**named)
        self.default_config = Config(self)

    async def preprocess_data(self, block_fn: gr.blocks.BlockFunction, inputs: list, *arguments: Any) -> list:
        """The inputs of a handler. Raises gr.Error if they can't be read."""
        try:
            size = len(orjson.dumps(inputs))  # what this can't write, such as half a character, Gradio can't send back
            if size > MOST_BYTES and not any(isinstance(block, FILES) for block in block_fn.inputs):
                raise _error(TOO_LARGE)
            _check_files(inputs, block_fn.inputs)
            values = await super().preprocess_data(block_fn, inputs, *arguments)
            values = [_chosen(*pair) for pair in zip(values, block_fn.inputs, strict=True)]
            return (_held if block_fn.inputs_as_dict else _checked)(block_fn, values)
        except gr.Error:
            raise
        except Exception:  # whatever a component trips over in what a program sent
            raise _error(UNREADABLE) from None

    async def process_api(self, block_fn: gr.blocks.BlockFunction, *arguments: Any, **named: Any) -> dict:
        """Run a handler or the next step of one. Raises gr.Error with sentences."""
        try:
            if _takes_event(block_fn.fn) and not isinstance(getattr(named.get("event_data"), "_data", None), dict):
                raise _error(UNREADABLE)
            return await super().process_api(block_fn, *arguments, **named)
        except Exception as error:
            message = "\n".join(problems_of(error))
            # The page shows an error's message as HTML, programs read it as it is.
            raise _error(escape(message) if block_fn.api_visibility == "private" else message) from None


class Config(BlocksConfig):
    """What the page consists of, of which each session takes a copy.

    For its links to a session's state, which the door refuses, Gradio describes every component of each new session
    again: 14 ms in which nobody else is served, and 0.3 MB, for every call of a program.
    """

    def __copy__(self) -> BlocksConfig:
        session = super().__copy__()
        session.config_for_block = lambda *_: {}
        return session


def _check_files(inputs: list, blocks: list[gr.blocks.Block]) -> None:
    """Raise gr.Error for a file where none belongs, or by an address: Gradio would download it, whatever its size."""
    for value, block in zip(inputs, blocks, strict=False):
        files: list[dict] = []
        traverse(value, files.append, is_file_obj_with_meta)
        if files and not isinstance(block, FILES):
            raise _error(UNREADABLE)
        if any(is_http_url_like(file["path"]) for file in files):
            raise _error(FILE_ELSEWHERE)


def _checked(block_fn: gr.blocks.BlockFunction, values: list) -> list:
    """The values as the types that the function names; a program may leave out what has a default."""
    checked = []
    for i, (value, block) in enumerate(zip(values, block_fn.inputs, strict=True)):
        parameters = _parameters(block_fn.fn)
        parameter, adapter = parameters[min(i, len(parameters) - 1)]
        if value is None and parameter.default is not parameter.empty:
            value = parameter.default
        elif isinstance(block, Api) or not (value is None or isinstance(block, KEPT)):
            try:
                value = adapter.validate_python(value)
            except ValidationError:
                raise _error(WRONG_TYPE.format(name=parameter.name)) from None
        checked.append(value)
    return checked


def _chosen(value: Any, block: gr.blocks.Block) -> Any:
    """The value; nobody can choose none of a Radio's."""
    return block.value if value is None and isinstance(block, gr.Radio) else value


def _held(block_fn: gr.blocks.BlockFunction, values: list) -> list:
    """The values as what the components hold that they come from."""
    for value, block in zip(values, block_fn.inputs, strict=True):
        if isinstance(block, HOLD_ONE) and not getattr(block, "multiselect", None):
            try:
                ONE.validate_python(value)
            except ValidationError:
                raise _error(WRONG_TYPE.format(name=block.label)) from None
    return values


@cache
def _parameters(function: Callable) -> list[tuple[inspect.Parameter, TypeAdapter]]:
    """What a handler takes from its inputs; the last one may stand for many."""
    own = [p for p in inspect.signature(function).parameters.values() if not _is_given(p)]
    return [(p, TypeAdapter(Any if p.annotation is p.empty else p.annotation)) for p in own]


@cache
def _takes_event(function: Callable | None) -> bool:
    return function is not None and any(map(_is_event, inspect.signature(function).parameters.values()))


def _is_event(parameter: inspect.Parameter) -> bool:
    return isinstance(parameter.annotation, type) and issubclass(parameter.annotation, gr.EventData)


def _is_given(parameter: inspect.Parameter) -> bool:
    """Whether Gradio itself passes this, and no input."""
    return parameter.annotation in GIVEN.values() or _is_event(parameter)


def _error(message: str) -> gr.Error:
    return gr.Error(message, title="Tuner", print_exception=False)
