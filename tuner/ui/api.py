"""The named endpoints: everything that the page can do, for gradio_client and other programs.

job = Client(URL).submit(recipe="budget: {steps: 40}", rows="prompt,completion\\n...", api_name="/train")
for event in job: ...    # the first one names the run and its secret
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import TypeVar

import gradio as gr
from gradio.context import LocalContext

from tuner.errors import TunerError
from tuner.events import EventReader
from tuner.hub.card_data import without_paths
from tuner.places import Asker, Places
from tuner.recipe import Recipe
from tuner.runs import Run
from tuner.ui import actions, bounds, progress, run_queue
from tuner.ui import rows as scored_rows
from tuner.ui.actions import Entered
from tuner.ui.problems import problems_of
from tuner.ui.visitor import ANYBODY, Visitor, for_visitor, with_secret
from tuner.ui.wiring import CHECKS, LOOKS, MODELS, MOST_LISTED

# Callers who follow a run, waiting or in training: as many as there may be runs, and some to be refused in a sentence.
FOLLOWING = {"concurrency_limit": bounds.MOST_RUNS + 200, "concurrency_id": "follow"}
T = TypeVar("T")


class Threads:
    """Threads that do callers' deeds, with `most` of them for one address or session; who waits for one holds none."""

    def __init__(self, name: str, **most: int):
        self._executor = ThreadPoolExecutor(most["all"], name)
        self._places = Places(most)

    async def run(self, deed: Callable[[], T], visitor: Visitor) -> T:
        """What the deed returns. Its thread knows the request that ZeroGPU charges."""
        call = partial(copy_context().run, deed)
        async with self._places.hold_async(Asker(visitor.session, visitor.address)):
            return await asyncio.get_running_loop().run_in_executor(self._executor, call)


# Those who follow hold no thread. Those whose runs are being prepared do, for as long as a process with limits takes,
# and those that join again: few of these at a time, or they would keep the page's own thread from Python's lock.
preparing = Threads("prepare", all=120, session=4, address=12)
_joining = Threads("join", all=2, session=1, address=1)


def build() -> None:
    """Add the endpoints to the page that is being built."""
    # Through components rather than gr.api, because gr.File accepts nothing but uploaded files.
    with gr.Row(visible=False):
        given = [gr.Textbox(label="Recipe (YAML)"), gr.File(label="File of rows"), gr.Textbox("", label="Pasted rows")]
        answer = gr.JSON(label="Answer")
        for function, limits in ((check, CHECKS), (preview, CHECKS), (train, FOLLOWING)):
            gr.Button().click(for_visitor(function), given, answer, api_name=function.__name__, **limits)
    gr.api(status, api_name="status", concurrency_limit=4)
    gr.api(runs, api_name="runs", concurrency_limit=4)
    gr.api(rows, api_name="rows", **LOOKS)
    for function, limits in (
        (resume, FOLLOWING),
        (stop, {}),
        (delete, {}),
        (chat, MODELS),
        (merge, MODELS),
    ):
        gr.api(for_visitor(function), api_name=function.__name__, **{"concurrency_limit": 4, **limits})


def _shown_plan(run: Run) -> dict:
    """The plan without the folder of a model on this machine."""
    return {key: value for key, value in run.plan.items() if key != "model_folder"}


def requested(recipe: str, file: str | None, rows: str, visitor: Visitor) -> tuple[Recipe, Entered | None, Visitor]:
    """What an endpoint was given, as `actions` take it. Raises TunerError with all problems."""
    return actions.read_recipe(recipe or "{}", visitor), actions.entered(file, rows), visitor


def check(recipe: str, file: str | None = None, rows: str = "", visitor: Visitor = ANYBODY) -> dict:
    """Plan a recipe, or list all of its problems; nothing is trained.

    Args:
        recipe: Settings in YAML; a setting that is left out has its default.
        file: A file of rows (CSV, TSV, JSON, JSONL, Parquet, XLSX, ODS or CoNLL), instead of data.source.
        rows: Pasted rows, instead of data.source or a file.

    Returns:
        {"plan": {...}} with steps, tokens, warnings and all chosen settings, or {"problems": [sentence, ...]}.
    """
    try:
        return {"plan": actions.check(*requested(recipe, file, rows, visitor))}
    except Exception as error:
        return {"problems": problems_of(error)}


def preview(recipe: str, file: str | None = None, rows: str = "", visitor: Visitor = ANYBODY) -> dict:
    """Show the rows as the model will see them.

    Args:
        recipe: Settings in YAML; a setting that is left out has its default.
        file: A file of rows, instead of data.source.
        rows: Pasted rows, instead of data.source or a file.

    Returns:
        {"rows": [[{"text", "trained", "special"}, ...]], "histogram": [[from, to, rows], ...], "truncated", ...},
        or {"problems": [sentence, ...]}.
    """
    try:
        return actions.preview(*requested(recipe, file, rows, visitor))
    except Exception as error:
        return {"problems": problems_of(error)}


async def train(
    recipe: str, file: str | None = None, rows: str = "", visitor: Visitor = ANYBODY
) -> AsyncIterator[dict]:
    """Train a recipe and stream its events; the first event names the run and its secret.

    Whoever has the run's id may look at it and chat with it. Keep the secret: it lets you resume, stop, delete, merge
    and push the run. A window continues even if nobody listens any more. On ZeroGPU, the next window starts only while
    somebody does.

    Args:
        recipe: Settings in YAML; a setting that is left out has its default.
        file: A file of rows, instead of data.source.
        rows: Pasted rows, instead of data.source or a file.

    Returns:
        {"event": "run", "run": id, "secret": text, "plan": {...}}, then each step with its loss, the end and the
        evaluation.
    """

    def prepare() -> tuple[Run, str]:
        return actions.prepare(*requested(recipe, file, rows, visitor))

    with run_queue.bounds.admit(visitor):
        run, secret = await preparing.run(prepare, visitor)
    yield {"event": "run", "run": run.id, "secret": secret, "plan": _shown_plan(run)}
    async for event in run_queue.follow(run, visitor, run.reader(), listener()):
        yield event


async def resume(run: str, secret: str = "", visitor: Visitor = ANYBODY) -> AsyncIterator[dict]:
    """Resume a run that was stopped or interrupted, and stream its events. One without a verdict is scored again.

    Args:
        run: The run's id.
        secret: The run's secret, which /train gave you.
    """
    owner = with_secret(visitor, run, secret)

    def begin(is_here: bool = False) -> tuple[Run, EventReader] | None:
        if not is_here and actions.needs_download(run, owner):
            return None
        reader = actions.own_run(run, owner).reader()
        reader.skip()  # what happened before
        return actions.resume(run, owner), reader

    begun = await _joining.run(begin, owner)
    if not begun:
        with run_queue.bounds.admit(owner):
            await preparing.run(partial(actions.download_base, run, owner), owner)
        begun = await _joining.run(partial(begin, is_here=True), owner)
    opened, reader = begun
    yield {"event": "run", "run": opened.id, "plan": _shown_plan(opened)}
    async for event in run_queue.follow(opened, owner, reader, listener()):
        yield event


def listener() -> Callable[[], bool]:
    """Tells whether the caller of this endpoint still listens; otherwise Gradio notices only when a value is ready."""
    page, event = LocalContext.blocks.get(None), LocalContext.event_id.get(None)
    listening = page and page._queue.event_ids_to_events.get(event)
    return lambda: not listening or listening.alive


def status(run: str) -> dict:
    """Show how far a run has come and how it ended.

    Args:
        run: The run's id.

    Returns:
        Its status and phase, step and steps, the latest events, evaluation and merge check (or null), plan and recipe.
    """
    opened = actions.open_run(run)
    now = run_queue.look(opened)
    return {
        **actions.summary(opened),
        "phase": now.phase,
        "place": run_queue.queue.place(opened.id),
        "step": now.step,
        "steps": now.steps,
        "events": list(opened.log.fold(progress.Latest).events),
        "evaluation": opened.read_json("evaluation.json"),
        "merge_check": opened.read_json("merge_check.json"),
        "plan": _shown_plan(opened),
        "recipe": without_paths(opened).to_yaml(),
    }


def rows(
    run: str, over: str = "base", outcome: str = "all", order: str = "worst", search: str = "", page: int = 1
) -> dict:
    """Show ten of a run's scored rows, with the answers and scores of all variants.

    Args:
        run: The run's id.
        over: The variant that the adapter is compared with: base, few_shot or few_shot_similar.
        outcome: "better", "worse" or "equal" shows rows where the adapter is that; "all" shows all.
        order: "worst" or "best" for the adapter first, or "scored" for the order in which they were scored.
        search: Shows rows with these words in prompt, answers or reference.
        page: Its number, from 1.

    Returns:
        {"rows": [{"row", "prompt", "reference", "base", "adapter", "gain", ...}, ...], "found", "page", "pages", ...}.
        Long texts are cut.
    """
    return dict(scored_rows.look(actions.open_run(run), over, outcome, order, search, page))


def stop(run: str, secret: str = "", visitor: Visitor = ANYBODY) -> str:
    """Stop a run after its current step; what was learned is kept, and /resume continues it.

    Args:
        run: The run's id.
        secret: The run's secret, which /train gave you.
    """
    return actions.stop(run, with_secret(visitor, run, secret))


def runs(runs: list[str]) -> list[dict]:
    """List the runs with these ids that still exist, and the shipped example. No other visitor's ids are shown.

    Args:
        runs: The ids of your runs, at most 500.
    """
    if len(runs) > MOST_LISTED:
        raise TunerError(f"{len(runs)} ids are too many. Ask for at most {MOST_LISTED} at a time.")
    return actions.summaries(runs)


def delete(run: str, secret: str = "", visitor: Visitor = ANYBODY) -> str:
    """Delete a run for good.

    Args:
        run: The run's id.
        secret: The run's secret, which /train gave you.
    """
    actions.delete(run, with_secret(visitor, run, secret))
    return "deleted"


def chat(
    run: str,
    message: str,
    history: dict[str, list[dict[str, str]]] | None = None,
    system: str = "",
    temperature: float = 0.0,
    top_p: float = 1.0,
    max_new_tokens: int = 96,
    seed: int = 0,
    secret: str = "",
    visitor: Visitor = ANYBODY,
) -> Iterator[dict]:
    """Answer a message with several models side by side, streamed as the answers grow.

    For one run these are base, adapter and merged model; for two or three runs on the same base, base and adapters.
    Models that do not write text answer in words, too: a label, a line for each entity, or a piece of the text.

    Args:
        run: The run's id, or up to three ids with commas between; "example" is the shipped run.
        message: What to answer. For question answering: the question, a line break, the text.
        history: Earlier turns by variant, {"base": [{"role", "content"}, ...], "adapter": [...], "merged": [...]}.
        system: A system prompt, for models that write text.
        temperature: 0 chooses the likeliest token each time.
        top_p: Sample only from the likeliest tokens that together have this probability.
        max_new_tokens: The longest answer, in tokens.
        seed: The same seed gives the same answers.
        secret: The run's secret, which /train gave you; with it, a run that is not merged yet is merged first.

    Returns:
        {"base": text, "adapter": text, "merged": text}, without "merged" if the run can't be merged, or is not
        merged yet and not yours; for several runs {"base": text, id: text, ...}.
    """
    start = [{"role": "system", "content": system}] if system else []
    turn = {"role": "user", "content": message}
    ids = [name for name in map(str.strip, run.split(",")) if name]
    lineup = actions.lineup(ids, with_secret(visitor, ids[0] if ids else "", secret))
    if system and not lineup.task.chats:
        raise TunerError(f"system: models for {lineup.task.title} have no system prompt. Leave it out.")
    conversations = {v: [*start, *(history or {}).get(v, []), turn] for v in lineup.variants}
    sampling = {"temperature": temperature, "top_p": top_p, "max_new_tokens": max_new_tokens, "seed": seed}
    yield from actions.chat(lineup, conversations, visitor, **sampling)


def merge(run: str, secret: str = "", visitor: Visitor = ANYBODY) -> dict:
    """Merge the adapter into the 16-bit base and compare the merged model with the adapter.

    Args:
        run: The run's id.
        secret: The run's secret, which /train gave you.

    Returns:
        top1_agreement and max_logit_difference compared with the adapter on the 16-bit base; the same names with
        _quantized compare with the adapter on the base as it was trained. merge_failed: whether merging changed the
        answers by more than rounding does (merge_error, merge_tolerance: of the logits).
    """
    return actions.merge(run, with_secret(visitor, run, secret))
