"""A new model of the same kind as an old one, its tensors yet to be filled."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from streammerge.errors import UnsupportedError
from streammerge.inmemory.models import Model, Tensors, registered


def new_like(
    label: str,
    model: Model,
    tensors: Tensors,
    tied: Mapping[str, str],
    dtypes: Mapping[str, torch.dtype],
) -> tuple[Model, Tensors]:
    """Return a model of the same kind that shares no memory with the old one.

    Args:
        label: names the model in messages.
        model: what the new one is like: classes, flags, hooks, devices, memory formats, everything
            but the contents of its tensors.
        tensors: the tensors of that model by name.
        tied: for each name, the first name of the same tensor.
        dtypes: of the new tensors, by first name.

    Returns:
        the new model, and its tensors by first name; their contents are undefined.

    Raises:
        UnsupportedError: a module that cannot be copied.
    """
    # Whatever mode the caller is in, the result is made of ordinary tensors.
    with torch.inference_mode(False), torch.no_grad():
        new = {name: _empty_like(tensors[name], dtype) for name, dtype in dtypes.items()}
        if isinstance(model, nn.Module):
            return _copy_around(label, model, tensors, tied, new), new
    items = {name: new[tied[name]] for name in tensors}
    if not isinstance(model, OrderedDict):
        return items, new
    ordered = OrderedDict(items)
    # The versions of the modules, by which `load_state_dict` converts older ones.
    vars(ordered).update(copy.deepcopy(vars(model)))
    return ordered, new


def _empty_like(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(tensor, dtype=dtype, requires_grad=False)


def _copy_around(
    label: str, module: nn.Module, tensors: Tensors, tied: Mapping[str, str], new: Tensors
) -> nn.Module:
    """Copy a module, with new tensors for its parameters and persistent buffers.

    `deepcopy` takes what its memo holds as copied already, so that no weight is copied only to be
    overwritten, and a tensor that occurs twice stays one.
    """
    memo: dict[int, Any] = {}
    for name, tensor in tensors.items():
        empty = new[tied[name]]
        if isinstance(tensor, nn.Parameter):
            memo[id(tensor)] = nn.Parameter(empty, requires_grad=tensor.requires_grad)
        else:
            memo[id(tensor)] = empty
    try:
        result = copy.deepcopy(module, memo)
    except Exception as error:  # anything that the module's own parts may raise
        raise _not_copied(label, str(error)) from error
    for name, tensor in registered(result).items():
        if tensor.data_ptr() != new[tied[name]].data_ptr():
            raise _not_copied(label, f"its own way of copying makes another {name}")
    return result


def _not_copied(label: str, why: str) -> UnsupportedError:
    return UnsupportedError(
        f"{label} cannot be copied: {why}",
        "Merge the state dicts, and load the result: `m.load_state_dict(merged)`.",
    )
