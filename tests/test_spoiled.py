"""Whatever a program sends to the page's own handlers instead of what they hold is answered or refused in words."""

import asyncio
import json

import gradio as gr
import pytest
from gradio.state_holder import SessionState
from starlette.requests import Request

from tuner import limited
from tuner.errors import TunerError
from tuner.ui import page, run_queue
from tuner.ui.blocks import Page

SPOILED = [None, {}, {"a": [1]}, [], [[None]], [{}], "", "x", "../x", 0, -1, 1.5, 10**30, True, "\n" * 9]


@pytest.fixture(autouse=True)
def nobody_trains(monkeypatch):
    """What is prepared by what was sent goes nowhere."""
    monkeypatch.setattr(run_queue, "queue", run_queue.RunQueue(0))
    monkeypatch.setattr(run_queue, "bounds", run_queue.Bounds(lambda run: False))


@pytest.fixture(scope="module")
def built() -> Page:
    return page.build()


def handlers(built: Page) -> list[gr.blocks.BlockFunction]:
    return [function for function in built.fns.values() if function.fn and function.inputs]


def say(built: Page, function: gr.blocks.BlockFunction, inputs: list) -> str:
    """What the handler's first step answers, or how it refuses."""
    scope = {"type": "http", "method": "POST", "path": "/", "headers": [], "query_string": b"", "client": ("a", 1)}
    request = gr.Request(Request(scope), session_hash="s")
    try:
        return str(asyncio.run(built.process_api(function, inputs, request=request, state=SessionState(built))))
    except gr.Error as error:
        return error.message


@pytest.mark.parametrize("spoiled", SPOILED, ids=lambda value: json.dumps(value)[:12])
def test_no_handler_fails_where_all_of_its_inputs_are_spoiled(spoiled, built, caplog):
    for function in handlers(built):
        caplog.clear()
        said = say(built, function, [spoiled] * len(function.inputs))
        assert "unexpected" not in said, (function.name, caplog.text[-1500:])


@pytest.mark.long
def test_no_handler_fails_where_one_of_its_inputs_is_spoiled(built, monkeypatch, caplog):
    def refuse(*given, **settings):
        raise TunerError("Nothing is read or checked now.")

    monkeypatch.setattr(limited, "stream", refuse)
    for function in handlers(built):
        given = [getattr(block, "value", None) for block in function.inputs]
        for number in range(len(given)):
            for spoiled in (None, {}, [[None]], [{}], "x", 10**30):
                caplog.clear()
                said = say(built, function, [*given[:number], spoiled, *given[number + 1 :]])
                assert "unexpected" not in said, (function.name, function.inputs[number], spoiled, caplog.text[-1500:])
