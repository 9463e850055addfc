"""What one module or state dict holds: its tensors by name, each looked at before it is merged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn

from streammerge.errors import UnsupportedError, printable
from streammerge.formats.refusals import refuse_quantized
from streammerge.tensors import DTYPES, TensorInfo

Model: TypeAlias = nn.Module | Mapping[str, Tensor]
Tensors: TypeAlias = dict[str, Tensor]

_CODES = {dtype.torch_name: code for code, dtype in DTYPES.items() if dtype.torch_name}
_ADAPTERS = (".lora_A.", ".lora_B.", ".lora_embedding_A.", ".lora_embedding_B.")


def tensors_of(label: str, model: Model) -> Tensors:
    """Return the tensors of a model by name: parameters and persistent buffers, or the items.

    Raises:
        UnsupportedError: it has state that is no tensor, or factors of adapters.
    """
    tensors = registered(model) if isinstance(model, nn.Module) else dict(model)
    state = model.state_dict() if isinstance(model, nn.Module) else tensors
    for name, value in cast(Mapping[object, object], state).items():
        if not isinstance(value, Tensor) or name not in tensors or not isinstance(name, str):
            raise UnsupportedError(
                f"{label} holds {printable(repr(name))}, a {type(value).__name__}, which is no "
                "parameter and no buffer",
                "Give the mapping from names to tensors alone, e.g. `checkpoint['model']`.",
            )
    adapters = [name for name in tensors if any(part in f"{name}." for part in _ADAPTERS)]
    if adapters:
        raise UnsupportedError(
            f"{label} holds LoRA factors ({printable(adapters[0])})",
            "Averaging the two factors apart is wrong. Merge `model.merge_and_unload()` instead.",
        )
    return tensors


def registered(module: nn.Module) -> Tensors:
    """Return what `state_dict` names, but as the module's own objects."""
    tensors: Tensors = {}
    for prefix, part in module.named_modules(remove_duplicate=False):
        own = {n: b for n, b in part._buffers.items() if n not in part._non_persistent_buffers_set}
        for name, tensor in (part._parameters | own).items():
            if tensor is not None:
                tensors[f"{prefix}.{name}" if prefix else name] = tensor
    return tensors


def describe(label: str, tensors: Tensors) -> dict[str, TensorInfo]:
    """Return name, dtype and shape of each tensor.

    Raises:
        UnsupportedError: a tensor without data of its own, or whose data mean something else.
    """
    infos = {}
    for name, tensor in tensors.items():
        problem = _problem(tensor)
        if problem:
            what, remedy = problem
            raise UnsupportedError(f"{printable(name)} in {label} {what}", remedy)
        infos[name] = TensorInfo(name, _CODES[_dtype_name(tensor)], tuple(tensor.shape))
    refuse_quantized(label, infos.values(), {}, ())
    return infos


def _problem(tensor: Tensor) -> tuple[str, str] | None:
    """Return what keeps a tensor from being merged and what helps; None where nothing does."""
    if isinstance(tensor, nn.UninitializedParameter | nn.UninitializedBuffer):
        return "has no shape yet", "Run a batch through the model, so that it is initialised."
    if tensor.device.type == "meta":
        return "is on the meta device and has no data", "Load the weights first."
    if tensor.is_quantized:
        return "is quantized", "Merge the weights from before they were quantized."
    if tensor.layout is not torch.strided or tensor.is_nested:
        return f"is not dense ({tensor.layout})", "Convert it: `tensor.to_dense()`."
    if type(tensor) not in (Tensor, nn.Parameter):
        kind = f"{type(tensor).__module__}.{type(tensor).__qualname__}"
        return f"is a {kind}, whose data only that class understands", "Convert it to a Tensor."
    if _dtype_name(tensor) not in _CODES:
        return f"has dtype {tensor.dtype}, which has no rule", "Convert it to a common dtype."
    return None


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
