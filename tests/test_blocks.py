"""What a program sends to a handler or an endpoint has the types that its function names, or is refused."""

from collections.abc import Iterator

import gradio as gr
import httpx
import pytest

from tuner.ui import actions, door, playground_tab, train_tab
from tuner.ui.blocks import TOO_LARGE, UNREADABLE, WRONG_TYPE, Page
from tuner.ui.visitor import Visitor, for_visitor

SKIP = gr.skip()
HALF = b'"\\ud800"'


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    """A program at a page of a few functions, which tell what they were given."""

    def told(run: str, steps: int = 2, system: str = "none", turns: list[dict[str, str]] | None = None) -> list:
        return [run, steps, system, turns]

    def greeted(run: str, visitor: Visitor) -> str:
        return run

    def shared(kept: dict | None, *columns: list | None) -> str:
        return f"{kept} {columns}"

    def clicked(run: str, event: gr.EventData) -> str:
        return f"{run} {getattr(event, 'index', None)}"

    def chosen(data: dict) -> str:
        return f"{sorted(map(str, data.values()))}"

    with Page() as page:
        gr.api(told, api_name="told")
        gr.api(for_visitor(greeted), api_name="greeted")
        kept, given, shown = gr.BrowserState({}), [gr.JSON(), gr.JSON()], gr.Textbox()
        gr.Button().click(shared, [kept, *given], shown, api_name="shared")
        choices = {gr.Dropdown(["a"], label="Format", allow_custom_value=True), gr.Radio(["b", "c"], value="b")}
        gr.Button().click(chosen, choices, shown, api_name="chosen")
        gr.Button().click(clicked, shown, shown, api_name="clicked")
    _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, app_kwargs=dict(door.APP), show_error=True)
    with httpx.Client(base_url=f"{url}gradio_api/run/", headers={"Content-Type": "application/json"}) as client:
        yield client
    page.close()


@pytest.mark.parametrize(
    ("function", "data", "answer"),
    [
        ("told", '["a", 3.0, "b", [{"role": "user"}]]', ["a", 3, "b", [{"role": "user"}]]),
        ("told", '["a", null, null, null]', ["a", 2, "none", None]),
        ("greeted", '["a"]', "a"),
        ("shared", '["no object", [1], null]', "no object ([1], None)"),
    ],
)
def test_what_fits_arrives_and_what_is_left_out_has_its_default(function, data, answer, http):
    assert http.post(function, content=f'{{"data": {data}}}').json()["data"] == [answer]


@pytest.mark.parametrize(
    ("function", "data", "name"),
    [
        ("told", b"[5, 1, null, null]", "run"),
        ("told", b"[null, 1, null, null]", "run"),
        ("told", b'["a", "x", null, null]', "steps"),
        ("told", b'["a", 1e300, null, null]', "steps"),
        ("told", b'["a", 1, ["b"], null]', "system"),
        ("told", b'["a", 1, "b", [null]]', "turns"),
        ("told", b'["a", 1, "b", "c"]', "turns"),
        ("greeted", b"[true]", "run"),
        ("shared", b'[{}, [1], {"a": 1}]', "columns"),
        ("told", b'["a"]', None),
        ("told", b"[" + HALF + b", 1, null, null]", None),
        ("shared", b"[{}, [" + HALF + b"], null]", None),
        ("told", b'["a", ' + b"9" * 400 + b", null, null]", None),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence_and_logged_as_no_bug(function, data, name, http, caplog):
    answer = http.post(function, content=b'{"data": ' + data + b"}").json()
    assert answer["error"] == (WRONG_TYPE.format(name=name) if name else UNREADABLE)
    assert not caplog.records


@pytest.mark.parametrize(("event", "told"), [('{"index": 3}', "a 3"), ("{}", "a None"), ("null", ""), ('["x"]', "")])
def test_a_click_that_says_nothing_is_refused(event, told, http, caplog):
    answer = http.post("clicked", content=f'{{"data": ["a"], "event_data": {event}}}').json()
    assert answer.get("data", [answer.get("error")]) == [told or UNREADABLE]
    assert not caplog.records


@pytest.mark.parametrize("said", [{}, {"index": 10**9}, {"index": -1}, {"index": []}, {"index": ["x"]}])
def test_a_click_on_an_example_that_there_is_not_changes_nothing(said):
    actions.install_example()
    for shown in ([], [actions.EXAMPLE]):
        assert playground_tab._use_example(shown, gr.EventData(None, said)) == [SKIP, SKIP]


@pytest.mark.parametrize("said", [{}, {"method": None}, {"method": []}, {"method": "nothing"}])
def test_a_click_on_a_method_that_there_is_not_changes_nothing(said):
    assert train_tab._choose(gr.EventData(None, said)) == SKIP
    assert train_tab._choose(gr.EventData(None, {"method": "dora"})) == "dora"


def test_what_takes_no_rows_takes_no_megabytes(http):
    assert http.post("greeted", json={"data": ["x" * 1000]}).json()["data"] == ["x" * 1000]
    assert http.post("greeted", json={"data": ["x" * 2**20]}).json()["error"] == TOO_LARGE


@pytest.mark.parametrize("wrong", [{"a": 1}, ["a"], [[None]]])
def test_what_a_component_can_not_hold_is_refused_where_inputs_come_as_a_dictionary(wrong, http):
    assert http.post("chosen", json={"data": ["a", None]}).json()["data"] == ["['a', 'b']"]  # a Radio always has one
    assert http.post("chosen", json={"data": [wrong, "b"]}).json()["error"] == WRONG_TYPE.format(name="Format")
