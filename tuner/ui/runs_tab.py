"""My runs: this browser's runs and the example; open, resume, push or delete one."""

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from types import SimpleNamespace

import gradio as gr

from tuner.errors import TunerError
from tuner.heartbeat import with_heartbeat
from tuner.inference import merge_check
from tuner.names import MAIN, PULL_REQUEST, WHAT
from tuner.runs import Run
from tuner.ui import actions, download_form, elements, import_form, ownership, progress, render
from tuner.ui.problems import problems_of
from tuner.ui.visitor import ANYBODY, Visitor, for_visitor, with_token
from tuner.ui.wiring import BY_LINK, PRIVATE, remembered, with_list

CLICKED = """element.addEventListener('click', (event) => {
    const row = event.target.closest('[data-run]');
    if (row) trigger('click', {run: row.dataset.run});
});"""
# The owner's secret is in the part of the address that a browser keeps to itself; page.py takes it from there.
LINKS = """(id, kept) => {
    const url = new URL(window.location.origin + window.location.pathname);
    url.searchParams.set('run', id);
    const secret = (((kept || {}).runs || {})[id] || '').replace('BY_LINK', '');
    return [url.href, secret ? url.href + '#secret=' + secret : ''];
}""".replace("BY_LINK", BY_LINK)
AT_ONCE = 4  # pushes, those included whose visitor has left
_pushing = threading.BoundedSemaphore(AT_ONCE)


def build(browser: gr.BrowserState, has_oauth: bool) -> SimpleNamespace:
    """The tab's inputs and outputs; a push uses the visitor's sign-in with OAuth, else a token that is typed in."""
    tab = SimpleNamespace(browser=browser, selected=gr.Textbox(visible=False))
    with gr.Row():
        with gr.Column(min_width=300):
            gr.HTML(
                '<p class="t-sub">This list is stored in your browser only. Whoever has a run\'s link can look at the '
                f"run and chat with it. {render.disk_note()}</p>"
            )
        import_form.build(tab)
    tab.imported = gr.HTML(elem_id="imported")
    tab.rows = gr.HTML(js_on_load=CLICKED, elem_id="runs")
    with gr.Column(visible=False, elem_id="run-actions") as tab.actions:
        with gr.Row(elem_classes="t-buttons"):
            tab.open = gr.Button("Open", size="md", variant="primary", min_width=100, elem_id="open-run")
            tab.chat = gr.Button("Chat", size="md", min_width=100)
            tab.resume = gr.Button("Resume", size="md", min_width=100, visible=False)
            tab.delete = gr.Button("Delete", size="md", variant="stop", min_width=100, elem_id="delete-run")
        tab.sure = gr.Button("Delete for good", size="md", variant="stop", visible=False, elem_id="delete-sure")
        with gr.Row():
            tab.link = gr.Textbox(
                label="Private link to this run",
                info="for looking and chatting",
                interactive=False,
                buttons=["copy"],
                min_width=280,
                elem_id="run-link",
            )
            tab.owner_link = gr.Textbox(
                label="Owner's link",
                info="for yourself in another browser: who has it can also resume, stop, delete and push the run",
                interactive=False,
                buttons=["copy"],
                min_width=280,
                elem_id="owner-link",
            )
        tab.problem = gr.HTML()
        with gr.Column() as tab.pushing:
            download_form.build(tab)
            with gr.Accordion("Push to the Hub", open=False) as tab.push_fold:
                _push_form(tab, has_oauth)
    _wire(tab)
    return tab


def _push_form(tab: SimpleNamespace, has_oauth: bool) -> None:
    gr.HTML(
        '<p class="t-sub">Uploads it to your own repository, with tokenizer and a model card that lists base model, '
        "data, settings and scores.</p>"
    )
    tab.what = gr.Radio(
        [(title, name) for name, title in WHAT.items()],
        value="adapter",
        label="What",
        info="the adapter is small and needs its base model; the merged model is whole",
        elem_id="push-what",
    )
    with gr.Row():
        tab.repository = gr.Textbox(
            label="Repository", placeholder="your-name/corporate-lora", elem_id="repository", scale=3
        )
        tab.private = gr.Checkbox(
            True, label="Private", info="only you can see the repository", elem_id="private", scale=1, min_width=120
        )
    tab.data_name = gr.Textbox(
        label="Name of your data",
        info="for the card, if you like: the name of a file of your own is not told",
        elem_id="data-name",
    )
    with gr.Accordion("More", open=False):
        tab.into = gr.Dropdown(
            [MAIN, PULL_REQUEST],
            value=MAIN,
            allow_custom_value=True,
            label="Branch",
            info="of a repository that exists: main, another branch by its name, or a pull request",
            elem_id="push-into",
        )
    tab.failed_merge = gr.Checkbox(False, label=merge_check.CONSENT, visible=False, elem_id="failed-merge")
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
    tab.outputs = [tab.selected, tab.rows, tab.actions, tab.resume, tab.delete, tab.owner_link, tab.pushing]
    tab.outputs += [tab.failed_merge]
    tab.outputs += [tab.sure, tab.problem, tab.pushed, tab.download]
    import_form.wire(tab, refresh)
    tab.rows.click(for_visitor(_select), tab.browser, tab.outputs, queue=False, **PRIVATE)
    links = [tab.link, tab.owner_link]
    tab.selected.change(None, [tab.selected, tab.browser], links, js=LINKS, api_visibility="private")
    tab.delete.click(lambda: gr.update(visible=True), None, tab.sure, queue=False, **PRIVATE)
    tab.sure.click(
        for_visitor(_delete), [tab.selected, tab.browser], [tab.browser, *tab.outputs], queue=False, **PRIVATE
    )
    given = [tab.selected, tab.browser, tab.repository, tab.private, tab.failed_merge, tab.token]
    given += [tab.what, tab.data_name, tab.into]
    push = {"inputs": given, "outputs": [tab.pushed, tab.token]}
    tab.push.click(for_visitor(_push), **push, concurrency_limit=AT_ONCE, api_visibility="private")


def refresh(kept: dict | None, selected: str = "", visitor: Visitor = ANYBODY) -> list:
    """The list of runs, and what the visitor can do with the selected one, as they are now."""
    listed, visitor = remembered(kept)["runs"], with_list(visitor, kept)
    rows = actions.summaries(list(listed))
    row = next((r for r in rows if r["run"] == selected), None)
    run = actions.open_run(selected) if row else None
    is_own, is_shared = (run and may(run, visitor) for may in (ownership.is_owner, ownership.is_shared))
    phase = progress.read(run).phase if run and not row["problems"] else ""
    failure = _merge_failure(run) if run else None
    return [
        selected if row else "",
        render.runs_list(rows, selected, actions.EXAMPLE),
        gr.update(visible=bool(row)),
        gr.update(visible=bool(is_own and phase in progress.RESUMABLE), value=progress.resume_label(phase)),
        gr.update(visible=bool(is_own)),
        gr.update(visible=bool(is_own and listed.get(selected))),
        gr.update(visible=bool(is_shared)),
        gr.update(visible=bool(failure), value=False, info=failure),
        gr.update(visible=False),
        "" if not row or is_shared else elements.note(ownership.hindrance(run, visitor)),
        "",
        "",
    ]


def _select(kept: dict | None, event: gr.EventData, visitor: Visitor) -> list:
    return refresh(kept, getattr(event, "run", "") or "", visitor)


def _delete(run: str, kept: dict | None, visitor: Visitor = ANYBODY) -> list:
    try:
        actions.delete(run, with_list(visitor, kept))
    except TunerError as error:
        return [gr.skip(), *refresh(kept, run, visitor)[:-3], elements.problems(list(error.problems)), "", ""]
    kept = remembered(kept)
    remaining = {**kept, "runs": {id: secret for id, secret in kept["runs"].items() if id != run}}
    return [remaining, *refresh(remaining)]


def _merge_failure(run: Run) -> str | None:
    with suppress(TunerError):  # its merge check is damaged, which the push says
        return merge_check.problem(run.read_json("merge_check.json") or {})
    return None


def _push(
    run: str,
    kept: dict | None,
    repository: str,
    private: bool,
    failed_merge: bool,
    token: str,
    what: str = "adapter",
    data_name: str = "",
    into: str = MAIN,
    visitor: Visitor = ANYBODY,
) -> Iterator[list]:
    """The repository's link, or the problems; the token's input is emptied once the token was used."""
    visitor = with_token(with_list(visitor, kept), token)
    merging = "Merging if need be, then pushing" if what != "adapter" else "Pushing"
    yield [elements.note(f"{merging} …"), gr.skip()]
    options = {"failed_merge": failed_merge, "what": what or "adapter", "data_name": data_name or ""}
    options["into"] = into or MAIN

    def work(put: Callable[[str | dict], None]) -> None:
        if not _pushing.acquire(blocking=False):
            raise TunerError("Other visitors' pushes are under way. Try again in a few minutes.")
        try:
            put(actions.push(run, repository, private, visitor, tell=put, **options))
        finally:
            _pushing.release()

    try:
        # Whoever leaves ends the telling; the push goes on to its end, with its place. Gradio closes this generator in
        # the thread that serves all visitors, which must not wait.
        for told in with_heartbeat(partial(copy_context().run, work), None):
            if isinstance(told, dict):
                yield [render.sent(told), gr.skip()]
            elif told:
                yield [render.push_link(told), ""]
    except Exception as error:
        yield [elements.problems(problems_of(error), "Nothing was pushed"), gr.skip()]
