"""The page: a header, the tabs, and what leads from one tab to another."""

import os
from pathlib import Path

import gradio as gr

from tuner.data import parse
from tuner.planning import forecast
from tuner.ui import actions, api, playground_tab, runs_tab, train_tab
from tuner.ui.wiring import NOBODY, PRIVATE

CSS = Path(__file__).with_name("style.css")
HEADER = """<div class="t-header"><h1>Tuner</h1>
<p>Fine-tune a small language model, see honestly whether it helped, and take it home.</p></div>"""
ABOUT = """<div class="t-about"><h2>About</h2>
<p>Tuner changes a base model by the method that you choose, most of them a small adapter beside weights that stay as
they are, then lets base and adapter answer rows that training never saw. The difference between the two, with its
uncertainty, is the result. A run lives in one
folder: recipe, events, adapter, scores. The same runs work in a terminal: <code>python -m tuner --help</code>.</p>
<p>Runs are known by ids that can't be guessed, and this browser keeps the list of yours. Uploaded rows are used for
your run alone, and the upload is dropped after a day; tokens are never stored. The oldest finished runs make
room when the disk fills up.</p>
<p>This page takes files of up to {megabytes:g} MB with {rows:,} rows and {tokens:,.0f} tokens, base models of up to
{billions:g} billion parameters, and runs of up to {minutes:g} minutes.</p></div>"""
CLEAN = (3600, 86400)  # once an hour, drop uploads that are a day old
KEPT_SECRET = "tuner"  # the list lies in the visitor's own browser: a new one at each start would lose it


def theme() -> gr.themes.Base:
    """Fonts of the visitor's system, so that nothing is fetched from elsewhere."""
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
        # The theme's own greys are too pale to read.
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        block_info_text_color="*neutral_500",
        block_info_text_color_dark="*neutral_400",
        input_placeholder_color="*neutral_500",
    )


def has_oauth() -> bool:
    """Whether visitors can sign in: elsewhere than on a Space, Gradio's button stops the launch."""
    return "OAUTH_CLIENT_ID" in os.environ and gr.utils.get_space() is not None


def about() -> str:
    """What Tuner does, and what it takes."""
    return ABOUT.format(
        megabytes=parse.MAX_FILE_BYTES / 2**20,
        rows=parse.MAX_ROWS,
        tokens=forecast.MAX_TOKENS,
        billions=forecast.MAX_PARAMETERS / 1e9,
        minutes=forecast.MAX_SECONDS / 60,
    )


def build() -> gr.Blocks:
    """The whole page with its endpoints."""
    actions.install_example()
    with gr.Blocks(title="Tuner", fill_width=True, analytics_enabled=False, delete_cache=CLEAN) as page:
        api.build()  # first, because a name that a tab's handler has is no longer free
        browser = gr.BrowserState(NOBODY, storage_key="tuner", secret=KEPT_SECRET)
        gr.HTML(HEADER)
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab("Train", id="train"):
                train = train_tab.build(browser, has_oauth=has_oauth())
            with gr.Tab("Playground", id="playground") as playground_place:
                playground = playground_tab.build(browser)
            with gr.Tab("My runs", id="runs") as runs_place:
                mine = runs_tab.build(browser, has_oauth=has_oauth())
        gr.HTML(about())
        _lead(tabs, train, playground, mine, browser)
        playground_place.select(playground_tab.offer, [browser, playground.run], playground.run, **PRIVATE)
        runs_place.select(runs_tab.refresh, [browser, mine.selected], mine.picked, **PRIVATE)

        def arrive(kept: dict | None, request: gr.Request) -> list:
            # The run that the link names, or the one that this browser looked at last.
            shown = request.query_params.get("run") or (kept or {}).get("shown", "")
            return train_tab.attach(train, shown, kept)

        arrived = page.load(arrive, browser, train_tab.attached(train), **PRIVATE)
        train.look_again(arrived)
    return page


def _lead(tabs, train, playground, mine, browser) -> None:
    """What leads from a run to the playground, to the push, and back to training."""

    def to_playground(run: str, kept: dict) -> list:
        return [gr.Tabs(selected="playground"), playground_tab.offer(kept, run)]

    def to_push(run: str, kept: dict) -> list:
        return [gr.Tabs(selected="runs"), gr.update(open=True), *runs_tab.refresh(kept, run)]

    def to_train(run: str, kept: dict) -> list:
        return [gr.Tabs(selected="train"), *train_tab.attach(train, run, kept)]

    def to_resume(run: str, kept: dict, request: gr.Request) -> list:
        train_tab.resume(run, request)
        return to_train(run, kept)

    train.chat.click(to_playground, [train.shown, browser], [tabs, playground.run], **PRIVATE)
    train.push.click(to_push, [train.shown, browser], [tabs, mine.push_fold, *mine.picked], **PRIVATE)
    mine.chat.click(to_playground, [mine.selected, browser], [tabs, playground.run], **PRIVATE)
    back = {"inputs": [mine.selected, browser], "outputs": [tabs, *train_tab.attached(train)], **PRIVATE}
    mine.open.click(to_train, **back)
    mine.resume.click(to_resume, **back)
