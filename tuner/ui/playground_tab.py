"""Playground: one prompt, answered side by side by the base and by what the chosen runs made of it."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import gradio as gr

from tuner.methods.files import CONFIG
from tuner.methods.registry import METHODS
from tuner.methods.spec import PRECISIONS
from tuner.tasks import TASKS
from tuner.ui import actions, render
from tuner.ui.actions import ADAPTER, BASE, MERGED
from tuner.ui.problems import problems_of
from tuner.ui.wiring import MODELS, PRIVATE

TITLES = {BASE: "Base model", ADAPTER: "Adapter", MERGED: "Merged model"}
COLUMNS = 1 + actions.MOST_COMPARED
MOST_EXAMPLES = 6
NOTHING = "(nothing)"  # where a model found no answer in a text, or no entities
PROMPTS = {
    "generation": "Say something to all of them",
    "seq2seq": "A text for all of them",
    "classification": "Text to classify",
    "token_classification": "A sentence",
    "question_answering": "question on the first line, text below",
}


def build(browser: gr.BrowserState) -> SimpleNamespace:
    """The tab's inputs and outputs."""
    # `shown` are the runs whose columns stand there, `asked` is the prompt that is being answered.
    tab = SimpleNamespace(browser=browser, shown=gr.State([]), asked=gr.State(""))
    with gr.Row(elem_classes="t-line"):
        tab.run = gr.Dropdown(
            [],
            label="Runs",
            info="one, to see its adapter and its merged model; or up to three on the same base, to compare them",
            multiselect=True,
            max_choices=actions.MOST_COMPARED,
            filterable=False,
            elem_id="chat-run",
            scale=3,
            min_width=280,
        )
        tab.clear = gr.Button("New conversation", size="sm", scale=1, min_width=140)
    tab.problem = gr.HTML(elem_id="chat-problem")
    with gr.Row(elem_classes="t-columns"):
        tab.columns = [
            gr.Chatbot(
                label=title,
                visible=bool(title),
                elem_id=f"chat-{number}",
                min_width=240,
                height=None,
                min_height=200,
                max_height=460,
                render_markdown=False,  # what the model writes is shown as it is
                buttons=["copy"],
                feedback_options=None,
                placeholder="",
            )
            for number, title in enumerate([*TITLES.values(), ""])
        ]
    tab.reference = gr.HTML()
    with gr.Row(elem_classes="t-ask"):
        tab.prompt = gr.Textbox(
            placeholder=PROMPTS["generation"],
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
    with gr.Accordion("Sampling and system prompt", open=False) as tab.sampling_fold:
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
    with gr.Accordion("How far is merged from the adapter?", open=True) as tab.check_fold:
        tab.check = gr.HTML()
    _wire(tab)
    return tab


def _wire(tab) -> None:
    sampling = [tab.system, tab.temperature, tab.top_p, tab.length, tab.seed]
    answered = [*tab.columns, tab.problem, tab.check]
    busy = [tab.prompt, tab.asked, tab.send, tab.stop]
    answers = []
    for start in (tab.send.click, tab.prompt.submit):
        begun = start(_begin, [tab.prompt, tab.run], [*busy, tab.problem], queue=False, **PRIVATE)
        given = [tab.run, tab.asked, *sampling, *tab.columns]
        answers.append(begun.then(_answer, given, answered, **MODELS, **PRIVATE))
        answers[-1].then(_end, [tab.asked, tab.prompt, tab.problem], [*busy, tab.problem], queue=False, **PRIVATE)
    stopped = tab.stop.click(None, None, None, cancels=answers, api_visibility="private")
    stopped.then(_end, [tab.asked, tab.prompt, tab.problem], [*busy, tab.problem], queue=False, **PRIVATE)

    def picked(chosen: list[str] | None, shown: list[str], prompt: str, first: list | None) -> dict:
        return pick(tab, chosen or [], shown, prompt, first)

    tab.picked = [tab.shown, tab.examples, tab.check, tab.check_fold, tab.system, tab.sampling_fold]
    tab.picked += [tab.prompt, tab.reference, tab.problem, *tab.columns]
    tab.run.change(picked, [tab.run, tab.shown, tab.prompt, tab.columns[0]], tab.picked, **PRIVATE)
    tab.clear.click(lambda: "", None, tab.problem, queue=False, **PRIVATE)
    tab.examples.select(_take_example, tab.shown, [tab.prompt, tab.reference], queue=False, **PRIVATE)
    # What empties the columns first ends the answer that is being written into them.
    others = [tab.shown.change, tab.clear.click, tab.examples.select]
    ended = gr.on(others, None, None, None, cancels=answers, api_visibility="private")
    ended.then(_empty, None, [*tab.columns, *busy[1:]], queue=False, **PRIVATE)


def choices(browser: dict | None) -> list[tuple[str, str]]:
    """The visitor's runs that can be talked to, and the example, as (title, id)."""
    found = []
    for row in actions.summaries((browser or {}).get("runs", [])):
        if (actions.open_run(row["run"]).adapter / CONFIG).is_file():
            status = "" if row["status"] == "finished" else f", {row['status']}"
            base = f"{Path(row['model']).name}, {PRECISIONS[row['quantization']]}"
            found.append((f"{_title(row)} on {base}{status}", row["run"]))
    return found


def _title(row: dict) -> str:
    """A run in so few words that they fit above a column."""
    name, rows = row["name"] or row["method"], Path(row["data"]).stem
    which = "example" if row["run"] == actions.EXAMPLE else row["run"][:4]
    return f"{name} · {which}" if name == rows else f"{name} · {rows} {which}"


def offer(browser: dict | None, chosen: str | list[str] | None = None):
    """An update of the runs' dropdown: what is chosen, as far as it is there, or else the first run."""
    chosen = [chosen] if isinstance(chosen, str) else chosen or []
    # A run that came by its link is not among the browser's.
    offered = choices({"runs": [*(browser or {}).get("runs", []), *chosen]})
    ids = [id for _, id in offered]
    kept = [id for id in chosen if id in ids]
    return gr.update(choices=offered, value=kept or ids[:1])


def pick(tab, chosen: list[str], shown: list[str], prompt: str, first: list | None) -> dict:
    """What changes when other runs are chosen: the columns' titles, examples, merge check, and what a prompt is.

    Where they can't stand side by side, or their columns are there already, nothing but the problem changes. The last
    prompt comes back, to be put to the new choice. The columns are emptied because `shown` changes.
    """
    if chosen and chosen == shown:
        return {tab.problem: ""}
    try:
        party = actions.party(chosen) if chosen else None
        titles, rows = [*TITLES.values()], []
        if party:
            titles, rows = _titles(party), _heldout(actions.open_run(chosen[0]))
        check = _check(party)
    except Exception as error:
        return {tab.problem: render.problems(problems_of(error))}
    task = TASKS[party.task if party else "generation"]
    said = [turn["content"] for turn in plain(first, answered=False) if turn["role"] == "user"]
    back = {"value": said[-1]} if said and not (prompt or "").strip() else {}
    # A question and its text are two lines, so Enter must not send the first.
    lines = 4 if task.name == "question_answering" else 1
    return {
        tab.shown: chosen,
        tab.examples: gr.update(samples=[[row["messages"][-1]["content"]] for row in rows]),
        tab.check: check,
        tab.check_fold: gr.update(visible=bool(check)),
        tab.system: gr.update(visible=task.name == "generation"),
        tab.sampling_fold: gr.update(visible=task.generates),
        tab.prompt: gr.update(placeholder=PROMPTS[task.name], lines=lines, **back),
        tab.reference: gr.skip() if chosen[:1] == shown[:1] else "",
        tab.problem: "" if party else render.note("Choose a run. Where there is none yet, train one first."),
        **{column: gr.update(label=title, visible=True) for column, title in zip(tab.columns, titles)},
        **{column: gr.update(visible=False) for column in tab.columns[len(titles) :]},
    }


def _titles(party: actions.Party) -> list[str]:
    runs = {**party.adapters, **party.merged}
    return [TITLES.get(v) or _title(actions.summary(runs[v])) for v in party.variants]


def _check(party: actions.Party | None) -> str:
    """How far the merged model is from the adapter, or why there is none; empty where several runs are compared."""
    if not party or ADAPTER not in party.adapters:
        return ""
    run = party.adapters[ADAPTER]
    if party.merged:
        return render.merge_check(run.read_json("merge_check.json"))
    method = METHODS[run.recipe.method.name].title
    return render.note(f"{method} can't be merged into this model's weights, so base and adapter answer alone.")


def _heldout(run) -> list[dict]:
    try:
        with open(run.data / "heldout.jsonl", encoding="utf-8") as lines:
            return [json.loads(line) for line, _ in zip(lines, range(MOST_EXAMPLES), strict=False)]
    except FileNotFoundError:
        return []


def _take_example(shown: list[str], event: gr.SelectData) -> list:
    """Prompt and reference of a held-out row, for a new conversation."""
    rows = _heldout(actions.open_run(shown[0]))
    row = rows[event.index if isinstance(event.index, int) else event.index[0]]
    return [row["messages"][-1]["content"], render.reference(row["reference"])]


def _empty() -> list:
    return [*[[]] * COLUMNS, *_rest()]


def _begin(prompt: str, chosen: list[str] | None) -> list:
    if not chosen:
        return [gr.skip()] * 4 + [render.problems(["No run is chosen. Train one first, or take the example."])]
    if not (prompt or "").strip():
        return [
            gr.skip(),
            "",
            gr.skip(),
            gr.skip(),
            render.problems(["There is nothing to answer yet. Write a prompt first."]),
        ]
    return ["", prompt, gr.update(visible=False), gr.update(visible=True), ""]


def _end(asked: str, prompt: str, problem: str) -> list:
    """Buttons as before; a prompt that met a problem comes back, so that nothing typed is lost."""
    back = asked if problem and not prompt else gr.skip()
    # "Loading ..." has had its time; a problem stays.
    left = "" if 'class="t-note"' in (problem or "") else gr.skip()
    return [back, *_rest(), left]


def _rest() -> list:
    """Nothing is being answered: the prompt in hand, and the buttons."""
    return ["", gr.update(visible=True), gr.update(visible=False)]


def _answer(chosen: list[str], prompt: str, system: str, temperature, top_p, length, seed, *columns) -> Iterator[list]:
    """The conversations as they grow, the problem if there is one, and the merge check."""
    if not prompt:
        yield [gr.skip()] * (COLUMNS + 2)
        return
    before = [plain(column) for column in columns]
    sampling = {"temperature": temperature, "top_p": top_p, "max_new_tokens": length, "seed": seed or 0}
    try:
        party = actions.party(chosen)
        unused = [gr.skip()] * (COLUMNS - len(party.variants))
        asked = [[*turns, {"role": "user", "content": prompt}] for turns in before[: len(party.variants)]]
        yield [*asked, *unused, render.note(_preparing(party)), gr.skip()]
        # Only a model that chats looks back; to others each text is a new one.
        chats = party.task == "generation"
        start = [{"role": "system", "content": system}] if chats and system and system.strip() else []
        conversations = {v: start + turns if chats else turns[-1:] for v, turns in zip(party.variants, asked)}
        said = [""] * len(asked)
        for texts in actions.chat(party, conversations, **sampling):
            said = [texts[v] for v in party.variants]
            yield [*_said(asked, said), *unused, "", _check(party)]
        if not chats:
            yield [*_said(asked, [text or NOTHING for text in said]), *unused, "", _check(party)]
    except Exception as error:
        yield [*before, render.problems(problems_of(error)), gr.skip()]


def _preparing(party: actions.Party) -> str:
    unmerged = [run for run in party.merged.values() if not run.read_json("merge_check.json")]
    what = "Merging the adapter into the 16-bit base, once, and checking it" if unmerged else "Loading the models"
    return what + " …"


def _said(asked: list[list[dict]], texts: list[str]) -> list[list[dict]]:
    return [[*turns, {"role": "assistant", "content": text}] for turns, text in zip(asked, texts)]


def plain(column: list | None, *, answered: bool = True) -> list[dict]:
    """A column's turns, only the answered ones unless told otherwise, as role and text.

    Gradio hands contents on as lists of parts.
    """
    turns = []
    for message in column or []:
        content = message["content"]
        if not isinstance(content, str):
            content = "".join(part.get("text", "") if isinstance(part, dict) else str(part) for part in content)
        turns.append({"role": message["role"], "content": content})
    while answered and turns and turns[-1]["role"] == "user":  # stopped before the answer began
        turns.pop()
    return turns
