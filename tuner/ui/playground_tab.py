"""Playground: one prompt, answered side by side by the base model and by the chosen runs' adapters."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import gradio as gr

from tuner.data import encode
from tuner.methods.files import CONFIG
from tuner.methods.registry import METHODS
from tuner.methods.spec import PRECISIONS
from tuner.run_shapes import Turn
from tuner.runs import Run
from tuner.tasks import DEFAULT_TASK, TASKS, task_of
from tuner.ui import actions, adopting, conversation, elements, render
from tuner.ui.actions import ADAPTER, BASE, MERGED
from tuner.ui.problems import problems_of
from tuner.ui.visitor import ANYBODY, Visitor, for_visitor
from tuner.ui.wiring import MODELS, PRIVATE, remembered, with_list

MOST_CHARACTERS = 100_000  # of a prompt
TOO_LONG = f"The prompt has more than {MOST_CHARACTERS:,} characters, which is too much here. Shorten it."
TITLES = {BASE: "Base model", ADAPTER: "Adapter", MERGED: "Merged model"}
COLUMNS = 1 + actions.MOST_COMPARED
MOST_EXAMPLES = 6
NOTHING = "(nothing)"  # shown if a model finds no answer in a text, or no entities
BUSY = "An answer is being written. Wait until it is done, or press Stop."
# What the browser does at a click: the columns are emptied, nothing is pending, and Send stands instead of Stop. From
# the server this would come later, and end what was sent meanwhile.
VISIBLE = "{__type__: 'update', visible: %s}"
EMPTY = f"[{'[], ' * COLUMNS}'', {VISIBLE % 'true'}, {VISIBLE % 'false'}]"


def build(browser: gr.BrowserState) -> SimpleNamespace:
    """The tab's inputs and outputs."""
    # `shown` are the runs that the columns belong to, and `sent` is a number of messages that begins an answer when it
    # changes. `pending` is the prompt being answered, which the browser keeps: out of the server's state an event that
    # ends late would take the next prompt.
    tab = SimpleNamespace(browser=browser, shown=gr.State([]), sent=gr.State(0), pending=gr.Textbox(visible=False))
    _conversation(tab)
    _settings(tab)
    _wire(tab)
    return tab


def _conversation(tab: SimpleNamespace) -> None:
    with gr.Row(elem_classes="t-line"):
        tab.run = gr.Dropdown(
            [],
            label="Runs",
            info="one run to see its adapter and merged model, or up to three on the same base model to compare them",
            multiselect=True,
            max_choices=actions.MOST_COMPARED,
            filterable=False,
            elem_id="chat-run",
            scale=3,
            min_width=280,
        )
        tab.clear = gr.Button("New conversation", size="sm", scale=1, min_width=140)
    adopting.build(tab)
    tab.problem = gr.HTML(elem_id="chat-problem")
    with gr.Row(elem_classes="t-columns"):
        tab.columns = [
            conversation.build(title, f"chat-{number}") for number, title in enumerate([*TITLES.values(), ""])
        ]
    tab.reference = gr.HTML()
    with gr.Row(elem_classes="t-ask"):
        tab.prompt = gr.Textbox(
            placeholder=TASKS[DEFAULT_TASK].placeholder,
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
        label="Held-out rows, each with a reference answer",
        elem_id="examples",
    )


def _settings(tab: SimpleNamespace) -> None:
    with gr.Accordion("Sampling and system prompt", open=False) as tab.sampling_fold:
        with gr.Row():
            tab.temperature = gr.Slider(
                0, 2, 0, step=0.05, label="Temperature", info="0 chooses the likeliest token each time"
            )
            tab.top_p = gr.Slider(
                0.05,
                1,
                1,
                step=0.05,
                label="Top-p",
                info="sample only from the likeliest tokens with this total probability",
            )
            tab.length = gr.Slider(1, 512, 96, step=1, label="Max new tokens", info="the longest answer")
            tab.seed = gr.Number(0, precision=0, label="Seed", info="the same seed gives the same answer")
        tab.system = gr.Textbox(label="System prompt", placeholder="none", info="starts each new conversation")
    with gr.Accordion("Does merging change the answers?", open=True) as tab.check_fold:
        tab.check = gr.HTML()


def _wire(tab: SimpleNamespace) -> None:
    sampling = [tab.system, tab.temperature, tab.top_p, tab.length, tab.seed]
    answered = [*tab.columns, tab.problem, tab.check]
    busy = [tab.prompt, tab.pending, tab.send, tab.stop]
    given = [tab.run, tab.browser, tab.pending, *sampling, *tab.columns]
    ending = {"inputs": [tab.pending, tab.prompt, tab.problem], "outputs": [*busy, tab.problem]}
    sending, begun = [tab.prompt, tab.run, tab.pending, tab.sent], [*ending["outputs"], tab.sent]
    gr.on([tab.send.click, tab.prompt.submit], _begin, sending, begun, **PRIVATE)  # queued, or no change would be told
    answer = tab.sent.change(for_visitor(_answer), given, answered, **MODELS, **PRIVATE)
    for after, deed in ((answer.then, _end), (answer.failure, _fail)):
        after(deed, **ending, queue=False, **PRIVATE)
    stopped = tab.stop.click(None, None, None, cancels=answer, api_visibility="private")
    stopped.then(_end, **ending, queue=False, **PRIVATE)

    def choose(
        chosen: list[str] | None,
        kept: dict | None,
        shown: list[str],
        prompt: str,
        first: list[Turn] | None,
        visitor: Visitor,
    ) -> dict:
        return choose_runs(tab, chosen or [], shown, prompt, first, with_list(visitor, kept))

    outputs = [tab.shown, tab.examples, tab.check, tab.check_fold, tab.system, tab.sampling_fold]
    outputs += [tab.prompt, tab.reference, tab.problem, *tab.columns]
    given = [tab.run, tab.browser, tab.shown, tab.prompt, tab.columns[0]]
    tab.run.change(for_visitor(choose), given, outputs, **PRIVATE)
    adopting.wire(tab, update_runs)
    # The answer being written is cancelled first, and nothing that is sent after that.
    others, emptied = [tab.shown.change, tab.clear.click, tab.examples.select], [*tab.columns, *busy[1:]]
    gr.on(others, None, None, None, cancels=answer, api_visibility="private")
    gr.on(others, None, None, emptied, js=f"() => {EMPTY}", api_visibility="private")
    tab.clear.click(lambda: "", None, tab.problem, queue=False, **PRIVATE)
    used = [tab.prompt, tab.reference, tab.system, *tab.columns]
    tab.examples.select(_use_example, tab.shown, used, queue=False, **PRIVATE)


def choices(ids: list[str]) -> list[tuple[str, str]]:
    """Those of the runs that have an adapter, and the example, as (title, id)."""
    offered = []
    for row in actions.summaries(ids):
        if not row["problems"] and (actions.open_run(row["run"]).adapter / CONFIG).is_file():
            status = "" if row["status"] == "finished" else f", {row['status']}"
            base = f"{Path(row['model']).name}, {PRECISIONS[row['quantization']]}"
            offered.append((f"{_title(row)} on {base}{status}", row["run"]))
    return offered


def _title(row: dict) -> str:
    """A short name for a run, which fits above a column."""
    if row["status"] == "adopted":
        return row["name"]
    name, rows = row["name"] or row["method"], Path(row["data"]).stem
    which = "example" if row["run"] == actions.EXAMPLE else row["run"][:4]
    return f"{name} · {which}" if name == rows else f"{name} · {rows} {which}"


def update_runs(kept: dict | None, chosen: str | list[str] | None = None) -> dict:
    """An update of the runs' dropdown: the chosen runs that still exist, or else the first run."""
    chosen = [chosen] if isinstance(chosen, str) else chosen or []
    # A run opened by its link is not in the browser's list.
    offered = choices([*remembered(kept)["runs"], *chosen])
    ids = [id for _, id in offered]
    return gr.update(choices=offered, value=[id for id in chosen if id in ids] or ids[:1])


def choose_runs(
    tab: SimpleNamespace,
    chosen: list[str],
    shown: list[str],
    prompt: str,
    first: list[Turn] | None,
    visitor: Visitor = ANYBODY,
) -> dict:
    """Updates for another choice of runs: the columns' titles, examples, merge check and prompt.

    If the runs can't be compared, or are shown already, only the problem changes. The last prompt comes back, to be
    sent to the new choice. The columns are emptied because `shown` changes.
    """
    if chosen and chosen == shown:
        return {tab.problem: ""}
    try:
        lineup = actions.lineup(chosen, visitor) if chosen else None
        titles, rows = [*TITLES.values()], []
        if lineup:
            titles, rows = _titles(lineup), _heldout(actions.open_run(chosen[0]))
        check = _merge_check(lineup)
    except Exception as error:
        return {tab.problem: elements.problems(problems_of(error))}
    task = lineup.task if lineup else TASKS[DEFAULT_TASK]
    prompts = [turn["content"] for turn in first or [] if turn["role"] == "user"]
    last_prompt = {"value": prompts[-1]} if prompts and not (prompt or "").strip() else {}
    return {
        tab.shown: chosen,
        tab.examples: gr.update(samples=[[row["messages"][-1]["content"]] for row in rows]),
        tab.check: check,
        tab.check_fold: gr.update(visible=bool(check)),
        tab.system: gr.update(visible=task.chats),
        tab.sampling_fold: gr.update(visible=task.generates),
        tab.prompt: gr.update(placeholder=task.placeholder, lines=task.prompt_lines, **last_prompt),
        tab.reference: gr.skip() if chosen[:1] == shown[:1] else "",
        tab.problem: "" if lineup else elements.note("Choose a run. If there is none yet, train one first."),
        **{column: gr.update(label=title, visible=True) for column, title in zip(tab.columns, titles)},
        **{column: gr.update(visible=False) for column in tab.columns[len(titles) :]},
    }


def _titles(lineup: actions.Lineup) -> list[str]:
    runs = {**lineup.adapters, **lineup.merged}
    untrained = any("baseline" in run.plan for run in lineup.adapters.values())
    base = {BASE: f"{TITLES[BASE]}, head untrained"} if untrained else {}
    return [(TITLES | base).get(v) or _title(actions.summary(runs[v])) for v in lineup.variants]


def _merge_check(lineup: actions.Lineup | None) -> str:
    """The merge check as HTML, or why there is none; empty if several runs are compared."""
    if not lineup or ADAPTER not in lineup.adapters:
        return ""
    run = lineup.adapters[ADAPTER]
    if lineup.merged:
        return render.merge_check(run.read_json("merge_check.json"))
    if actions.can_merge(run) and (origin := run.plan.get("origin")):
        return elements.note(
            f"This run is not merged yet. The command `tuner merge`, or the endpoint /merge, merges it into {origin}, "
            "the 16-bit model that its base was made from."
        )
    if actions.can_merge(run):
        return elements.note("This run is not merged yet, and only its owner can merge it.")
    method = METHODS[run.recipe.method.name].title
    return elements.note(f"{method} can't be merged into this base model, so only base model and adapter answer.")


def _heldout(run: Run) -> list[dict]:
    return run.heldout(MOST_EXAMPLES) or []


def _use_example(shown: list[str], event: gr.EventData) -> list:
    """The prompt of the example that was clicked, its reference, and for each column what was said before.

    So a chat begins with what is scored. A system prompt is replaced only in runs whose rows have some.
    """
    run = actions.open_run(shown[0]) if shown else None
    rows, place = _heldout(run) if run else [], getattr(event, "index", None)
    place = place[0] if isinstance(place, list) and place else place  # in a table, its row
    if not isinstance(place, int) or not 0 <= place < len(rows):
        return [gr.skip()] * (COLUMNS + 3)
    messages, reference = rows[place]["messages"], render.reference(rows[place]["reference"])
    if not task_of(run.plan).chats:
        return [rows[place].get("text", encode.source(messages)), reference, *[gr.skip()] * (COLUMNS + 1)]
    firsts = [row["messages"][0] for row in rows]
    systems = [first["content"] if first["role"] == "system" else "" for first in firsts]
    turns = [turn for turn in messages[:-1] if turn["role"] != "system"]
    is_plain = all(turn["role"] != "tool" and "tool_calls" not in turn for turn in turns)
    before = [{"role": turn["role"], "content": turn["content"]} for turn in turns] if is_plain else []
    system = systems[place] if any(systems) else gr.skip()
    return [messages[-1]["content"], reference, system, *[before] * COLUMNS]


def _begin(prompt: str, chosen: list[str] | None, pending: str | None, sent: int) -> list:
    if refusal := _refusal(prompt or "", chosen, pending):
        return [*[gr.skip()] * 4, elements.problems([refusal]), gr.skip()]
    return ["", prompt, gr.update(visible=False), gr.update(visible=True), "", sent + 1]


def _refusal(prompt: str, chosen: list[str] | None, pending: str | None) -> str | None:
    if pending:
        return BUSY
    if not chosen:
        return "No run is chosen. Choose one, or train one first."
    if not prompt.strip():
        return "The prompt is empty. Write one first."
    return TOO_LONG if len(prompt) > MOST_CHARACTERS else None


def _end(pending: str | None, prompt: str, problem: str) -> list:
    """The buttons as before; after a problem the prompt comes back, so that nothing typed is lost."""
    restored = pending if problem and not prompt else gr.skip()
    # A note such as "Loading the models" is over; a problem stays.
    message = "" if 'class="t-note"' in (problem or "") else gr.skip()
    return [restored, "", gr.update(visible=True), gr.update(visible=False), message]


def _fail(pending: str | None, prompt: str, problem: str) -> list:
    """The same where no answer could begin: Gradio itself shows why."""
    return [prompt or pending, *_end(pending, prompt, problem)[1:]]


def _answer(
    chosen: list[str] | None,
    kept: dict | None,
    prompt: str | None,
    system: str,
    temperature: float,
    top_p: float,
    length: int,
    seed: int | None,
    *columns: list[Turn] | None,
    visitor: Visitor = ANYBODY,
) -> Iterator[list]:
    """The conversations as they grow, the problem if there is one, and the merge check."""
    if not prompt:
        yield [gr.skip()] * (COLUMNS + 2)
        return
    before = [conversation.until_answered(column) for column in columns]
    sampling = {"temperature": temperature, "top_p": top_p, "max_new_tokens": length, "seed": seed or 0}
    try:
        lineup = actions.lineup(chosen or [], with_list(visitor, kept))
        unused = [gr.skip()] * (COLUMNS - len(lineup.variants))
        questions = [[*turns, {"role": "user", "content": prompt}] for turns in before[: len(lineup.variants)]]
        yield [*questions, *unused, elements.note(_preparing(lineup)), gr.skip()]
        # Only chat models see earlier turns; other models see each text on its own.
        chats = lineup.task.chats
        start = [{"role": "system", "content": system}] if chats and system and system.strip() else []
        conversations = {v: start + turns if chats else turns[-1:] for v, turns in zip(lineup.variants, questions)}
        answers = [""] * len(questions)
        for texts in actions.chat(lineup, conversations, visitor, **sampling):
            answers = [texts[v] for v in lineup.variants]
            yield [*_answered(questions, answers), *unused, "", _merge_check(lineup)]
        if not chats:
            answers = [text or NOTHING for text in answers]
            yield [*_answered(questions, answers), *unused, "", _merge_check(lineup)]
    except Exception as error:
        yield [*before, elements.problems(problems_of(error)), gr.skip()]


def _preparing(lineup: actions.Lineup) -> str:
    unmerged = [run for run in lineup.merged.values() if not run.read_json("merge_check.json")]
    return "Merging the adapter into the 16-bit base and checking the result …" if unmerged else "Loading the models …"


def _answered(questions: list[list[Turn]], texts: list[str]) -> list[list[Turn]]:
    return [[*turns, {"role": "assistant", "content": text}] for turns, text in zip(questions, texts)]
