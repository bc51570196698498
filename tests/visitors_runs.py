"""A visitor's runs, copied from the shipped finished one; and a GPU that only writes down what it is asked for.

page_fixtures.py has the fixtures.
"""

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace

import gradio as gr

from tuner import recipe, runs
from tuner.runs import Run
from tuner.ui import ownership
from tuner.ui.visitor import Visitor

VISITOR = "ann"  # the session of the browser
ANN = Visitor(VISITOR, account="ann")  # who owns the copied runs
CHECK = {
    "tokens": 321,
    "top1_agreement": 0.99,
    "max_logit_difference": 0.125,
    "top1_agreement_quantized": 0.875,
    "max_logit_difference_quantized": 2.5,
}


def copied(run_id: str, /, task: str | None = None, **settings) -> Run:
    """Ann's copy of the shipped finished run with other settings ("__" is the dot), and perhaps of another task."""
    run = Run(shutil.copytree(recipe.EXAMPLES / "finished", runs.RUNS / run_id))
    changes = {key.replace("__", "."): value for key, value in settings.items()}
    run.write_text("recipe.yaml", run.recipe.with_settings(changes).to_yaml())
    if task:
        run.write_json("plan.json", run.plan | {"task": task})
    ownership.claim(run, ANN)
    return run


def request_of(visitor: Visitor) -> tuple:
    """What Gradio adds to the inputs of a handler: the request, the sign-in's token, and the profile."""
    request = SimpleNamespace(session_hash=visitor.session, client=SimpleNamespace(host=visitor.address))
    profile = profile_of(visitor.account) if visitor.account else None
    return request, SimpleNamespace(token=visitor.token) if visitor.token else None, profile


def profile_of(account: str, username: str | None = None) -> gr.OAuthProfile:
    """What the Hub tells of the account of this id at a sign-in; its user name is the id where none is given."""
    told = {"sub": account, "preferred_username": username or account}
    return gr.OAuthProfile(told | dict.fromkeys(("name", "profile", "picture"), ""))


def streamed(events: AsyncIterator[dict]) -> Iterator[dict]:
    """What an endpoint streams."""
    with asyncio.Runner() as runner:
        while (event := runner.run(anext(events, None))) is not None:
            yield event


def with_events(run: Run, *events: dict) -> Run:
    """The run, which is not scored, and to which this has happened."""
    (run.path / "evaluation.json").unlink(missing_ok=True)
    run.write_text("events.jsonl", "")
    for event in events:
        run.append(event)
    return run


class Gpu:
    """Stands in for `gpu.chat` and `gpu.merge`: keeps what was asked for, and answers with `parts`, growing."""

    def __init__(self):
        self.asked: list[tuple] = []
        self.merges: list[str] = []
        self.imports = 0  # calls of `gpu.import_core`, which come before each job
        self.parts = ["Good", "Good day"]
        self.fails: Exception | None = None

    def chat(self, adapters: dict, merged: dict, conversations: dict, **sampling) -> Iterator[dict[str, str]]:
        """Answer each variant under its own name."""
        assert self.imports
        self.asked.append((adapters, merged, conversations, sampling))
        for part in self.parts:
            yield {variant: part and f"{part} from {variant}" for variant in reversed(conversations)}
        if self.fails:
            raise self.fails

    def import_core(self) -> None:
        """Count the call."""
        self.imports += 1

    def merge(self, run: Run) -> dict:
        """Write the merge check."""
        assert self.imports
        self.merges.append(run.id)
        run.write_json("merge_check.json", CHECK)
        return CHECK
