"""What the base model answers without tuning, kept so that the runs of an experiment ask it only once.

Each run of an experiment has untuned.json: what the base answered in the runs before it, and what it cost there. An
answer stands under a digest of all that determines it: the base's files and precision, device and libraries, how the
text is read and written, and the text itself. So a run finds an answer only if it would ask for the very same one.
"""

import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from importlib.metadata import version
from typing import TYPE_CHECKING

from tuner.errors import TunerError
from tuner.methods.registry import METHODS
from tuner.models.device import compute_dtype, device_type, gpu
from tuner.models.fetch import base_of
from tuner.models.shape import Base
from tuner.planning import few_shot
from tuner.planning.answering import answer_limit
from tuner.runs import Run

if TYPE_CHECKING:
    from datasets import Dataset

BASE = "base"
FILE = "untuned.json"
LIBRARIES = ("torch", "transformers", "peft")


class Untuned:
    """The base's answers that a run shares with others; none of a run that is in no experiment."""

    def __init__(self, run: Run, base: Base | None = None):
        self.run = run
        try:
            self.known = run.read_json(FILE)
        except TunerError:  # it saves time, and is no reason to fail
            self.known = {}
        if "baseline" in run.plan:  # an untrained head is not asked
            self.known = None
        self._base = base

    def copy_to(self, rows: list[dict], answers: dict[str, dict]) -> None:
        """Fill in what the base is known to answer to the rows, with what that cost when it was asked."""
        for i, row in enumerate(rows) if self.known else ():
            for variant, digest in self._digests(row).items():
                given = answers.get(str(i), {})
                if variant in given or digest not in self.known:
                    continue
                known = self.known[digest]
                given = given | {variant: known["text"]}
                given["costs"] = {**given.get("costs", {}), variant: known["cost"]}
                if known["cut"]:
                    given["cut"] = [*given.get("cut", ()), variant]
                answers[str(i)] = given

    def losses(self, rows: "Dataset") -> list[list] | None:
        """Nats and labels of the base on tokenized held-out rows, if they are known."""
        return self.known.get(self._digest(rows.to_dict()), {}).get("losses") if self.known else None

    def keep(self, rows: list[dict], answers: Sequence[dict], tokenized: "Dataset", losses: Sequence | None) -> None:
        """Write what the base answered to the rows for the experiment's other runs."""
        if self.known is None:
            return
        kept = {**self.known}
        for row, answer in zip(rows, answers, strict=True):
            for variant, digest in self._digests(row).items():
                if variant in answer and variant in answer.get("costs", {}):
                    entry = {"text": answer[variant], "cost": answer["costs"][variant], "run": self.run.id}
                    kept.setdefault(digest, entry | {"cut": variant in answer.get("cut", ())})
        if losses:
            kept.setdefault(self._digest(tokenized.to_dict()), {"losses": [*losses], "run": self.run.id})
        self.run.write_json(FILE, kept)

    def sources(self, rows: list[dict]) -> dict[str, str]:
        """By variant the run that answered these rows, if another one answered them all."""
        found: dict[str, set] = {}
        for row in rows if self.known else ():
            for variant, digest in self._digests(row).items():
                found.setdefault(variant, set()).add(self.known.get(digest, {}).get("run", self.run.id))
        return {variant: runs.pop() for variant, runs in found.items() if len(runs) == 1 and self.run.id not in runs}

    def shares(self, rows: list[dict]) -> dict[str, float]:
        """The shares of the base's answers to these rows, and of those with examples, that are known."""
        digests = [self._digests(row) for row in rows if self.known]
        asked = {"base": [row[BASE] for row in digests]}
        asked["examples"] = [row[v] for row in digests for v in few_shot.VARIANTS if v in row]
        return {name: sum(d in self.known for d in each) / len(each) for name, each in asked.items() if each}

    def _digests(self, row: dict) -> dict[str, str]:
        """By variant what an answer to this row stands under."""
        texts = {BASE: row.get("text", row["messages"])} | {v: row[v] for v in few_shot.VARIANTS if v in row}
        return {variant: self._digest([variant == BASE, text]) for variant, text in texts.items()}

    def _digest(self, asked: list | dict) -> str:
        return hashlib.sha256(json.dumps([self._conditions, asked]).encode()).hexdigest()

    @cached_property
    def _conditions(self) -> list:
        """All but the text that determines an answer."""
        base, plan, settings = self._base or base_of(self.run), self.run.plan, self.run.plan["settings"]
        dtype = compute_dtype(base.model)[0]
        files = [(file.name, file.stat()) for file in sorted(base.folder.iterdir()) if file.is_file()]
        # In 16 bits the base computes in another way beside an adapter, in mixed batches: see `autocast`.
        is_beside = dtype != "float32" and METHODS[self.run.recipe.method.name].answers_beside(base)
        longest = None if base.row.chats else settings.get("max_length")  # a conversation was cut to fit its context
        return [
            [(name, status.st_size, status.st_mtime_ns) for name, status in files],
            [base.task, base.labels, base.model.model_dump(mode="json"), dtype, is_beside],
            [device_type(), gpu() if device_type() == "cuda" else None, *map(version, LIBRARIES)],
            [answer_limit(self.run), plan.get("end_tokens"), plan.get("thinks"), longest],
        ]


def share(run: Run, earlier: Sequence[Run]) -> None:
    """Give a prepared run the base's answers of the `earlier` runs, the newest of which has those of all, and take
    what that saves off its estimate."""
    newest = next((one for one in reversed(earlier) if (one.path / FILE).is_file()), None)
    try:
        run.write_json(FILE, (newest and newest.read_json(FILE)) or {})
    except TunerError:
        run.write_json(FILE, {})
    forecast = run.plan.get("forecast") or {}
    if "untuned" not in forecast:
        return
    rows = (run.heldout() or [])[: run.recipe.evaluation.rows]
    shares = {}
    with suppress(TunerError):  # the base is downloaded again when the run begins
        shares = Untuned(run).shares(rows) if newest else {}
    saved = sum(seconds * shares.get(part, 0.0) for part, seconds in forecast["untuned"].items())
    left = {name: value for name, value in forecast.items() if name != "untuned"}
    run.write_json("plan.json", run.plan | {"forecast": left | {"scoring": forecast["scoring"] - saved}})
