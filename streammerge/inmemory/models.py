"""Several models held against each other: whether they can be merged at all.

Shapes and kinds of tensors are left to the plan, which has rules for files anyway. Here is what
only memory has: classes, models given twice, memory that two names or two models share.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from streammerge.errors import CoverageError, RecipeError, listing, printable
from streammerge.inmemory.contents import Model, Tensors, describe, tensors_of
from streammerge.tensors import TensorInfo


@dataclass(frozen=True, slots=True)
class Models:
    """Models that go together.

    Attributes:
        like: label of the one that the result will be like.
        by_label: all of them.
        tensors: what each holds, by label and name.
        infos: dtypes and shapes of those.
        tied: for each name, the first name of the same tensor in the model `like`.
    """

    like: str
    by_label: Mapping[str, Model]
    tensors: dict[str, Tensors]
    infos: dict[str, dict[str, TensorInfo]]
    tied: dict[str, str]

    @property
    def leaders(self) -> list[str]:
        """The names that are left when each tensor is named once."""
        return list(dict.fromkeys(self.tied.values()))


def hold_together(models: Mapping[str, Model], like: str) -> Models:
    """Look at models and return what they hold.

    Args:
        models: by label.
        like: label of the one that the result will be like.

    Raises:
        RecipeError: models of different kinds or classes, or one that is given twice.
        CoverageError: other names, or tensors tied otherwise, than in the model `like`.
        UnsupportedError: something that cannot be merged tensor by tensor.
    """
    _require_one_kind(models, like)
    tensors = {label: tensors_of(label, model) for label, model in models.items()}
    _require_same_names(tensors)
    infos = {label: describe(label, held) for label, held in tensors.items()}
    _require_own_memory(tensors)
    return Models(like, models, tensors, infos, _tied_alike(tensors, like))


def _require_one_kind(models: Mapping[str, Model], like: str) -> None:
    first, seen = models[like], dict[int, str]()
    for label, model in models.items():
        if not isinstance(model, nn.Module | Mapping):
            raise RecipeError(
                f"{label} is a {type(model).__name__}",
                "Give torch modules, or state dicts; or paths, and a folder to write.",
            )
        if id(model) in seen:
            raise RecipeError(
                f"{label} is the same object as {seen[id(model)]}",
                "Give each model once; weights say how much each one counts.",
            )
        seen[id(model)] = label
        if isinstance(first, nn.Module) is not isinstance(model, nn.Module):
            raise RecipeError(
                f"{like} is a {type(first).__name__} and {label} a {type(model).__name__}",
                "Merge modules with modules, or state dicts with state dicts: `m.state_dict()`.",
            )
        if isinstance(first, nn.Module) and isinstance(model, nn.Module):
            _require_same_classes(like, first, label, model)


def _require_same_classes(like: str, first: nn.Module, label: str, other: nn.Module) -> None:
    """Refuse modules that compute otherwise although their tensors may fit each other."""
    ours, theirs = _classes(first), _classes(other)
    for name in ours | theirs:
        mine, their = ours.get(name, "missing"), theirs.get(name, "missing")
        if mine != their:
            what = f"part {printable(name)}" if name else "class"
            raise RecipeError(
                f"the modules differ in their {what}: {mine} in {like}, {their} in {label}",
                "Merge modules of one class; or their state dicts, if only the tensors matter.",
            )


def _classes(module: nn.Module) -> dict[str, str]:
    # By name: a parametrized module has a class of its own, which is called like all others.
    return {name: type(part).__qualname__ for name, part in module.named_modules()}


def _require_same_names(tensors: Mapping[str, Tensors]) -> None:
    names = list(dict.fromkeys(name for held in tensors.values() for name in held))
    cases = []
    for name in names:
        lacking = [label for label, held in tensors.items() if name not in held]
        if lacking:
            cases.append(f"{name}: not in {', '.join(lacking)}")
    if cases:
        what = "1 tensor is" if len(cases) == 1 else f"{len(cases)} tensors are"
        raise CoverageError(
            f"{what} not in every model:\n{listing(cases)}", "Merge models of one architecture."
        )


def _require_own_memory(tensors: Mapping[str, Tensors]) -> None:
    """Refuse two state dicts of one model: all their tensors are the same memory."""
    seen: dict[object, str] = {}
    for label, held in tensors.items():
        places = frozenset(_place(tensor) for tensor in held.values() if tensor.numel())
        if places and places in seen:
            raise RecipeError(
                f"{label} and {seen[places]} are the same memory: all their tensors are shared",
                "A state dict shows a model as it is now. To keep a moment of it, copy it: "
                "`copy.deepcopy(model.state_dict())`.",
            )
        seen[places] = label


def _tied_alike(tensors: Mapping[str, Tensors], like: str) -> dict[str, str]:
    """Return, for each name, the first name of the same tensor in the model `like`.

    What is one tensor there is merged once and is one tensor in the result, so it must be one in
    the other models, too. (The reverse may be: equal tensors are merged to equal ones.)
    """
    tied = _tied(tensors[like])
    for label, held in tensors.items():
        theirs = _tied(held)
        for name, leader in tied.items():
            if theirs[name] != theirs[leader]:
                raise CoverageError(
                    f"{printable(name)} and {printable(leader)} are one tensor in {like}, but two "
                    f"in {label}",
                    "Tie or untie them in all models alike.",
                )
    return tied


def _tied(tensors: Tensors) -> dict[str, str]:
    leaders: dict[object, str] = {}
    return {name: leaders.setdefault(_place(tensor), name) for name, tensor in tensors.items()}


def _place(tensor: Tensor) -> object:
    """Return what two tensors have in common only if they are the same elements in memory."""
    if tensor.numel() == 0:
        return id(tensor)
    return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
