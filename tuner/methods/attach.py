"""A method put on a base and taken off again: PEFT's models and ours, one or two on top of each other, by one set of
calls.

A run's adapter folder is what `PeftModel.from_pretrained` reads; a hybrid's second part lies in a folder within.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from peft import PeftModel, PeftType, get_peft_model, get_peft_model_state_dict
from peft.tuners.ia3 import IA3Layer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper

from tuner.methods import native
from tuner.methods.files import SECOND, is_native


def attach(base, parts: list):
    """The base with a method's parts on it, ready to train: only their parameters have gradients."""
    if isinstance(parts[0], tuple(native.CONFIGS.values())):
        return native.NativeModel(base, parts[0])
    model = get_peft_model(base, parts[0])
    below = [p for p in model.parameters() if p.requires_grad]
    for part in parts[1:]:
        model = _with_head(get_peft_model(model, part, adapter_name=SECOND))
        for parameter in below:
            parameter.requires_grad_(True)
    return _in_type(model)


def _in_type(model):
    """PEFT's (IA)3 answers in float32 on a base in 4 bits, which a 16-bit normalisation behind it may not take."""
    for module in model.modules():
        if isinstance(module, IA3Layer):
            module.register_forward_hook(lambda layer, inputs, output: output.to(inputs[0].dtype))
    return model


def _with_head(model):
    """A second part switches the first part's head off."""
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            module.set_adapter("default")
    return model


def load(base, folders: dict[str, Path]):
    """The base with saved adapters on it, in evaluation mode; several, by the names they get, where PEFT can hold
    them side by side."""
    (name, folder), *others = folders.items()
    if is_native(folder):
        return native.load(base, folder).eval()
    model = PeftModel.from_pretrained(base, folder, adapter_name=name)
    if (folder / SECOND).is_dir():
        model = _with_head(PeftModel.from_pretrained(model, folder / SECOND, adapter_name=SECOND))
    for name, folder in others:
        model.load_adapter(folder, name)
    return _in_type(model).eval()


def save(model, folder: Path, base_name: str) -> None:
    """Save what was trained, in safetensors; `base_name` because a path of this machine means nothing elsewhere."""
    for level in _levels(model):
        for config in level.peft_config.values():
            config.base_model_name_or_path = base_name
        # PEFT would ask the Hub whether the base's vocabulary grew; ours never does.
        level.save_pretrained(folder, save_embedding_layers=False, selected_adapters=[level.active_adapter])
    for card in folder.rglob("README.md"):
        card.unlink()  # PEFT's empty one; ours is written for the push


def _levels(model) -> list:
    """The adapted models, from the outermost in."""
    found = []
    while isinstance(model, (PeftModel, native.NativeModel)):
        found.append(model)
        model = _below(model)
    return found


def _below(model):
    if isinstance(model, native.NativeModel):
        return model.base
    return model.base_model if model.active_peft_config.is_prompt_learning else model.base_model.model


@contextmanager
def disabled(model) -> Iterator[None]:
    """The base's own answers, for a while."""
    with ExitStack() as stack:
        for level in _levels(model):
            stack.enter_context(level.disable_adapter())
        yield


def detach(model):
    """The base, as it was found."""
    return _without_layers(model, lambda head: head.original_module)


def merge(model):
    """A plain model with what was learned in its weights. The base is changed for good."""
    for level in _levels(model):
        if isinstance(level, native.NativeModel):
            level.merge()
        else:
            level.merge_adapter()
    return _without_layers(model, lambda head: next(iter(head.modules_to_save.values())))


def _without_layers(model, head_of: Callable):
    """The base without a method's layers. PEFT's own unloading leaves a trained head in it, and refuses (IA)3 on 4
    bits."""
    levels = _levels(model)
    for level in levels:
        if isinstance(level, native.NativeModel):
            level.unload()
        elif hasattr(level.base_model, "_parents"):  # LLaMA-Adapter's layers are no tuner layers
            level.base_model.disable_adapter_layers()
    base, replaced = _below(levels[-1]), []
    for name, module in list(base.named_modules()):
        if isinstance(module, (ModulesToSaveWrapper, BaseTunerLayer)) and not name.startswith(tuple(replaced)):
            is_head = isinstance(module, ModulesToSaveWrapper)
            parent, _, leaf = name.rpartition(".")
            setattr(base.get_submodule(parent), leaf, head_of(module) if is_head else module.get_base_layer())
            replaced.append(name + ".")
    # PEFT leaves these where transformers looks for adapters of its own.
    for left in ("peft_config", "_hf_peft_config_loaded"):
        vars(base).pop(left, None)
    return base


def stored_bytes(model) -> int:
    """Bytes that `save` would write, without a tensor's storage being there."""
    return sum(_stored_bytes(level) for level in _levels(model))


def _stored_bytes(level) -> int:
    if isinstance(level, native.NativeModel):
        found = level.tensors()
    elif level.active_peft_config.peft_type in (PeftType.PROMPT_TUNING, PeftType.P_TUNING):
        # What is kept are the vectors alone, which would have to be computed.
        config = level.active_peft_config
        return config.num_virtual_tokens * config.num_transformer_submodules * config.token_dim * 4
    elif level.active_peft_config.is_prompt_learning:
        found = start_values(level)
    else:
        found = get_peft_model_state_dict(level, adapter_name=level.active_adapter)
    return sum(tensor.numel() * tensor.element_size() for tensor in found.values())


def start_values(model) -> dict[str, torch.Tensor]:
    """The trained parameters in float32, by name."""
    return {name: p.detach().float() for name, p in model.named_parameters() if p.requires_grad}
