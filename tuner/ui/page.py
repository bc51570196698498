"""The page: a header, the tabs, and the buttons that lead from one tab to another."""

import os
from html import escape
from pathlib import Path
from types import SimpleNamespace

import gradio as gr

from tuner.data import table
from tuner.errors import TunerError
from tuner.planning import forecast
from tuner.runs import Run
from tuner.ui import actions, api, compare_api, compare_tab, home_api, ownership, playground_tab, runs_tab, train_tab
from tuner.ui.blocks import Page
from tuner.ui.visitor import ANYBODY, Visitor, for_visitor, with_secret
from tuner.ui.wiring import BY_LINK, CHECKS, MOST_LISTED, NOBODY, PRIVATE, remembered, resumed, with_list, with_run

CSS = Path(__file__).with_name("style.css")
HEADER = """<div class="t-header"><h1>Tuner</h1>
<p>Fine-tune a language model in a few minutes, see honestly whether it helped, and take it home.</p></div>"""
ABOUT = """<div class="t-about"><h2>About</h2>
<p>Tuner fine-tunes a base model with the method you choose; most methods train a small adapter and leave the base
model's weights frozen. Then base model and adapter both answer held-out rows, which training never saw. The difference
between their scores, with its uncertainty, is the result. Everything about a run is in one folder: recipe, events,
adapter, scores. The same runs work in a terminal: <code>python -m tuner --help</code>.</p>
<p>A run's id can't be guessed, and the list of your runs is stored in this browser. Whoever has a run's link can look
at the run and chat with it; to change it takes this browser, or the owner's link. Uploaded rows are used for your run
only, and the upload is deleted after a day; tokens are never stored. When the disk is full, the oldest finished runs
are deleted.</p>
<p>Limits of this page: files of up to {megabytes:g} MB with {rows:,} rows and {tokens:,.0f} tokens, base models of up
to {billions:g} billion parameters, and runs of up to {minutes:g} minutes.</p></div>"""
# Each tab saves its list of runs over that of any other tab, so their secrets are kept here together as well.
KNOWN = """
    const known = (runs) => {
        let others = {};
        try { others = JSON.parse(window.localStorage.getItem('tuner-runs')) || {}; } catch { /* damaged */ }
        runs = Array.isArray(runs) ? Object.fromEntries(runs.map((id) => [id, ''])) : runs || {};
        const ids = Object.keys({...runs, ...others}).slice(0, MOST);
        return Object.fromEntries(ids.map((id) => [id, runs[id] || others[id] || '']));
    };
""".replace("MOST", str(MOST_LISTED))
KEEP = "(kept) => {" + KNOWN + "window.localStorage.setItem('tuner-runs', JSON.stringify(known((kept || {}).runs)));}"
# The run and the secret of the address, for _opened. What follows the # reaches no server's log, and it must not stay
# in the address bar, from where people copy links.
OPENED = (
    "(kept) => {"
    + KNOWN
    + """
    const url = new URL(window.location);
    const secret = new URLSearchParams(url.hash.slice(1)).get('secret') || '';
    if (secret) {
        url.hash = '';
        window.history.replaceState(window.history.state, '', url);
    }
    window.onhashchange = () => window.location.hash.startsWith('#secret=') && window.location.reload();
    const [run, compare] = ['run', 'compare'].map((name) => url.searchParams.get(name) || '');
    return {...kept, runs: known((kept || {}).runs), opened: {run, compare, secret}};
}"""
)
CLEAN = (3600, 86400)  # once an hour, delete uploads that are a day old
KEPT_SECRET = "tuner"  # fixed, because a new secret at each start would make the browsers' lists unreadable


def theme() -> gr.themes.Base:
    """Colors, and fonts of the visitor's system, so that nothing is downloaded from elsewhere."""
    return gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_md,
        font=[gr.themes.Font(name) for name in ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")],
        font_mono=[
            gr.themes.Font(name) for name in ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
        ],
    ).set(
        # White on the theme's own teal has a contrast of 2.5 to 1.
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        body_background_fill="*neutral_50",
        # The theme's own grays are too pale to read.
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        block_info_text_color="*neutral_500",
        block_info_text_color_dark="*neutral_400",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
    )


def has_oauth() -> bool:
    """Whether visitors can sign in; off a Space, Gradio's sign-in button would stop the launch."""
    return "OAUTH_CLIENT_ID" in os.environ and gr.utils.get_space() is not None


def about() -> str:
    """What Tuner does, and this page's limits."""
    return ABOUT.format(
        megabytes=table.MAX_FILE_BYTES / 2**20,
        rows=table.MAX_ROWS,
        tokens=forecast.MAX_TOKENS,
        billions=forecast.MAX_PARAMETERS / 1e9,
        minutes=forecast.MAX_SECONDS / 60,
    )


def build() -> gr.Blocks:
    """The whole page with its named endpoints."""
    actions.install_example()
    with Page(title="Tuner", fill_width=True, analytics_enabled=False, delete_cache=CLEAN) as page:
        api.build()  # first, so that no tab's handler takes an endpoint's name
        compare_api.build()
        home_api.build()
        browser = gr.BrowserState(NOBODY, storage_key="tuner", secret=KEPT_SECRET)
        with gr.Row():
            with gr.Column(min_width=300):
                gr.HTML(HEADER)
            # Without an icon, whose path on this machine the page would tell.
            login = gr.LoginButton(icon=None, size="sm", scale=0, min_width=180) if has_oauth() else None
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab("Train", id="train"):
                train = train_tab.build(browser)
            with gr.Tab("Playground", id="playground") as playground_tab_item:
                playground = playground_tab.build(browser)
            with gr.Tab("Compare", id="compare") as compare_tab_item:
                compare = compare_tab.build(browser, train.form)
            with gr.Tab("My runs", id="runs") as runs_tab_item:
                mine = runs_tab.build(browser, has_oauth=has_oauth())
                mine.login = login
        gr.HTML(about())
        _link_tabs(tabs, train, playground, mine, browser)
        playground_tab_item.select(playground_tab.update_runs, [browser, playground.run], playground.run, **PRIVATE)
        runs_tab_item.select(for_visitor(runs_tab.refresh), [browser, mine.selected], mine.outputs, **PRIVATE)

        compare_tab_item.select(compare.estimate, compare.everything, compare.card, **CHECKS, **PRIVATE)

        def arrive(kept: dict | None, visitor: Visitor) -> list:
            experiment = _experiment_of(kept)
            run, kept = _opened(kept, visitor)
            compared = compare_tab.show(experiment, with_list(visitor, kept))
            place = gr.Tabs(selected="compare") if compared[0] else gr.skip()
            return [*train_tab.show(train, run, kept, visitor), place, *compared]

        outputs = [*train_tab.show_outputs(train), tabs, *compare_tab.show_outputs(compare)]
        arrived = page.load(for_visitor(arrive), browser, outputs, js=OPENED, **PRIVATE)
        train.check_again(arrived)
        browser.change(None, browser, None, js=KEEP, api_visibility="private")
    return page


def _opened(kept: dict | None, visitor: Visitor) -> tuple[str, dict]:
    """The run of the address, or else the one shown last; and the browser's list, with that run if it is its own."""
    opened = kept.get("opened") if isinstance(kept, dict) else None
    run, secret = (str(opened.get(name) or "") for name in ("run", "secret")) if isinstance(opened, dict) else ("", "")
    kept = remembered(kept)
    try:
        if run:
            kept = _with_opened(kept, actions.open_run(run), secret, visitor)
    except TunerError as error:
        gr.Warning(escape(f"{error}"), title="Tuner")
    return run or kept["shown"], kept


def _experiment_of(kept: dict | None) -> str:
    """The experiment of the address."""
    opened = kept.get("opened") if isinstance(kept, dict) else None
    return str(opened.get("compare") or "") if isinstance(opened, dict) else ""


def _with_opened(kept: dict, run: Run, secret: str, visitor: Visitor) -> dict:
    """The browser's list once its visitor opened the run, by this secret perhaps; anybody can write a link."""
    by_account = ownership.is_owner(run, visitor)
    by_list = ownership.is_owner(run, with_list(ANYBODY, kept))
    by_link = ownership.is_owner(run, with_secret(ANYBODY, run.id, secret))
    if by_account or by_link:
        kept = with_run(kept, run.id, f"{BY_LINK}{secret}" if by_link and not by_list else "")
    return resumed(kept, run.id) if by_account else kept


def _link_tabs(
    tabs: gr.Tabs, train: SimpleNamespace, playground: SimpleNamespace, mine: SimpleNamespace, browser: gr.BrowserState
) -> None:
    """The buttons that lead from a run to the playground, to the push, and back to training."""

    def to_playground(run: str, kept: dict) -> list:
        return [gr.Tabs(selected="playground"), playground_tab.update_runs(kept, run)]

    def to_push(run: str, kept: dict, visitor: Visitor) -> list:
        return [gr.Tabs(selected="runs"), gr.update(open=True), *runs_tab.refresh(kept, run, visitor)]

    def to_train(run: str, kept: dict, visitor: Visitor) -> list:
        return [gr.Tabs(selected="train"), *train_tab.show(train, run, kept, visitor)]

    def to_resume(run: str, kept: dict, visitor: Visitor) -> list:
        kept, *panel = train_tab.resume(run, kept, visitor)  # with the reason if it can't be resumed
        values = to_train(run, kept, visitor)
        return [*values[:3], *panel, *values[3 + len(panel) :]]

    train.chat.click(to_playground, [train.shown, browser], [tabs, playground.run], **PRIVATE)
    train.push.click(for_visitor(to_push), [train.shown, browser], [tabs, mine.push_fold, *mine.outputs], **PRIVATE)
    mine.chat.click(to_playground, [mine.selected, browser], [tabs, playground.run], **PRIVATE)
    back = {"inputs": [mine.selected, browser], "outputs": [tabs, *train_tab.show_outputs(train)], **PRIVATE}
    mine.open.click(for_visitor(to_train), **back)
    mine.resume.click(for_visitor(to_resume), **back)
