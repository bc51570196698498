"""My runs: this browser's runs and the example; open, resume, push or delete one."""

from types import SimpleNamespace

import gradio as gr

from tuner.errors import TunerError
from tuner.ui import actions, elements, progress, render
from tuner.ui.problems import problems_of
from tuner.ui.visitor import ANYBODY, Visitor, for_visitor, with_token
from tuner.ui.wiring import NOBODY, PRIVATE

CLICKED = """element.addEventListener('click', (event) => {
    const row = event.target.closest('[data-run]');
    if (row) trigger('click', {run: row.dataset.run});
});"""
LINK = """(id) => {
    const url = new URL(window.location.origin + window.location.pathname);
    url.searchParams.set('run', id);
    return url.href;
}"""


def build(browser: gr.BrowserState, has_oauth: bool) -> SimpleNamespace:
    """The tab's inputs and outputs; a push uses the visitor's sign-in with OAuth, else a token that is typed in."""
    tab = SimpleNamespace(browser=browser, selected=gr.Textbox(visible=False))
    gr.HTML(
        '<p class="t-sub">This list is stored in your browser only. Whoever has a run\'s link can see the run. '
        f"{render.disk_note()}</p>"
    )
    tab.rows = gr.HTML(js_on_load=CLICKED, elem_id="runs")
    with gr.Column(visible=False, elem_id="run-actions") as tab.actions:
        with gr.Row(elem_classes="t-buttons"):
            tab.open = gr.Button("Open", size="md", variant="primary", min_width=100, elem_id="open-run")
            tab.chat = gr.Button("Chat", size="md", min_width=100)
            tab.resume = gr.Button("Resume", size="md", min_width=100, visible=False)
            tab.delete = gr.Button("Delete", size="md", variant="stop", min_width=100, elem_id="delete-run")
        tab.sure = gr.Button("Delete for good", size="md", variant="stop", visible=False, elem_id="delete-sure")
        tab.link = gr.Textbox(label="Private link to this run", interactive=False, buttons=["copy"])
        tab.problem = gr.HTML()
        with gr.Accordion("Push the adapter to the Hub", open=False) as tab.push_fold:
            _push_form(tab, has_oauth)
    _wire(tab)
    return tab


def _push_form(tab: SimpleNamespace, has_oauth: bool) -> None:
    gr.HTML(
        '<p class="t-sub">Uploads the adapter to your own repository, in PEFT\'s format, with tokenizer and a model '
        "card that lists base model, data, settings and scores.</p>"
    )
    with gr.Row():
        tab.repository = gr.Textbox(
            label="Repository", placeholder="your-name/corporate-lora", elem_id="repository", scale=3
        )
        tab.private = gr.Checkbox(
            True, label="Private", info="only you can see the repository", elem_id="private", scale=1, min_width=120
        )
    if has_oauth:
        tab.login = gr.LoginButton()
    tab.token = gr.Textbox(
        label="Hub token with write access",
        type="password",
        info="from https://huggingface.co/settings/tokens; used once and not stored",
        visible=not has_oauth,
        elem_id="token",
    )
    tab.push = gr.Button("Push", size="md", variant="primary", elem_id="push")
    tab.pushed = gr.HTML(elem_id="pushed")


def _wire(tab: SimpleNamespace) -> None:
    # The outputs of `refresh`, in its order.
    tab.outputs = [tab.selected, tab.rows, tab.actions, tab.resume, tab.delete, tab.sure, tab.problem, tab.pushed]
    tab.rows.click(_select, tab.browser, tab.outputs, queue=False, **PRIVATE)
    tab.selected.change(None, tab.selected, tab.link, js=LINK, api_visibility="private")
    tab.delete.click(lambda: gr.update(visible=True), None, tab.sure, queue=False, **PRIVATE)
    tab.sure.click(
        for_visitor(_delete), [tab.selected, tab.browser], [tab.browser, *tab.outputs], queue=False, **PRIVATE
    )
    push = {"inputs": [tab.selected, tab.repository, tab.private, tab.token], "outputs": [tab.pushed, tab.token]}
    tab.push.click(for_visitor(_push), **push, concurrency_limit=4, api_visibility="private")


def refresh(browser: dict | None, selected: str = "") -> list:
    """The list of runs, and the buttons for the selected one, as they are now."""
    rows = actions.summaries((browser or {}).get("runs", []))
    row = next((r for r in rows if r["run"] == selected), None)
    phase = progress.read(actions.open_run(selected)).phase if row and not row["problems"] else ""
    return [
        selected if row else "",
        render.runs_list(rows, selected, actions.EXAMPLE),
        gr.update(visible=bool(row)),
        gr.update(visible=phase in progress.RESUMABLE),
        gr.update(visible=selected != actions.EXAMPLE),
        gr.update(visible=False),
        "",
        "",
    ]


def _select(browser: dict | None, event: gr.EventData) -> list:
    return refresh(browser, getattr(event, "run", "") or "")


def _delete(run: str, browser: dict | None, visitor: Visitor = ANYBODY) -> list:
    browser = browser or NOBODY
    try:
        actions.delete(run, visitor)
    except TunerError as error:
        return [gr.skip(), *refresh(browser, run)[:-2], elements.problems(list(error.problems)), ""]
    remaining = {**browser, "runs": [r for r in browser["runs"] if r != run]}
    return [remaining, *refresh(remaining)]


def _push(run: str, repository: str, private: bool, token: str, visitor: Visitor = ANYBODY) -> list:
    """The repository's link, or the problems; the token's input is emptied once the token was used."""
    try:
        return [render.push_link(actions.push(run, repository, private, with_token(visitor, token))), ""]
    except Exception as error:
        return [elements.problems(problems_of(error), "The adapter was not pushed"), gr.skip()]
