"""Attach, load, save, detach and merge adapters: PEFT's models and ours, one or two on top of each other.

`PeftModel.from_pretrained` reads a run's adapter folder; a hybrid's second adapter is in a folder inside it.
"""

import json
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from bitsandbytes.nn import Linear4bit, Linear8bitLt
from peft import PeftModel, PeftType, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.adalora import AdaLoraLayer
from peft.tuners.boft import layer as boft
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper, load_peft_weights
from safetensors.torch import load_file

from tuner.errors import TunerError
from tuner.methods import native
from tuner.methods.files import CONFIG, SECOND, WEIGHTS, is_native
from tuner.names import shown

Adapted = PeftModel | native.NativeModel
# What these may be, so that the base's own weights stay as they are. The base is shared by all who chat.
HARMLESS = {"bias": ("none",), "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal")}

# Otherwise PEFT compiles a CUDA extension wherever there is a compiler, in the middle of a GPU window, and elsewhere
# tries to, again for each layer. With the one butterfly factor that we use, it computes the same.
boft._FBD_CUDA = False


def attach(base: torch.nn.Module, configs: list) -> Adapted:
    """The base with a method's configurations attached, ready to train: only their parameters require gradients."""
    if isinstance(configs[0], tuple(native.CONFIGS.values())):
        return native.NativeModel(base, configs[0])
    model = get_peft_model(base, configs[0])
    for config in configs[1:]:
        model = _with_head(get_peft_model(model, config, adapter_name=SECOND))
    for module in model.modules():
        # The rank that AdaLoRA started with. On a 16-bit base PEFT's cast to float32 makes it a trained parameter,
        # which is not saved.
        if isinstance(module, AdaLoraLayer):
            module.ranknum.requires_grad_(False)
    return _keep_type(model)


def _keep_type(model: PeftModel) -> PeftModel:
    """Return the results of layers on quantized weights in the type of their inputs, as the base's own layers do.

    Under autocast on a GPU, and with (IA)3 anywhere, PEFT returns float32. It would be passed on from layer to layer,
    which takes twice the memory, and a 16-bit normalization layer may refuse it.
    """
    for module in model.modules():
        if isinstance(module, BaseTunerLayer) and isinstance(module.get_base_layer(), (Linear4bit, Linear8bitLt)):
            module.register_forward_hook(lambda layer, inputs, output: output.to(inputs[0].dtype))
    return model


def _as_saved(model: PeftModel, folder: Path, name: str) -> PeftModel:
    """Load again what PEFT has rounded to the type of a 16-bit base, or has left out.

    It loads into copies of the base's own modules: a new head, normalization layers. They were trained in float32. And
    it renames what it loads as transformers renames a family's old checkpoints, though it was saved under the names of
    today: Laguna's shared experts would keep random numbers.
    """
    tensors = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    saved = load_peft_weights(str(folder), device="cpu")
    _check_names(saved, tensors)
    # Tensors without elements are all in one place: OFT's, of blocks of one.
    places = {tensor.data_ptr(): key for key, tensor in tensors.items() if key in saved and tensor.numel()}
    for p in model.parameters():
        if p.data_ptr() in places:
            p.data = saved[places[p.data_ptr()]].to(p.device)
    return model


def _check_names(saved: Collection[str], own: Collection[str]) -> None:
    """Raise TunerError if a file holds more than the adapter's `own` tensors: PEFT would put them into the base."""
    if others := sorted(set(saved) - set(own)):
        raise TunerError(
            f"The adapter can't be loaded: its file holds weights that are not the adapter's, such as "
            f"{shown(others[0])}, which would change the base model. Choose another adapter."
        )


def _check_harmless(folder: Path) -> None:
    """Raise TunerError if PEFT would change the base's own weights for the adapter in this folder."""
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    for name, harmless in HARMLESS.items():
        if (value := config.get(name, harmless[0])) not in harmless:
            raise TunerError(
                f"The adapter can't be loaded: its {CONFIG} has {name} = {shown(str(value))}, which would change the "
                "base model. Choose another adapter."
            )


def _with_head(model: PeftModel) -> PeftModel:
    """Switch the first adapter's head on again, which attaching a second adapter switches off."""
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            module.set_adapter("default")
    return model


def load(base: torch.nn.Module, folders: dict[str, Path]) -> Adapted:
    """The base with saved adapters attached, in evaluation mode.

    `folders` is by adapter name, and holds several only if PEFT can attach them side by side.
    """
    (name, folder), *others = folders.items()
    for path in folders.values():
        _check_harmless(path)
    if is_native(folder):
        return native.load(base, folder).eval()
    model = _as_saved(PeftModel.from_pretrained(base, folder, adapter_name=name), folder, name)
    if (folder / SECOND).is_dir():
        _check_harmless(folder / SECOND)
        model = _with_head(PeftModel.from_pretrained(model, folder / SECOND, adapter_name=SECOND))
    for name, folder in others:
        model.load_adapter(folder, name)
        _as_saved(model, folder, name)
    return _keep_type(model).eval()


def begin_with(model: Adapted, folder: Path) -> None:
    """Put the weights that `save` wrote into a model with the same methods attached, to train on from them."""
    for level, place in zip(_levels(model), _places(model)):
        if isinstance(level, native.NativeModel):
            level.load_tensors(load_file(folder / WEIGHTS))
            continue
        name, saved = level.active_adapter, load_peft_weights(str(folder / place), device="cpu")
        _check_names(saved, _stored_shapes(level))
        set_peft_model_state_dict(level, saved, adapter_name=name)
        _as_saved(level, folder / place, name)


def _places(model: Adapted) -> list[str]:
    """The subfolder of each level's adapter: a hybrid's outer one is its second."""
    return [SECOND if level.active_adapter == SECOND else "" for level in _levels(model)]


def stored_shapes(model: Adapted) -> dict[str, dict[str, tuple[int, ...]]]:
    """The names and shapes of the tensors that `save` would write, by subfolder; the model may be without storage."""
    return {place: _stored_shapes(level) for level, place in zip(_levels(model), _places(model))}


def _stored_shapes(level: Adapted) -> dict[str, tuple[int, ...]]:
    if isinstance(level, native.NativeModel):
        tensors = level.tensors()
    elif level.active_peft_config.is_prompt_learning:
        tensors = {"prompt_embeddings": level.prompt_encoder[level.active_adapter].embedding.weight}
    else:
        tensors = get_peft_model_state_dict(level, adapter_name=level.active_adapter, save_embedding_layers=False)
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def save(model: Adapted, folder: Path, base_name: str) -> None:
    """Save what was trained, in safetensors; `base_name` replaces a path that means nothing elsewhere."""
    for level in _levels(model):
        for config in level.peft_config.values():
            config.base_model_name_or_path = base_name
        # Otherwise PEFT asks the Hub whether the base's vocabulary grew; ours never does.
        level.save_pretrained(folder, save_embedding_layers=False, selected_adapters=[level.active_adapter])
    for card in folder.rglob("README.md"):
        card.unlink()  # PEFT's empty one; ours is written before a push


def configs(model: Adapted) -> list:
    """The configurations that are attached, in the order of attaching, with all that PEFT filled in."""
    return [level.peft_config[level.active_adapter] for level in reversed(_levels(model))]


def _levels(model: torch.nn.Module) -> list[Adapted]:
    """The adapted models, from the outside in."""
    levels = []
    while isinstance(model, (PeftModel, native.NativeModel)):
        levels.append(model)
        model = _inside(model)
    return levels


def _inside(model: Adapted) -> torch.nn.Module:
    if isinstance(model, native.NativeModel):
        return model.base
    return model.base_model if model.active_peft_config.is_prompt_learning else model.base_model.model


@contextmanager
def disabled(model: Adapted) -> Iterator[None]:
    """Inside this context the model answers as the base."""
    with ExitStack() as stack:
        for level in _levels(model):
            stack.enter_context(level.disable_adapter())
        yield


def detach(model: Adapted) -> torch.nn.Module:
    """The base, unchanged."""
    return _without_layers(model, lambda head: head.original_module)


def merge(model: Adapted) -> torch.nn.Module:
    """The base with what was learned merged into its weights, which changes it for good."""
    for level in _levels(model):
        if isinstance(level, native.NativeModel):
            level.merge()
        else:
            level.merge_adapter()
    return _without_layers(model, lambda head: next(iter(head.modules_to_save.values())))


def merged_parameters(model: Adapted) -> Iterator[torch.nn.Parameter]:
    """The base's own parameters that `merge` changes; a trained head is not one: it takes the place of the base's."""
    for level in _levels(model):
        if isinstance(level, native.NativeModel):
            yield from level.originals.values()
        else:
            layers = (module for module in level.modules() if isinstance(module, BaseTunerLayer))
            yield from {id(p): p for layer in layers for p in layer.get_base_layer().parameters()}.values()


def _without_layers(model: Adapted, head_of: Callable[[ModulesToSaveWrapper], torch.nn.Module]) -> torch.nn.Module:
    """The base without a method's layers. PEFT's own `unload` leaves a trained head in, and refuses (IA)3 in 4-bit."""
    levels = _levels(model)
    for level in levels:
        if isinstance(level, native.NativeModel):
            level.unload()
        elif hasattr(level.base_model, "_parents"):  # LLaMA-Adapter's layers are not tuner layers
            level.base_model.disable_adapter_layers()
    base, replaced = _inside(levels[-1]), []
    for name, module in list(base.named_modules()):
        if isinstance(module, (ModulesToSaveWrapper, BaseTunerLayer)) and not name.startswith(tuple(replaced)):
            is_head = isinstance(module, ModulesToSaveWrapper)
            parent, _, leaf = name.rpartition(".")
            setattr(base.get_submodule(parent), leaf, head_of(module) if is_head else module.get_base_layer())
            replaced.append(name + ".")
    # PEFT leaves it behind, and transformers takes it for an adapter of its own.
    vars(base).pop("peft_config", None)
    return base


def stored_bytes(model: Adapted) -> int:
    """Bytes that `save` would write; the model may be without storage."""
    return sum(_stored_bytes(level) for level in _levels(model))


def _stored_bytes(level: Adapted) -> int:
    if isinstance(level, native.NativeModel):
        tensors = level.tensors()
    elif level.active_peft_config.peft_type in (PeftType.PROMPT_TUNING, PeftType.P_TUNING):
        # Only the vectors are saved, and they would have to be computed.
        config = level.active_peft_config
        return config.num_virtual_tokens * config.num_transformer_submodules * config.token_dim * 4
    elif level.active_peft_config.is_prompt_learning:
        tensors = start_values(level)
    else:
        tensors = get_peft_model_state_dict(level, adapter_name=level.active_adapter)
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def start_values(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The trained parameters in float32, by name."""
    return {name: p.detach().float() for name, p in model.named_parameters() if p.requires_grad}
