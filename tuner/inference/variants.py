"""The variants of a model that answer side by side: the base, adapters on it, and merged models.

All adapters share the base's weights. Those that PEFT can select row by row answer in one batch with the base (mixed
adapter batches); the others are attached in turn. Merged models have weights of their own.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import nn
from transformers import PreTrainedTokenizerBase

from tuner.errors import TunerError
from tuner.methods import attach
from tuner.methods.files import CONFIG
from tuner.methods.registry import METHODS
from tuner.models.device import autocast
from tuner.models.fetch import base_of
from tuner.models.load import choose_threads, forget_bases, shared_base
from tuner.models.shape import Base, load_tokenizer
from tuner.planning.adopt import tokenizer_for
from tuner.runs import Run

BASE = "base"
NO_ADAPTER = "__base__"  # PEFT's name for the rows of a batch that no adapter changes


@dataclass(frozen=True)
class ActiveModel:
    """A model with certain adapters attached, which answers for one variant or, in one batch, for several."""

    variants: tuple[str, ...]
    activate: Callable[[], AbstractContextManager[nn.Module]]  # attaches the adapters, and detaches them at the end
    adapter_names: dict[str, str] | None = None  # by variant, if one batch holds several

    @contextmanager
    def model_for(self, variant: str) -> Iterator[nn.Module]:
        """The model as it answers for this variant alone."""
        with self.activate() as model:
            if not self.adapter_names:
                yield model
            elif self.adapter_names[variant] == NO_ADAPTER:
                with attach.disabled(model):
                    yield model
            else:
                model.set_adapter(self.adapter_names[variant])
                yield model


@dataclass(frozen=True)
class LoadedVariants:
    """All variants that can answer, on the device."""

    base: Base
    tokenizer: PreTrainedTokenizerBase
    sharing_base: list[ActiveModel]  # use one set of weights, so one at a time can be active
    merged: list[ActiveModel] = field(default_factory=list)
    # Whether answers begin with a thought, by adapter; None for runs of earlier versions.
    thinks: dict[str, bool | None] = field(default_factory=dict)
    # By variant, of those that came with a chat template of their own.
    tokenizers: dict[str, PreTrainedTokenizerBase] = field(default_factory=dict)

    @property
    def variants(self) -> list[str]:
        """The variants' names."""
        return [variant for active in [*self.sharing_base, *self.merged] for variant in active.variants]

    def prompted_to_think(self, variant: str) -> bool | None:
        """Whether a variant is asked for a thought: base and merged models as the first adapter, for comparison."""
        return self.thinks.get(variant, next(iter(self.thinks.values()), False))

    def tokenizer_for(self, variant: str) -> PreTrainedTokenizerBase:
        """The tokenizer that renders this variant's conversations."""
        return self.tokenizers.get(variant, self.tokenizer)

    def model_for(self, variant: str) -> AbstractContextManager[nn.Module]:
        """The model as it answers for this variant."""
        return next(a for a in [*self.sharing_base, *self.merged] if variant in a.variants).model_for(variant)


def trained_variants(run: Run, base: Base, tokenizer: PreTrainedTokenizerBase, model: nn.Module) -> LoadedVariants:
    """Base and adapter of a model that has just been trained, with its adapter still attached."""

    @contextmanager
    def with_adapter() -> Iterator[nn.Module]:
        with autocast(base.model):
            yield model

    @contextmanager
    def without_adapter() -> Iterator[nn.Module]:
        with attach.disabled(model):
            yield model

    thinks = {"adapter": run.plan.get("thinks")}
    if METHODS[run.recipe.method.name].answers_beside(base):
        names = {BASE: NO_ADAPTER, "adapter": "default"}
        return LoadedVariants(base, tokenizer, [ActiveModel(tuple(names), with_adapter, names)], thinks=thinks)
    actives = [ActiveModel((BASE,), without_adapter), ActiveModel(("adapter",), with_adapter)]
    return LoadedVariants(base, tokenizer, actives, thinks=thinks)


def load_variants(runs: dict[str, Run], merged: dict[str, Path] | None = None) -> LoadedVariants:
    """The adapters of runs on the base that they share, by variant; and merged models, as folders by variant.

    Raises TunerError if a run has no adapter yet, or if the runs' bases differ.
    """
    base = common_base(list(runs.values()))
    # All loading is done here, one model after the other: in two threads at once, transformers leaves a model without
    # weights.
    plain = shared_base(base)
    choose_threads(base)
    models = {v: shared_base(_merged_base(base, folder), quantization="none") for v, folder in (merged or {}).items()}
    mixing = {v: r for v, r in runs.items() if METHODS[r.recipe.method.name].answers_beside(base)}
    names = {BASE: NO_ADAPTER, **{v: f"run_{i}" for i, v in enumerate(mixing)}}
    folders = {names[v]: run.adapter for v, run in mixing.items()}
    mixed = ActiveModel(tuple(names), lambda: _attached(base, plain, folders), names)
    alone = [
        ActiveModel((v,), lambda run=run: _attached(base, plain, {"default": run.adapter}))
        for v, run in runs.items()
        if v not in mixing
    ]
    tokenizer = load_tokenizer(base.folder)
    return LoadedVariants(
        base,
        tokenizer,
        [mixed if mixing else ActiveModel((BASE,), lambda: nullcontext(plain)), *alone],
        [ActiveModel((v,), lambda model=model: nullcontext(model)) for v, model in models.items()],
        {variant: run.plan.get("thinks") for variant, run in runs.items()},
        {variant: tokenizer_for(run, tokenizer) for variant, run in runs.items()},
    )


def _merged_base(base: Base, folder: Path) -> Base:
    """The merged model in a run's folder, in float32 if the run's merge check found that 16 bits are too few."""
    check = Run(folder.parent).read_json("merge_check.json") or {}
    model = base.model.model_copy(update={"dtype": check["merge_dtype"]}) if "merge_dtype" in check else base.model
    return replace(base, folder=folder, model=model)


def no_adapter(run: Run) -> TunerError:
    """Why there is no adapter in the run's folder, and what to do."""
    if run.is_trained:
        return TunerError(f"The adapter of run {run.id} is gone from its folder. Train its recipe again in a new run.")
    return TunerError(f"Run {run.id} has no adapter yet. Train it first, or wait until it has finished.")


def common_base(runs: list[Run]) -> Base:
    """The base of all these runs. Raises TunerError if one has no adapter, or another base."""
    for run in runs:
        if run.read_json(f"adapter/{CONFIG}") is None:
            raise no_adapter(run)
    bases = [base_of(run) for run in runs]
    for run, base in zip(runs, bases):
        if base != bases[0]:
            version = base.model == bases[0].model and base.folder != bases[0].folder
            described = [_described(each, version) for each in (bases[0], base)]
            raise TunerError(
                f"Runs {runs[0].id} and {run.id} have different bases ({'; '.join(described)}), so they can't be "
                "loaded side by side. Choose runs with the same base model, precision and task."
            )
    return bases[0]


def _described(base: Base, version: bool) -> str:
    """The base in a sentence, with its `version` if that makes the difference."""
    named = f"{base.model.name} at {base.folder.name[:12]}" if version else base.model.name
    return f"{named}, {base.model.quantization}, {base.row.title}"


@contextmanager
def _attached(base: Base, plain: nn.Module, folders: dict[str, Path]) -> Iterator[nn.Module]:
    """The base with adapters attached; at the end they are detached again."""
    try:
        model = attach.load(plain, folders)
    except Exception:
        forget_bases()  # the base may be left half changed
        raise
    try:
        with autocast(base.model):
            yield model
    finally:
        attach.detach(model)
