"""Playground: one prompt, answered side by side by base, adapter and merged model of a run."""

import json
from collections.abc import Iterator
from types import SimpleNamespace

import gradio as gr

from tuner.ui import actions, show
from tuner.ui.actions import VARIANTS
from tuner.ui.problems import problems_of
from tuner.ui.wiring import MODELS, PRIVATE

TITLES = {"base": "Base model", "adapter": "Adapter", "merged": "Merged model"}
MOST_EXAMPLES = 6


def build(browser: gr.BrowserState) -> SimpleNamespace:
    """The tab's inputs and outputs."""
    tab = SimpleNamespace(browser=browser, asked=gr.State(""))
    with gr.Row(elem_classes="t-line"):
        tab.run = gr.Dropdown([], label="Run", elem_id="chat-run", scale=3, min_width=280, filterable=False)
        tab.clear = gr.Button("New conversation", size="sm", scale=1, min_width=140)
    tab.problem = gr.HTML()
    with gr.Row(elem_classes="t-columns"):
        tab.columns = [
            gr.Chatbot(
                label=TITLES[v],
                elem_id=f"chat-{v}",
                min_width=240,
                height=None,
                min_height=200,
                max_height=460,
                render_markdown=False,  # what the model writes is shown as it is
                buttons=["copy"],
                feedback_options=None,
                placeholder="",
            )
            for v in VARIANTS
        ]
    tab.reference = gr.HTML()
    with gr.Row(elem_classes="t-ask"):
        tab.prompt = gr.Textbox(
            placeholder="Say something to all three",
            show_label=False,
            label="Prompt",
            lines=1,
            max_lines=6,
            scale=5,
            container=False,
            elem_id="prompt",
        )
        tab.send = gr.Button("Send", size="md", variant="primary", scale=1, min_width=90, elem_id="send")
        tab.stop = gr.Button(
            "Stop", size="md", variant="stop", scale=1, min_width=90, visible=False, elem_id="stop-chat"
        )
    tab.examples = gr.Dataset(
        components=[gr.Textbox(visible=False)],
        samples=[],
        label="Rows that were held out, with their reference",
        elem_id="examples",
    )
    with gr.Accordion("Sampling and system prompt", open=False):
        with gr.Row():
            tab.temperature = gr.Slider(
                0, 2, 0, step=0.05, label="Temperature", info="0 takes the likeliest token each time"
            )
            tab.top_p = gr.Slider(
                0.05, 1, 1, step=0.05, label="Top-p", info="only the likeliest tokens that make up this share"
            )
            tab.length = gr.Slider(1, 512, 96, step=1, label="Length", info="tokens at most")
            tab.seed = gr.Number(0, precision=0, label="Seed", info="the same seed gives the same answer")
        tab.system = gr.Textbox(label="System prompt", placeholder="none", info="put before a new conversation")
    with gr.Accordion("How far is merged from the adapter?", open=True):
        tab.check = gr.HTML()
    _wire(tab)
    return tab


def _wire(tab) -> None:
    sampling = [tab.system, tab.temperature, tab.top_p, tab.length, tab.seed]
    shown = [*tab.columns, tab.problem, tab.check]
    busy = [tab.prompt, tab.asked, tab.send, tab.stop]
    answers = []
    for start in (tab.send.click, tab.prompt.submit):
        begun = start(_begin, [tab.prompt, tab.run], [*busy, tab.problem], queue=False, **PRIVATE)
        answers.append(begun.then(_answer, [tab.run, tab.asked, *sampling, *tab.columns], shown, **MODELS, **PRIVATE))
        answers[-1].then(_end, [tab.asked, tab.prompt, tab.problem], [*busy, tab.problem], queue=False, **PRIVATE)
    stopped = tab.stop.click(None, None, None, cancels=answers, api_visibility="private")
    stopped.then(_end, [tab.asked, tab.prompt, tab.problem], [*busy, tab.problem], queue=False, **PRIVATE)
    tab.picked = [tab.examples, tab.check, tab.reference, tab.problem, *tab.columns]
    tab.run.change(pick, tab.run, tab.picked, **PRIVATE)
    tab.clear.click(lambda: [*[[]] * len(VARIANTS), ""], None, [*tab.columns, tab.problem], queue=False, **PRIVATE)
    tab.examples.select(_take_example, tab.run, [tab.prompt, tab.reference, *tab.columns], queue=False, **PRIVATE)


def choices(browser: dict | None) -> list[tuple[str, str]]:
    """The visitor's runs that can be talked to, and the example, as (title, id)."""
    found = []
    for row in actions.summaries((browser or {}).get("runs", [])):
        run = actions.open_run(row["run"])
        if (run.adapter / "adapter_config.json").is_file():
            title = row["name"] or f"{row['method']} on {row['model']}, {row['data']}"
            shipped = row["run"] == actions.EXAMPLE
            found.append(
                (f"{title} · {'the shipped example' if shipped else row['status'] + ' ' + row['run'][:4]}", row["run"])
            )
    return found


def offer(browser: dict | None, run: str | None = None):
    """An update of the run's dropdown: this run, or the first that there is."""
    offered = choices(browser)
    ids = [id for _, id in offered]
    return gr.update(choices=offered, value=run if run in ids else ids[0] if ids else None)


def pick(run: str | None) -> list:
    """Examples, merge check and empty columns for a run."""
    empty = [[]] * len(VARIANTS)
    if not run:
        return [gr.update(samples=[]), "", "", show.note("Train a run first; then you can talk to it here."), *empty]
    try:
        opened = actions.open_run(run)
        rows = [[row["messages"][-1]["content"]] for row in _heldout(opened)]
        return [gr.update(samples=rows), show.merge_check(opened.read_json("merge_check.json")), "", "", *empty]
    except Exception as error:
        return [gr.update(samples=[]), "", "", show.problems(problems_of(error)), *empty]


def _heldout(run) -> list[dict]:
    try:
        with open(run.data / "heldout.jsonl", encoding="utf-8") as lines:
            return [json.loads(line) for line, _ in zip(lines, range(MOST_EXAMPLES), strict=False)]
    except FileNotFoundError:
        return []


def _take_example(run: str, event: gr.SelectData) -> list:
    """Prompt and reference of a held-out row, for a new conversation."""
    rows = _heldout(actions.open_run(run))
    row = rows[event.index if isinstance(event.index, int) else event.index[0]]
    return [row["messages"][-1]["content"], show.reference(row["reference"]), *[[]] * len(VARIANTS)]


def _begin(prompt: str, run: str | None) -> list:
    if not run:
        return [gr.skip()] * 4 + [show.problems(["No run is chosen. Train one first, or take the example."])]
    if not (prompt or "").strip():
        return [
            gr.skip(),
            "",
            gr.skip(),
            gr.skip(),
            show.problems(["There is nothing to answer yet. Write a prompt first."]),
        ]
    return ["", prompt, gr.update(visible=False), gr.update(visible=True), ""]


def _end(asked: str, prompt: str, problem: str) -> list:
    """Buttons as before; a prompt that met a problem comes back, so that nothing typed is lost."""
    back = asked if problem and not prompt else gr.skip()
    # "Loading ..." has had its time; a problem stays.
    left = "" if 'class="t-note"' in (problem or "") else gr.skip()
    return [back, "", gr.update(visible=True), gr.update(visible=False), left]


def _answer(run: str, prompt: str, system: str, temperature, top_p, length, seed, *columns) -> Iterator[list]:
    """The three conversations as they grow, the problem if there is one, and the merge check."""
    if not prompt:
        yield [gr.skip()] * (len(VARIANTS) + 2)
        return
    before = [plain(column) for column in columns]
    asked = [[*turns, {"role": "user", "content": prompt}] for turns in before]
    start = [{"role": "system", "content": system}] if system and system.strip() else []
    sampling = {"temperature": temperature, "top_p": top_p, "max_new_tokens": length, "seed": seed or 0}
    try:
        opened = actions.open_run(run)
        is_merged = bool(opened.read_json("merge_check.json"))
        what = "Loading the models" if is_merged else "Merging the adapter into the 16-bit base, once, and checking it"
        yield [*asked, show.note(what + " …"), gr.skip()]
        conversations = {v: start + turns for v, turns in zip(VARIANTS, asked, strict=True)}
        for texts in actions.chat(run, conversations, **sampling):
            answers = [{"role": "assistant", "content": texts[v]} for v in VARIANTS]
            said = [[*turns, answer] for turns, answer in zip(asked, answers, strict=True)]
            yield [*said, "", show.merge_check(opened.read_json("merge_check.json"))]
    except Exception as error:
        yield [*before, show.problems(problems_of(error)), gr.skip()]


def plain(column: list | None) -> list[dict]:
    """A column's answered turns as role and text; Gradio hands contents on as lists of parts."""
    turns = []
    for message in column or []:
        content = message["content"]
        if not isinstance(content, str):
            content = "".join(part.get("text", "") if isinstance(part, dict) else str(part) for part in content)
        turns.append({"role": message["role"], "content": content})
    while turns and turns[-1]["role"] == "user":  # stopped before the answer began
        turns.pop()
    return turns
