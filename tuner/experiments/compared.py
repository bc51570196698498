"""Finished runs with their scores on the rows that all of them answered.

A search has tried many settings on the same rows, and the best of many looks better than it is. So where there are
enough held-out rows, every second one chooses the winner and is never used to score it.
"""

from collections import Counter
from collections.abc import Sequence
from math import isfinite

from tuner.experiments import certainty
from tuner.experiments.answered import Common, common_rows
from tuner.experiments.certainty import Scored
from tuner.metrics import FEWEST_ROWS, Metric, metric_of
from tuner.runs import Run

UNSCORED: dict = {"base": {}, "adapter": {}, "gain": None}  # what an evaluation.json without entries says


class Compared:
    """Finished runs with their scores on the rows that all of them answered."""

    def __init__(self, kind: str, runs: Sequence[Run]):
        self.evaluations = {run.id: run.read_json("evaluation.json") or UNSCORED for run in runs}
        first = next(iter(self.evaluations.values()))
        self.metric: Metric | None = metric_of(first) if first.get("gain") else None
        has_answers = self.metric is not None and not self.metric.from_losses
        self.common = common_rows(runs) if has_answers else Common([], {}, {}, {})
        if len({base_model(run) for run in runs}) > 1:  # there would be as many rivals as bases
            self.common = self.common._replace(rivals={})
        self.rows = len(self.common.references)
        self.is_split = kind == "search" and self.rows >= 2 * FEWEST_ROWS
        self.sign = 1 if self.metric and self.metric.higher_is_better else -1
        self.scoring = slice(1, None, 2) if self.is_split else slice(None)
        self.scored = self._score(self.scoring)
        self.chosen = self._score(slice(0, None, 2)) if self.is_split else self.scored
        self.scale = certainty.scale_of(self.scored.values()) if self.scored else (0.0, 1.0)
        self.has_interval = self._has_interval()

    def choosing(self, run: str) -> float | None:
        """The score by which a search chooses: that of every second row, or of all if they are few."""
        return self.chosen[run].score if run in self.chosen else self.score(run)

    def score(self, run: str) -> float | None:
        """The run's score on the rows, or as it was scored if there are none in common; without a metric, its loss."""
        if run in self.scored:
            return self.scored[run].score
        return self.evaluations[run]["adapter"].get(self.metric.name) if self.metric else self.loss(run)

    def loss(self, run: str) -> float | None:
        """The run's loss on held-out rows; None if it was not measured, or is no finite number."""
        loss = self.evaluations[run]["adapter"].get("loss")
        return loss if loss is not None and isfinite(loss) else None

    def _score(self, part: slice) -> dict[str, Scored]:
        if not self.rows:
            return {}
        references = self.common.references[part]
        answered = self.common.answers.items()
        return {run: certainty.scored(self.metric, references, answers[part]) for run, answers in answered}

    def rivals_of(self, runs: Sequence[Run]) -> dict[str, Scored]:
        """What needs no training, scored, from the first of these runs that has it on all rows."""
        if not self.scored:
            return {}
        references, part = self.common.references[self.scoring], self.scoring
        answers = {
            variant: next((given[run.id] for run in runs if run.id in given), None)
            for variant, given in self.common.rivals.items()
        }
        return {v: certainty.scored(self.metric, references, given[part]) for v, given in answers.items() if given}

    def _has_interval(self) -> bool:
        """Whether there are enough rows for intervals; of a mean over labels, of each label."""
        rows = len(next(iter(self.scored.values())).each) if self.scored else 0
        if rows < FEWEST_ROWS or not self.metric.by_label:
            return rows >= FEWEST_ROWS
        part = self.scoring
        rows_of = Counter(reference.strip() for reference in self.common.references[part])
        given = {answer.strip() for answers in self.common.answers.values() for answer in answers[part]}
        return min(rows_of[label] for label in given | rows_of.keys()) >= FEWEST_ROWS


def base_model(run: Run) -> tuple:
    """The base model as it answers without training: its name, revision and precision."""
    model = run.recipe.model
    return model.name, model.revision, model.quantization
