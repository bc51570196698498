"""Train an experiment's runs one after another in this process."""

import contextlib
from collections.abc import Iterator

from tuner.errors import TunerError
from tuner.experiments.experiment import Experiment
from tuner.models.fetch import base_of
from tuner.models.load import is_loaded, shared_base
from tuner.runs import Run


def train_all(experiment: Experiment) -> Iterator[dict]:
    """Train and score what is missing; yields the runs' events with the run's "label" and "run".

    Further events: "loading" (the base), "failed" (a run that is gone on without) and "finished".
    Closing the generator stops the run in training after its current step; the next call resumes there.
    What takes seconds only once, importing and loading the base, is done before a run begins and charged to none.
    Raises TunerError if another process trains the experiment, if it can't be read, or if the base model is gone.
    """
    import trl.trainer.sft_trainer  # noqa: F401

    from tuner.training.window import train

    with experiment.driving():
        while run := experiment.next_run():
            about = {"run": run.id, "label": next(s.entry["label"] for s in experiment.states() if s.run.id == run.id)}
            base = base_of(run)
            if not is_loaded(base):
                yield about | {"event": "loading"}
                shared_base(base)
            try:
                with contextlib.closing(train(run)) as events:
                    for event in events:
                        yield about | event
            except TunerError as error:
                if run.is_training:  # by another process
                    raise
                experiment.set_aside(run, error.problems)
                yield about | {"event": "failed", "problems": list(error.problems)}
            else:
                if Run(run.path).ending != "finished":
                    return  # it was asked to stop
                yield about | {"event": "finished"}
