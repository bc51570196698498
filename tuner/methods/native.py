"""Methods that PEFT lacks: training the base's own weights, and bottleneck adapters behind its sub-layers.

Both have the methods of PeftModel that we use: forward, generate, disable_adapter, save_pretrained. The base stays
unchanged: copies of its weights are trained in place of the originals, which return on unloading. They are saved in
PEFT's files, under the base's own names.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PretrainedConfig

from tuner.methods.files import CONFIG, WEIGHTS


@dataclass
class SelectedConfig:
    """The base's parameters to train, by name."""

    parameters: list[str]
    method: str = "selected"
    base_model_name_or_path: str | None = None


@dataclass
class BottleneckConfig:
    """A bottleneck of width `size` behind each module; `heads` are parameters of a new head, which are trained too.

    Houlsby et al. 2019 (https://arxiv.org/abs/1902.00751): behind attention and feed-forward, before the residual sum.
    """

    modules: list[str]
    size: int
    heads: list[str] = field(default_factory=list)
    method: str = "bottleneck"
    base_model_name_or_path: str | None = None


class Bottleneck(torch.nn.Module):
    """x + up(gelu(down(x))), which starts as the identity."""

    def __init__(self, width: int, size: int):
        super().__init__()
        self.down, self.up = torch.nn.Linear(width, size), torch.nn.Linear(size, width)
        torch.nn.init.zeros_(self.up.weight)
        torch.nn.init.zeros_(self.up.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Hidden states of any type, which the result keeps."""
        inner = self.down(x.to(self.down.weight.dtype))
        return x + self.up(torch.nn.functional.gelu(inner)).to(x.dtype)


class NativeModel(torch.nn.Module):
    """A base with trained copies of its weights, and bottlenecks, in place."""

    active_adapter = "default"
    is_quantized = False  # what is trained isn't; the Trainer would refuse a quantized model that is not PEFT's

    def __init__(self, base: torch.nn.Module, config: SelectedConfig | BottleneckConfig):
        super().__init__()
        self.base, self.config_ = base, config
        base.requires_grad_(False)
        names = config.parameters if isinstance(config, SelectedConfig) else config.heads
        self.originals = {name: base.get_parameter(name) for name in names}
        self.copies = {n: torch.nn.Parameter(p.detach().float().clone()) for n, p in self.originals.items()}
        named = {id(p): name for name, p in self.originals.items()}
        # Every module that uses one of them: tied weights have two places, and share one copy.
        self.places = [
            (module, leaf, named[id(p)])
            for module in base.modules()
            for leaf, p in module._parameters.items()
            if id(p) in named
        ]
        # A normalization layer needs scale and shift in one type: what is not trained there is frozen in float32.
        replaced = {(module, leaf) for module, leaf, _ in self.places}
        self.frozen = [
            (module, leaf, p, torch.nn.Parameter(p.detach().float(), requires_grad=False))
            for module in {module for module, _, _ in self.places if "norm" in type(module).__name__.lower()}
            for leaf, p in module._parameters.items()
            if p is not None and (module, leaf) not in replaced
        ]
        self.bottlenecks, self.hooks, self.enabled = torch.nn.ModuleDict(), [], True
        if isinstance(config, BottleneckConfig):
            self._add_bottlenecks(config)
        self._swap(self.copies)

    @property
    def peft_config(self) -> dict[str, SelectedConfig | BottleneckConfig]:
        """The adapter's configuration, as PeftModel gives it."""
        return {"default": self.config_}

    @property
    def config(self) -> PretrainedConfig:
        """The base's configuration."""
        return self.base.config

    def _add_bottlenecks(self, config: BottleneckConfig) -> None:
        for name in config.modules:
            module = self.base.get_submodule(name)
            width = getattr(module, "out_features", None) or module.weight.shape[1]  # Conv1D is transposed
            layer = Bottleneck(width, config.size).to(next(module.parameters()).device)
            self.bottlenecks[name.replace(".", "-")] = layer
            self.hooks.append(module.register_forward_hook(self._behind(layer)))

    def _behind(self, layer: Bottleneck) -> Callable:
        return lambda module, inputs, output: layer(output) if self.enabled else output

    def _swap(self, parameters: dict) -> None:
        for module, leaf, name in self.places:
            module._parameters[leaf] = parameters[name]
        for module, leaf, original, wide in self.frozen:
            module._parameters[leaf] = original if parameters is self.originals else wide

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The base's forward pass."""
        return self.base(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The base's generation."""
        return self.base.generate(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """Inside this context the model answers as the base."""
        self.enabled = False
        self._swap(self.originals)
        try:
            yield
        finally:
            self.enabled = True
            self._swap(self.copies)

    def unload(self) -> torch.nn.Module:
        """The base, unchanged."""
        self._swap(self.originals)
        for hook in self.hooks:
            hook.remove()
        return self.base

    def merge(self) -> None:
        """Copy what was trained into the base's own weights. Bottlenecks can't be merged."""
        for name, old in self.originals.items():
            old.data = self.copies[name].data.to(old.dtype)

    def tensors(self) -> dict[str, torch.Tensor]:
        """What was trained, by name; the base's weights by their own."""
        weights = {name: copy.data for name, copy in self.copies.items()}
        return weights | {f"bottlenecks.{name}": value for name, value in self.bottlenecks.state_dict().items()}

    def save_pretrained(self, folder: Path, **unused: Any) -> None:
        """Write configuration and weights, as PeftModel does."""
        config = {"native": type(self.config_).__name__, **asdict(self.config_)}
        (Path(folder) / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        tensors = {name: value.cpu().contiguous() for name, value in self.tensors().items()}
        save_file(tensors, Path(folder) / WEIGHTS, {"format": "pt"})

    def load_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        """Copy saved weights in, by the names of `tensors()`."""
        for name, value in self.tensors().items():
            value.copy_(tensors[name])


CONFIGS = {c.__name__: c for c in (SelectedConfig, BottleneckConfig)}


def load(base: torch.nn.Module, folder: Path) -> NativeModel:
    """The base with the weights saved in `folder` attached."""
    values = json.loads((Path(folder) / CONFIG).read_text(encoding="utf-8"))
    kind = CONFIGS[values["native"]]
    model = NativeModel(base, kind(**{f.name: values[f.name] for f in fields(kind) if f.name in values}))
    model.load_tensors(load_file(Path(folder) / WEIGHTS))
    return model
