"""What a module or state dict holds, and whether several of them can be merged at all.

Shapes and kinds of tensors are left to the plan, which has rules for files anyway. Here is what
only memory has: classes, models given twice, tensors without data, memory that two names share.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn

from streammerge.errors import CoverageError, RecipeError, UnsupportedError, listing, printable
from streammerge.formats.refusals import refuse_quantized
from streammerge.tensors import DTYPES, TensorInfo

Model: TypeAlias = nn.Module | Mapping[str, Tensor]
Tensors: TypeAlias = dict[str, Tensor]

_CODES = {dtype.torch_name: code for code, dtype in DTYPES.items() if dtype.torch_name}
_ADAPTERS = (".lora_A.", ".lora_B.", ".lora_embedding_A.", ".lora_embedding_B.")


def check_alike(models: Mapping[str, Model]) -> None:
    """Refuse models of different kinds or classes, and a model that is given twice.

    Raises:
        RecipeError: with the two that do not go together.
    """
    (first_label, first), *others = models.items()
    seen: dict[int, str] = {}
    for label, model in models.items():
        if not isinstance(model, nn.Module | Mapping):
            raise RecipeError(
                f"{label} is a {type(model).__name__}",
                "Give torch modules, state dicts, or paths of checkpoints with a folder to write.",
            )
        if id(model) in seen:
            raise RecipeError(
                f"{label} is the same object as {seen[id(model)]}",
                "Give each model once; weights= says how much each one counts.",
            )
        seen[id(model)] = label
    for label, other in others:
        if isinstance(first, nn.Module) is not isinstance(other, nn.Module):
            raise RecipeError(
                f"{first_label} is a {type(first).__name__} and {label} a {type(other).__name__}",
                "Merge modules with modules, or state dicts with state dicts: `m.state_dict()`.",
            )
        if isinstance(first, nn.Module) and isinstance(other, nn.Module):
            _require_same_classes(first_label, first, label, other)


def _require_same_classes(first_label: str, first: nn.Module, label: str, other: nn.Module) -> None:
    """Refuse modules that compute otherwise although their tensors may fit each other."""
    ours, theirs = _classes(first), _classes(other)
    for name in ours | theirs:
        mine, their = ours.get(name, "missing"), theirs.get(name, "missing")
        if mine != their:
            what = f"part {printable(name)}" if name else "class"
            raise RecipeError(
                f"the modules differ in their {what}: {mine} in {first_label}, {their} in {label}",
                "Merge modules of one class; or their state dicts, if only the tensors matter.",
            )


def _classes(module: nn.Module) -> dict[str, str]:
    # By name: a parametrized module has a class of its own, which is called like all others.
    return {name: type(part).__qualname__ for name, part in module.named_modules()}


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


def require_same_names(held: Mapping[str, Tensors]) -> None:
    """Refuse models that do not have the same tensors; nothing that is missing is made up.

    Raises:
        CoverageError: with every name that some model lacks.
    """
    names = list(dict.fromkeys(name for tensors in held.values() for name in tensors))
    cases = []
    for name in names:
        lacking = [label for label, tensors in held.items() if name not in tensors]
        if lacking:
            cases.append(f"{name}: not in {', '.join(lacking)}")
    if cases:
        what = "1 tensor is" if len(cases) == 1 else f"{len(cases)} tensors are"
        raise CoverageError(
            f"{what} not in every model:\n{listing(cases)}", "Merge models of one architecture."
        )


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
        code = _CODES[str(tensor.dtype).removeprefix("torch.")]
        infos[name] = TensorInfo(name, code, tuple(tensor.shape))
    refuse_quantized(label, infos.values(), {}, ())
    return infos


def _problem(tensor: Tensor) -> tuple[str, str] | None:
    """Return what keeps a tensor from being merged and what helps; None where nothing does."""
    if isinstance(tensor, nn.UninitializedParameter | nn.UninitializedBuffer):
        return "has no shape yet", "Run a batch through the model, so that it is initialised."
    if tensor.device.type == "meta":
        return "is on the meta device and has no data", "Load the weights first."
    if tensor.is_quantized:
        return "is quantized", "Merge the weights that were quantized; or `dequantize()` both."
    if tensor.layout is not torch.strided or tensor.is_nested:
        return f"is not dense ({tensor.layout})", "Convert it: `tensor.to_dense()`."
    if type(tensor) not in (Tensor, nn.Parameter):
        kind = f"{type(tensor).__module__}.{type(tensor).__qualname__}"
        return f"is a {kind}, whose data only that class understands", "Convert it to a Tensor."
    if str(tensor.dtype).removeprefix("torch.") not in _CODES:
        return f"has dtype {tensor.dtype}, which has no rule", "Convert it to a common dtype."
    return None


def tied_names(held: Mapping[str, Tensors]) -> dict[str, str]:
    """Return, for each name, the first name of the same memory in the first model.

    What one tensor is in the first model is merged once and is one tensor in the result, so it must
    be one tensor in the others, too.

    Raises:
        CoverageError: two names are one tensor in the first model, but not in another.
        RecipeError: two models are the same memory.
    """
    (first_label, first), *others = held.items()
    tied = _tied(first)
    for label, tensors in others:
        theirs = _tied(tensors)
        for name, leader in tied.items():
            if theirs[name] != theirs[leader]:
                raise CoverageError(
                    f"{printable(name)} and {printable(leader)} are one tensor in {first_label}, "
                    f"but two in {label}",
                    "Tie or untie them in all models alike.",
                )
    _require_own_memory(held)
    return tied


def _tied(tensors: Tensors) -> dict[str, str]:
    leaders: dict[object, str] = {}
    return {name: leaders.setdefault(_place(tensor), name) for name, tensor in tensors.items()}


def _place(tensor: Tensor) -> object:
    """Return what two tensors have in common only if they are the same elements in memory."""
    if tensor.numel() == 0:
        return id(tensor)
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _require_own_memory(held: Mapping[str, Tensors]) -> None:
    """Refuse two state dicts of one model: all their tensors are the same memory."""
    seen: dict[object, str] = {}
    for label, tensors in held.items():
        places = frozenset(_place(t) for t in tensors.values() if t.numel())
        if places and places in seen:
            raise RecipeError(
                f"{label} and {seen[places]} are the same memory: all their tensors are shared",
                "A state dict shows a model as it is now. To keep a moment of it, copy it: "
                "`copy.deepcopy(model.state_dict())`.",
            )
        seen[places] = label
