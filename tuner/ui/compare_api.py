"""The named endpoints of experiments, for gradio_client and other programs: start or resume one, and look at one.

job = Client(URL).submit(recipe="", methods="lora, ia3", seconds=10, api_name="/compare")
for event in job: ...    # the first one names the experiment and its secret, which all of its runs have
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial

import gradio as gr

from tuner.errors import TunerError
from tuner.experiments import ranking
from tuner.ui import api, experiments, run_queue
from tuner.ui.experiments import Choice
from tuner.ui.visitor import ANYBODY, Visitor, for_visitor, with_secret
from tuner.ui.wiring import LOOKS

_advancing = api.Threads("advance", all=40, session=2, address=6)


def build() -> None:
    """Add the endpoints to the page that is being built."""
    with gr.Row(visible=False):
        given = [gr.Textbox(label="Recipe (YAML)"), gr.File(label="File of rows"), gr.Textbox("", label="Pasted rows")]
        given += [gr.Textbox("", label="Methods"), gr.Number(0, label="Trials"), gr.Number(0, label="Seeds")]
        given += [gr.Number(experiments.SECONDS, label="Seconds")]
        given += [gr.Textbox("", label="Experiment"), gr.Textbox("", label="Secret")]
        answer = gr.JSON(label="Answer")
        gr.Button().click(for_visitor(compare), given, answer, api_name="compare", **api.FOLLOWING)
    gr.api(comparison, api_name="comparison", **LOOKS)


async def compare(
    recipe: str,
    file: str | None = None,
    rows: str = "",
    methods: str = "",
    search: float = 0,
    seeds: float = 0,
    seconds: float = experiments.SECONDS,
    experiment: str = "",
    secret: str = "",
    visitor: Visitor = ANYBODY,
) -> AsyncIterator[dict]:
    """Compare methods, search for settings, or train several seeds; or resume an experiment. Streams its events.

    Its runs are trained one after another, and each is a run as /train makes it, with the experiment's secret. The
    next one starts only while somebody listens. To stop, call /stop with the run in training.

    Args:
        recipe: What all runs share, in YAML; a setting that is left out has its default.
        file: A file of rows, instead of data.source.
        rows: Pasted rows, instead of data.source or a file.
        methods: Names with commas between, at most six.
        search: The number of trials of a search, instead of methods.
        seeds: The number of seeds, instead of methods.
        seconds: Training time for each run.
        experiment: The id of one to resume, instead of all of these.
        secret: The secret of the experiment to resume.

    Returns:
        {"event": "experiment", "experiment": id, "secret": text, "runs": how many}, then the events of each run with
        "run" and "label", and {"event": "results", ...} with the ranking when all are done.
    """
    if experiment:
        owner, told = with_secret(visitor, experiment, secret), {}
        await api.preparing.run(partial(experiments.resume, experiment, owner), owner)
    else:
        named = tuple(name for name in map(str.strip, (methods or "").split(",")) if name)
        choice = Choice(named, _whole("search", search), _whole("seeds", seeds), seconds or 0)
        start = partial(_start, choice, recipe, file, rows, visitor)
        experiment, secret = await api.preparing.run(start, visitor)
        owner, told = with_secret(visitor, experiment, secret), {"secret": secret}
    yield {"event": "experiment", "experiment": experiment, **told}
    async for event in _follow(experiment, owner):
        yield event


def _whole(name: str, given: float | None) -> int:
    """A number of runs; a program may leave it out, or send what is none."""
    if given and not float(given).is_integer():
        raise TunerError(f"{name}: {given} can't be used. Give a whole number, or 0.")
    return int(given or 0)


def _start(choice: Choice, recipe: str, file: str | None, rows: str, visitor: Visitor) -> tuple[str, str]:
    made, secret = experiments.start(choice, *api.requested(recipe, file, rows, visitor))
    return made.id, secret


async def _follow(name: str, owner: Visitor) -> AsyncIterator[dict]:
    """The events of an experiment's runs, until it is done, paused, or nobody listens."""
    is_listening = api.listener()
    told = {state.run.id for state in experiments.standing(experiments.open_experiment(name)).over}
    while is_listening():
        now = await _advancing.run(partial(experiments.advance, name, owner), owner)
        # A run may be over before anybody has looked at it.
        states = [*now.over, *([now.state] if now.phase == "running" else [])]
        for run, label in ((state.run, state.entry["label"]) for state in states):
            if run.id in told or not (run.path / "plan.json").is_file():  # never prepared, or deleted
                continue
            told.add(run.id)
            async for event in run_queue.follow(run, owner, run.reader(), is_listening):
                yield {"run": run.id, "label": label} | event
        if now.phase in ("done", "paused"):
            yield {"event": "results", **await asyncio.to_thread(comparison, name)}
            return
        await asyncio.sleep(run_queue.POLL)


def comparison(experiment: str) -> dict:
    """Show how far an experiment is, and what its finished runs show.

    Args:
        experiment: The id that /compare gave you.

    Returns:
        phase, done and size (in runs), the run in training, and as far as runs are finished: lines by rank, pairs with
        gains and intervals, rivals that need no training, and the same in sentences.
    """
    opened = experiments.open_experiment(experiment)
    now = experiments.standing(opened)
    current = now.state.run.id if now.phase == "running" else None
    facts = {"experiment": opened.id, "phase": now.phase, "done": now.done, "size": now.size, "run": current}
    with suppress(TunerError):  # damaged rows, of which /rows tells
        facts |= ranking.results(opened).as_dict()
    return facts
