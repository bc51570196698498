"""A browser's own earlier experiments: to list them, to show one again, and to delete one."""

from contextlib import suppress
from types import SimpleNamespace

import gradio as gr

from tuner.errors import TunerError
from tuner.experiments.experiment import Experiment
from tuner.ui import elements, experiments
from tuner.ui.visitor import Visitor
from tuner.ui.wiring import remembered, with_list
from tuner.words import count

# By the kind of an experiment what it is called, on the form and in the list.
KINDS = {"methods": "Several methods", "search": "A search for settings", "seeds": "Several seeds"}
IN_PROGRESS = "This experiment is in progress. Press Stop and wait until its run has stopped, then delete it."
QUESTION = (
    "Delete this experiment for good? Its table and drawing are deleted. Its runs are kept: My runs lists them, and "
    "deletes them one by one."
)


def build() -> SimpleNamespace:
    """The list, the button that deletes the experiment shown, and its question."""
    earlier = SimpleNamespace()
    with gr.Accordion("Earlier experiments", open=False, elem_id="earlier") as earlier.fold:
        earlier.listed = gr.Dropdown(
            [],
            label="Experiments",
            info="those started in this browser, newest first; one that is in progress goes on only while it is shown",
            filterable=False,
            elem_id="earlier-experiments",
        )
        earlier.delete = gr.Button("Delete", size="md", variant="stop", visible=False, elem_id="earlier-delete")
        with gr.Column(visible=False, elem_id="earlier-asking") as earlier.asking:
            gr.HTML(elements.note(QUESTION))
            earlier.sure = gr.Button("Delete for good", size="md", variant="stop", elem_id="earlier-sure")
        earlier.problem = gr.HTML()
    # The outputs of `listing`, in its order.
    earlier.outputs = [earlier.listed, earlier.delete, earlier.asking, earlier.problem]
    return earlier


def listing(kept: dict | None, shown: str, visitor: Visitor) -> list:
    """The browser's own experiments, and whether the one that is shown is among them and so can be deleted."""
    visitor = with_list(visitor, kept)
    choices = []
    for name in remembered(kept)["runs"]:  # newest first
        with suppress(TunerError):  # a run, or a deleted experiment
            opened = experiments.open_experiment(name)
            if experiments.is_own(opened, visitor):
                choices.append((_title(opened), name))
    is_listed = any(name == shown for _, name in choices)
    hidden = gr.update(visible=False)
    return [gr.update(choices=choices, value=shown if is_listed else None), gr.update(visible=is_listed), hidden, ""]


def _title(opened: Experiment) -> str:
    """What kind it is, on what, and how far; its id tells those apart that are alike."""
    try:
        asked, recipe, now = opened.asked, opened.recipe, experiments.standing(opened)
    except TunerError:
        return f"can't be read · {opened.id[:6]}"
    done = f"{now.done} of {count(now.size, 'run')} done"
    return " · ".join((KINDS[asked["kind"]], recipe.model.name, recipe.data.title, done, opened.id[:6]))


def delete(name: str, visitor: Visitor) -> None:
    """Delete the visitor's experiment; its runs are kept. Raises TunerError, also while it is in progress."""
    opened = experiments.own_experiment(name, visitor)
    with experiments.alone(opened.path) as is_alone:
        if not is_alone or experiments.is_in_progress(name):
            raise TunerError(IN_PROGRESS)
        opened.delete()
