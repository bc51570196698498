"""Device memory that a run will need, part by part, and the method on a model without storage. No GPU, no weights.

The model is built without storage and run forward once. The tensors that autograd would keep are added up, and the
operations that the host would launch are counted.
"""

import weakref
from collections.abc import Callable
from contextlib import ExitStack
from functools import lru_cache
from typing import Any, NamedTuple

from tuner.methods.registry import METHODS, resolve
from tuner.models.device import device_type, gpu_memory
from tuner.models.load import BYTES, weight_bytes
from tuner.models.shape import Base, on_meta, shape_of
from tuner.recipe import Recipe

CUDA_CONTEXT = 600 * 2**20  # bytes for kernels and cuBLAS's workspace; varies with driver and GPU
FLOAT = BYTES["float32"]
# Operations of a backward pass for each of the forward pass: counted in real ones, from 1.0 for prefix tuning to 1.8
# for AdaLoRA.
BACKWARD_OPERATIONS = 1.4
# To get one 4-bit layer's weights, bitsandbytes 0.50 launches three operations more than a plain layer: it dequantizes
# the scales, adds their offset and dequantizes the weights (MatMul4Bit, functional.dequantize_4bit).
QUANTIZED_OPERATIONS = 3


class Trace(NamedTuple):
    """What a forward pass leaves behind."""

    saved: int  # bytes kept for the backward pass
    operations: int  # launched by the host, without those that only look at a tensor in another way


def estimate_memory(base: Base, recipe: Recipe, settings: dict, length: int, columns: int) -> dict:
    """Bytes on the device at the peak of a training step: weights, adapter, activations, logits, their total, and on
    CUDA its context.

    `settings` are the plan's (batch_size, dtype); rows are padded to `length` tokens, of which `columns` have a label.
    """
    shape, batch = shape_of(base), settings["batch_size"]
    choices = shape.vocabulary if base.row.generates else max(2, len(base.labels))
    # Float32 weights, their gradient and AdamW's two moments; AdaLoRA keeps the importance of each weight, its mean
    # and its uncertainty.
    per_weight = 4 + 3 * (METHODS[recipe.method.name].schedule is not None)
    parts = {
        "weights": weight_bytes(shape, base.model.quantization, settings["dtype"]),
        "adapter": count_trainable(base, method_key(recipe)) * per_weight * FLOAT,
        "activations": _trace_step(base, recipe, settings, length, columns).saved,
        # The peak is in the backward pass of the loss, always in float32: the log-softmax kept, the gradient that
        # arrives at it, and the gradient of the logits. The logits themselves are gone by then.
        "logits": batch * columns * choices * 3 * FLOAT,
    }
    if device_type() == "cuda":
        parts["context"] = CUDA_CONTEXT
    return parts | {"total": sum(parts.values())}


def method_key(recipe: Recipe) -> str:
    """The part of a recipe that decides which parameters of a base are trained, as a key for caches."""
    return recipe.model_dump_json(include={"method": True}, exclude={"method": {"start_from"}})


@lru_cache(maxsize=256)
def count_trainable(base: Base, method: str) -> int:
    """Parameters that the method trains, by its closed formula; `method` is a `method_key`."""
    recipe, shape = Recipe.model_validate_json(method), shape_of(base)
    return METHODS[recipe.method.name].count(resolve(recipe, shape, base.row)) + shape.head_parameters


@lru_cache(maxsize=256)
def adapter_bytes(base: Base, method: str) -> int:
    """Bytes of the adapter's file; `method` is a `method_key`."""
    from tuner.methods import attach

    row = METHODS[Recipe.model_validate_json(method).method.name]
    if row.needs_storage:
        heads = shape_of(base).head_parameters
        return (row.stored * (count_trainable(base, method) - heads) + heads) * FLOAT
    return attach.stored_bytes(attach_on_meta(base, method))


def attach_on_meta(base: Base, method: str, dtype: Any = None, prepare: Callable = lambda model: None) -> Any:
    """The base without storage, with the method of a `method_key` attached; `prepare` sees the base before that.

    Raises what PEFT raises if it refuses the configuration or the model.
    """
    import torch

    from tuner.methods import attach

    recipe = Recipe.model_validate_json(method)
    target = resolve(recipe, shape_of(base), base.row)
    # Without `devices`, torch would query CUDA's state, and on ZeroGPU the main process must not touch CUDA.
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        model = on_meta(base, dtype=dtype)
        prepare(model)
        return attach.attach(model, METHODS[recipe.method.name].configs(target)).train()


def step_operations(base: Base, recipe: Recipe, settings: dict, length: int, columns: int) -> int:
    """Operations that the host launches for a training step: counted forward, estimated backward."""
    forward = _trace_step(base, recipe, settings, length, columns).operations
    return round(forward * (1 + BACKWARD_OPERATIONS))


def _trace_step(base: Base, recipe: Recipe, settings: dict, length: int, columns: int) -> Trace:
    written = 1 if base.row.objective == "next_token" else columns
    batch, on_cuda = settings["batch_size"], device_type() == "cuda"
    return _trace(base, method_key(recipe), settings["dtype"], batch, length, written, on_cuda)


@lru_cache(maxsize=256)
def _trace(base: Base, method: str, dtype: str, batch: int, length: int, columns: int, cuda: bool) -> Trace:
    """A forward pass without storage."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._pytree import tree_leaves, tree_map_only

    compute = getattr(torch, dtype)
    saved, kept, constants = [], [], []

    def keep(tensor):
        # Detached, or a saved result and its graph would keep each other alive; a weak reference, because part of the
        # graph may be dropped again, as in DoRA.
        tensor = tensor.detach()
        saved.append(weakref.ref(tensor))
        return tensor

    def quantize(model) -> None:
        if base.model.quantization != "none":
            _as_if_quantized(model, base.model.quantization, lambda tensor: kept.append(keep(tensor)))

    model = attach_on_meta(base, method, compute, quantize)
    # On "meta" PyTorch uses its plain attention, which keeps every score; fake tensors use the fused one, as real
    # ones do.
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode())
        tensors = {name: torch.empty(b.shape, dtype=b.dtype) for name, b in model.named_buffers()}
        for name, p in model.named_parameters():
            data = torch.empty(p.shape, dtype=torch.float32 if p.requires_grad else p.dtype)
            tensors[name] = torch.nn.Parameter(data, requires_grad=p.requires_grad)
        # Some methods have tensors that are neither, such as the indices of virtual tokens.
        for module in model.modules():
            others = {k: v for k, v in vars(module).items() if isinstance(v, (dict, torch.Tensor)) and k[0] != "_"}
            faked = tree_map_only(torch.Tensor, lambda t: torch.empty(t.shape, dtype=t.dtype), others)
            vars(module).update(faked)
            constants += [t for t in tree_leaves(faked) if isinstance(t, torch.Tensor)]
        ids = torch.ones(batch, length, dtype=torch.long)
        inputs = {"input_ids": ids, "attention_mask": ids.clone()}
        if base.row.objective == "next_token":
            inputs |= {"logits_to_keep": 1, "use_cache": False}
        elif base.row.objective == "target_token":
            inputs |= {"decoder_input_ids": torch.ones(batch, columns, dtype=torch.long), "use_cache": False}
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor))
        stack.enter_context(torch.autocast("cpu", dtype=compute, enabled=dtype != "float32"))
        stack.enter_context(_as_if_real(cuda))
        launched = stack.enter_context(_count_operations())
        # The result keeps the graph alive, and with it what is counted below.
        result = torch.func.functional_call(model, tensors, kwargs=inputs)
        storages = {s._cdata: s.nbytes() for ref in saved if ref() is not None for s in [ref().untyped_storage()]}
        for tensor in [*tensors.values(), *constants]:
            storages.pop(tensor.untyped_storage()._cdata, None)
        del result
    quantized = len(shape_of(base).linear_layers) * (base.model.quantization != "none")
    return Trace(sum(storages.values()), launched.count + QUANTIZED_OPERATIONS * quantized)


def _as_if_quantized(model: Any, quantization: str, hold: Callable) -> None:
    """Make the linear layers keep and return tensors as bitsandbytes' layers do."""
    import torch
    from transformers.pytorch_utils import Conv1D

    def after(module, args, output):
        # MatMul8bitLt and MatMul8bitFp keep their input, though frozen weights need no gradient; MatMul4Bit does not.
        if quantization == "int8" and args[0].requires_grad:
            hold(args[0])
        # Both return the type of their input, whatever autocast says.
        return output.to(args[0].dtype)

    for module in model.modules():
        if isinstance(module, (torch.nn.Linear, Conv1D)) and module is not model.get_output_embeddings():
            module.register_forward_hook(after)


def _count_operations() -> Any:
    """A context that has the `count` of operations launched within it."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    unsafe_view = torch.ops.aten._unsafe_view.default

    class Launched(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += not (func.is_view or func.namespace == "prim" or func is unsafe_view)
            return func(*args, **(kwargs or {}))

    return Launched()


def _as_if_real(cuda: bool) -> Any:
    """Make the fake forward pass on the CPU act like a real one, and like one on CUDA if `cuda`."""
    import torch
    from torch.overrides import TorchFunctionMode

    class AsIfReal(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
            if name == "rand" and args == (1,):  # a method's random choice to skip a layer
                return torch.tensor(1.0)
            if cuda and name in ("layer_norm", "softmax", "pow", "__pow__"):  # autocast runs them in float32
                args = [a.float() if torch.is_tensor(a) and a.is_floating_point() else a for a in args]
            if cuda and name == "scaled_dot_product_attention":  # the fused one includes dropout
                kwargs["dropout_p"] = 0.0
            return func(*args, **kwargs)

    return AsIfReal()


def available_memory() -> int:
    """Bytes of memory that training may use: of the GPU, or what is free on this machine."""
    if device_type() == "cuda":
        return gpu_memory()
    import psutil

    return psutil.virtual_memory().available
