"""Methods that PEFT has none for: weights of the base trained in place, and bottlenecks put behind its sub-layers.

Both answer to the calls of a PeftModel that the house makes: forward, generate, disable_adapter, save_pretrained. The
base is left as it was found: what is trained are copies, put in the originals' place and taken out again. Saved are
`adapter_model.safetensors`, under the base's own names, and `adapter_config.json`.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tuner.methods.files import CONFIG, WEIGHTS


@dataclass
class SelectedConfig:
    """Which parameters of the base are trained, by name."""

    parameters: list[str]
    method: str = "selected"
    base_model_name_or_path: str | None = None


@dataclass
class BottleneckConfig:
    """A layer of `size` behind each module named; `heads` are parameters of a new head, trained besides.

    Houlsby et al. 2019 (https://arxiv.org/abs/1902.00751): behind attention and feed-forward, before the residual sum.
    """

    modules: list[str]
    size: int
    heads: list[str] = field(default_factory=list)
    method: str = "bottleneck"
    base_model_name_or_path: str | None = None


class Bottleneck(torch.nn.Module):
    """x + up(gelu(down(x))), which is x itself at the start."""

    def __init__(self, width: int, size: int):
        super().__init__()
        self.down, self.up = torch.nn.Linear(width, size), torch.nn.Linear(size, width)
        torch.nn.init.zeros_(self.up.weight)
        torch.nn.init.zeros_(self.up.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.down(x.to(self.down.weight.dtype))
        return x + self.up(torch.nn.functional.gelu(inner)).to(x.dtype)


class NativeModel(torch.nn.Module):
    """A base with its copies and its bottlenecks in place."""

    def __init__(self, base, config: SelectedConfig | BottleneckConfig):
        super().__init__()
        self.base, self.config_ = base, config
        base.requires_grad_(False)
        names = config.parameters if isinstance(config, SelectedConfig) else config.heads
        self.originals = {name: base.get_parameter(name) for name in names}
        self.copies = {n: torch.nn.Parameter(p.detach().float().clone()) for n, p in self.originals.items()}
        named = {id(p): name for name, p in self.originals.items()}
        # Every place that holds one of them: tied weights have two, and share one copy.
        self.places = [
            (module, leaf, named[id(p)])
            for module in base.modules()
            for leaf, p in module._parameters.items()
            if id(p) in named
        ]
        # A normalisation layer takes its scale and its shift in one type only.
        chosen = {(module, leaf) for module, leaf, _ in self.places}
        self.beside = [
            (module, leaf, p, torch.nn.Parameter(p.detach().float(), requires_grad=False))
            for module in {module for module, _, _ in self.places if "norm" in type(module).__name__.lower()}
            for leaf, p in module._parameters.items()
            if p is not None and (module, leaf) not in chosen
        ]
        self.bottlenecks, self.hooks, self.enabled = torch.nn.ModuleDict(), [], True
        if isinstance(config, BottleneckConfig):
            self._put_bottlenecks_in(config)
        self._swap(self.copies)

    @property
    def peft_config(self) -> dict:
        return {"default": self.config_}

    active_adapter = "default"
    is_quantized = False  # what is trained is not; the Trainer refuses a model that says otherwise and is not PEFT's

    @property
    def config(self):
        return self.base.config

    def _put_bottlenecks_in(self, config: BottleneckConfig) -> None:
        for name in config.modules:
            module = self.base.get_submodule(name)
            width = getattr(module, "out_features", None) or module.weight.shape[1]  # Conv1D is transposed
            layer = Bottleneck(width, config.size).to(next(module.parameters()).device)
            self.bottlenecks[name.replace(".", "-")] = layer
            self.hooks.append(module.register_forward_hook(self._behind(layer)))

    def _behind(self, layer: Bottleneck):
        return lambda module, inputs, output: layer(output) if self.enabled else output

    def _swap(self, parameters: dict) -> None:
        for module, leaf, name in self.places:
            module._parameters[leaf] = parameters[name]
        for module, leaf, original, wide in self.beside:
            module._parameters[leaf] = original if parameters is self.originals else wide

    def forward(self, *args, **kwargs):
        return self.base(*args, **kwargs)

    def generate(self, *args, **kwargs):
        return self.base.generate(*args, **kwargs)

    def __getattr__(self, name: str):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base"), name)

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """The base as it was found, for a while."""
        self.enabled = False
        self._swap(self.originals)
        try:
            yield
        finally:
            self.enabled = True
            self._swap(self.copies)

    def unload(self):
        """The base, as it was found."""
        self._swap(self.originals)
        for hook in self.hooks:
            hook.remove()
        return self.base

    def merge(self) -> None:
        """Put what was trained into the base's own weights; bottlenecks can't be."""
        for name, old in self.originals.items():
            old.data = self.copies[name].data.to(old.dtype)

    def tensors(self) -> dict[str, torch.Tensor]:
        """What was trained, by name: the base's own for its weights."""
        chosen = {name: copy.data for name, copy in self.copies.items()}
        return chosen | {f"bottlenecks.{name}": value for name, value in self.bottlenecks.state_dict().items()}

    def save_pretrained(self, folder: Path, **unused) -> None:
        told = {"native": type(self.config_).__name__, **asdict(self.config_)}
        (Path(folder) / CONFIG).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
        tensors = {name: value.cpu().contiguous() for name, value in self.tensors().items()}
        save_file(tensors, Path(folder) / WEIGHTS, {"format": "pt"})

    def put_in(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take over what was saved."""
        with torch.no_grad():
            for name, value in self.tensors().items():
                value.copy_(tensors[name])


CONFIGS = {c.__name__: c for c in (SelectedConfig, BottleneckConfig)}


def load(base, folder: Path) -> NativeModel:
    """The saved weights on their base."""
    told = json.loads((Path(folder) / CONFIG).read_text(encoding="utf-8"))
    kind = CONFIGS[told["native"]]
    model = NativeModel(base, kind(**{f.name: told[f.name] for f in fields(kind) if f.name in told}))
    model.put_in(load_file(Path(folder) / WEIGHTS))
    return model
