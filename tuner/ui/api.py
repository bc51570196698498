"""The named endpoints: all that the page can do, for gradio_client and other programs.

job = Client(URL).submit(recipe="budget: {steps: 40}", rows="prompt,completion\\n...", api_name="/train")
for event in job: ...    # the first one names the run
"""

from collections.abc import Iterator

import gradio as gr

from tuner.errors import TunerError
from tuner.recipe import Recipe
from tuner.ui import actions, run_queue
from tuner.ui.problems import problems_of
from tuner.ui.wiring import MODELS

LAST_EVENTS = 20
FOLLOWING = {"concurrency_limit": 100}  # those who look on at their runs, waiting or in training


def build() -> None:
    """Add the endpoints to the page that is being built."""
    # Through components rather than gr.api, because gr.File takes nothing but what was uploaded.
    with gr.Row(visible=False):
        given = [gr.Textbox(label="Recipe (YAML)"), gr.File(label="File of rows"), gr.Textbox("", label="Pasted rows")]
        answer = gr.JSON(label="Answer")
        for function, limits in ((check, {}), (preview, {}), (train, FOLLOWING)):
            limits = {"concurrency_limit": 4, **limits}
            gr.Button().click(function, given, answer, api_name=function.__name__, **limits)
    for function, limits in (
        (resume, FOLLOWING),
        (status, {}),
        (stop, {}),
        (runs, {}),
        (delete, {}),
        (chat, MODELS),
        (merge, MODELS),
        (push, {}),
    ):
        gr.api(function, api_name=function.__name__, **{"concurrency_limit": 4, **limits})


def _refused(error: Exception) -> gr.Error:
    return gr.Error("\n".join(problems_of(error)), title="Tuner", print_exception=False)


def _asked(recipe: str, file: str | None, rows: str):
    asked = Recipe.from_yaml(recipe or "{}")
    return asked, actions.read_rows(file, rows, asked.data.max_rows)


def check(recipe: str, file: str | None = None, rows: str = "") -> dict:
    """Say what a recipe comes to, or all that is wrong with it; nothing is trained.

    Args:
        recipe: Settings in YAML; what is left out takes its default.
        file: A CSV, TSV, JSON, JSONL or Parquet file of rows, if data.source is not meant.
        rows: Pasted rows, if neither data.source nor a file is meant.

    Returns:
        {"plan": {...}} with steps, tokens, warnings and everything that was chosen, or {"problems": [sentence, ...]}.
    """
    try:
        return {"plan": actions.check(*_asked(recipe, file, rows)).plan}
    except Exception as error:
        return {"problems": problems_of(error)}


def preview(recipe: str, file: str | None = None, rows: str = "") -> dict:
    """Show what the model will see of the rows.

    Args:
        recipe: Settings in YAML; what is left out takes its default.
        file: A file of rows, if data.source is not meant.
        rows: Pasted rows, if neither data.source nor a file is meant.

    Returns:
        {"rows": [[{"text", "trained", "special"}, ...]], "histogram": [[from, to, rows], ...], "truncated", ...},
        or {"problems": [sentence, ...]}.
    """
    try:
        return actions.preview(*_asked(recipe, file, rows))
    except Exception as error:
        return {"problems": problems_of(error)}


def train(recipe: str, file: str | None = None, rows: str = "", request: gr.Request = None) -> Iterator[dict]:
    """Train a recipe and stream what happens; the first event names the run.

    Its window goes on when nobody listens any more; on ZeroGPU the next one begins only while somebody does.

    Args:
        recipe: Settings in YAML; what is left out takes its default.
        file: A file of rows, if data.source is not meant.
        rows: Pasted rows, if neither data.source nor a file is meant.

    Returns:
        {"event": "run", "run": id, "plan": {...}}, then steps with their loss, the end and the evaluation.
    """
    try:
        asked, table = _asked(recipe, file, rows)
        run = actions.prepare(asked, request.session_hash, table)
    except Exception as error:
        raise _refused(error) from None
    yield {"event": "run", "run": run.id, "plan": run.plan}
    yield from _events(run, request.session_hash, 0)


def resume(run: str, request: gr.Request = None) -> Iterator[dict]:
    """Go on with a run that was stopped or interrupted, and stream what happens.

    Args:
        run: The run's id.
    """
    try:
        seen = len(actions.own_run(run).events())
        opened = actions.resume(run, request.session_hash)
    except Exception as error:
        raise _refused(error) from None
    yield {"event": "run", "run": opened.id, "plan": opened.plan}
    yield from _events(opened, request.session_hash, seen)


def _events(run, visitor: str, seen: int) -> Iterator[dict]:
    for event in run_queue.follow(run, visitor, seen):
        if event["event"] != "heartbeat":
            yield event


def status(run: str) -> dict:
    """Tell how a run goes or what came of it.

    Args:
        run: The run's id.

    Returns:
        Its status and phase, step and steps, the last events, evaluation and merge check (or null), plan and recipe.
    """
    try:
        opened = actions.open_run(run)
        now = run_queue.look(opened)
        return {
            **actions.summary(opened),
            "phase": now.phase,
            "place": run_queue.queue.place(opened.id),
            "step": now.step,
            "steps": now.steps,
            "events": opened.events()[-LAST_EVENTS:],
            "evaluation": opened.read_json("evaluation.json"),
            "merge_check": opened.read_json("merge_check.json"),
            "plan": opened.plan,
            "recipe": opened.recipe.to_yaml(),
        }
    except Exception as error:
        raise _refused(error) from None


def stop(run: str) -> str:
    """Stop a run after the step at hand; what was learned is kept, and /resume goes on.

    Args:
        run: The run's id.
    """
    try:
        return actions.stop(run)
    except Exception as error:
        raise _refused(error) from None


def runs(runs: list[str]) -> list[dict]:
    """Sum up the runs with these ids that are still there, and the shipped example. Nobody is told other people's ids.

    Args:
        runs: The ids of your runs.
    """
    return actions.summaries(runs)


def delete(run: str) -> str:
    """Delete a run for good.

    Args:
        run: The run's id.
    """
    try:
        actions.delete(run)
    except Exception as error:
        raise _refused(error) from None
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
) -> Iterator[dict]:
    """Answer a message by several models side by side, streamed as the answers grow.

    Of one run those are base, adapter and merged model; of two or three on the same base, base and adapters. What is
    no text to be written is told in words: a label, a line for each entity, or a piece of the text.

    Args:
        run: The run's id, or up to three ids with commas between; "example" is the shipped run.
        message: What to answer. Where an answer is to be found in a text: the question, a line break, the text.
        history: Earlier turns by variant, {"base": [{"role", "content"}, ...], "adapter": [...], "merged": [...]}.
        system: A system prompt, for models that write text.
        temperature: 0 takes the likeliest token each time.
        top_p: Only the likeliest tokens that make up this share are drawn from.
        max_new_tokens: The longest answer in tokens.
        seed: The same seed gives the same answers.

    Returns:
        {"base": text, "adapter": text, "merged": text}, without "merged" where the method can't be merged; of several
        runs {"base": text, id: text, ...}.
    """
    start = [{"role": "system", "content": system}] if system else []
    asked = {"role": "user", "content": message}
    try:
        party = actions.party([name for name in map(str.strip, run.split(",")) if name])
        if system and not party.task.chats:
            raise TunerError(f"system: there is no place for a system prompt in {party.task.title}. Leave it out.")
        conversations = {v: [*start, *(history or {}).get(v, []), asked] for v in party.variants}
        sampling = {"temperature": temperature, "top_p": top_p}
        yield from actions.chat(party, conversations, max_new_tokens=max_new_tokens, seed=seed, **sampling)
    except Exception as error:
        raise _refused(error) from None


def merge(run: str) -> dict:
    """Merge the adapter into the 16-bit base and tell how far the merged model is from the adapter.

    Args:
        run: The run's id.

    Returns:
        top1_agreement and max_logit_difference against the adapter on the 16-bit base, and the same with _quantized
        against the adapter on the base as it was trained.
    """
    try:
        return actions.merge(run)
    except Exception as error:
        raise _refused(error) from None


def push(run: str, repository: str, token: str, private: bool = True) -> str:
    """Push the adapter with its tokenizer and card to a repository of yours; returns its address.

    Args:
        run: The run's id.
        repository: owner/name, or a name.
        token: A Hub token with write rights; it is used once and kept nowhere.
        private: Whether only you can see it.
    """
    try:
        return actions.push(run, repository, token, private)
    except Exception as error:
        raise _refused(error) from None
