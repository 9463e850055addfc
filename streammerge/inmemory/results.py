"""A new model of the same kind as an old one, its tensors yet to be filled."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from streammerge.errors import UnsupportedError
from streammerge.inmemory.contents import Model, Tensors, registered
from streammerge.inmemory.models import Models


def new_like(models: Models, dtypes: Mapping[str, torch.dtype]) -> tuple[Model, Tensors]:
    """Return a model of the kind of `models.like` that shares no memory with any of them.

    Everything but the contents of its tensors is as there: classes, flags, hooks, devices, memory
    formats, and which tensors are tied.

    Args:
        models: the old models.
        dtypes: of the new tensors, by leading name.

    Returns:
        the new model, and its tensors by leading name; their contents are undefined.

    Raises:
        UnsupportedError: a module that cannot be copied.
    """
    model, tensors = models.by_label[models.like], models.tensors[models.like]
    # Whatever mode the caller is in, the result is made of ordinary tensors.
    with torch.inference_mode(False), torch.no_grad():
        new = {
            name: torch.empty_like(tensors[name], dtype=dtype, requires_grad=False)
            for name, dtype in dtypes.items()
        }
        empty = {name: new[leader] for name, leader in models.tied.items()}
        if isinstance(model, nn.Module):
            return _copy_around(models.like, model, tensors, empty), new
    if not isinstance(model, OrderedDict):
        return empty, new
    ordered = OrderedDict(empty)
    # The versions of the modules, by which `load_state_dict` converts older ones.
    vars(ordered).update(copy.deepcopy(vars(model)))
    return ordered, new


def _copy_around(label: str, module: nn.Module, tensors: Tensors, empty: Tensors) -> nn.Module:
    """Copy a module, with empty tensors for its parameters and persistent buffers.

    `deepcopy` takes what its memo holds as copied already, so that no weight is copied only to be
    overwritten, and a tensor that occurs twice stays one.
    """
    memo: dict[int, Any] = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, nn.Parameter):
            memo[id(tensor)] = nn.Parameter(empty[name], requires_grad=tensor.requires_grad)
        else:
            memo[id(tensor)] = empty[name]
    try:
        result = copy.deepcopy(module, memo)
    except Exception as error:  # anything that the module's own parts may raise
        raise _not_copied(label, str(error)) from error
    for name, tensor in registered(result).items():
        if tensor.data_ptr() != empty[name].data_ptr():
            raise _not_copied(label, f"its own way of copying makes another {name}")
    return result


def _not_copied(label: str, why: str) -> UnsupportedError:
    return UnsupportedError(
        f"{label} cannot be copied: {why}",
        "Merge the state dicts, and load the result: `m.load_state_dict(merged)`.",
    )
