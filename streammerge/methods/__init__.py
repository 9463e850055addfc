"""tensors → tensor: the merge methods, and the decorator that makes a function one.

A method sees tensors only: no files, no names, no devices. It is an ordinary function:

    @merge_method("magmax", paper="2407.06322")
    def magmax(tensors: Sequence[Tensor], base: Tensor, *, scaling_factor: Lambda = 1.0) -> Tensor:

Its signature says all there is to know. Positional arguments are what it wants to see, by name:

    tensors    blocks of the models, in the dtype of the computation, without the base model;
               they are copies that the method may overwrite
    base       the same block of the base model (`Tensor | None` where one is not needed)
    measured   the finished measurement of the whole tensor (`measuring.py`)
    place      where in the tensor the block lies, and a source of random numbers (`place.py`)

Keyword-only arguments are parameters of the recipe (`parameters.py`). It returns the merged block.
A *kernel* asks for `out` and `workspace` too: it gets the elements of the inputs as they were read,
flat, of any float dtype and not to be written to, puts the result, rounded once, where it belongs,
and returns whether it is finite (`averaging.sum_terms`). They come as stretches where there are
compiled loops for them, otherwise as tensors. Rows and whole tensors it gets as others do, with
None for those two, and returns them.
No module here imports torch when it is loaded: plans are made, and methods listed, without it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from streammerge.methods.measuring import Make
from streammerge.methods.parameters import Parameter, read_parameters
from streammerge.plugins import Registry

Granularity = Literal["element", "row", "tensor"]
_T = TypeVar("_T")
Shaped = Callable[[Mapping[str, Any], tuple[int, ...]], _T]
"""What follows from the parameters and the shape of a tensor."""


@dataclass(frozen=True, slots=True)
class Method:
    """A merge method and what its signature says of it.

    Attributes:
        name: in recipes.
        aliases: other names for it.
        function: computes a block.
        sees: names of its positional arguments.
        parameters: by name.
        base: whether it works on differences to a base model.
        granularity: what a block must be, by the parameters and the shape of the tensor: any
            elements, whole rows (what lies along the last axis), or the whole tensor with its
            shape. All but elements are computed in fp64.
        measure: makes the measurement that has to be finished before the first block; None for
            methods that need none.
        passes: how often the measurement reads the tensor at most.
        measure_if: whether parameters need the measurement at all.
        models: least and most number of models, the base model not counted.
        memory: for whole tensors: the bytes that it needs besides the fp64 copies of its inputs, by
            shape and number of models.
        drops_zero: a model of weight 0 contributes nothing, and need not be read.
        check: raises a RecipeError for parameters that do not go together.
        kernel: the function takes stretches as they were read, and writes the result itself.
        paper: arXiv number; "" for none.
    """

    name: str
    aliases: tuple[str, ...]
    function: Callable[..., Any]
    sees: frozenset[str]
    parameters: Mapping[str, Parameter]
    base: Literal["none", "optional", "required"]
    granularity: Shaped[Granularity]
    measure: Make | None
    passes: int
    measure_if: Callable[[Mapping[str, Any]], bool]
    models: tuple[int, int | None]
    memory: Callable[[tuple[int, ...], int], int]
    drops_zero: bool
    check: Callable[[Mapping[str, Any]], object]
    kernel: bool
    paper: str

    @property
    def summary(self) -> str:
        """The first line of what it says of itself."""
        return self.description.partition("\n")[0]

    @property
    def description(self) -> str:
        """What it says of itself."""
        return inspect.getdoc(self.function) or ""

    def passes_for(self, parameters: Mapping[str, Any]) -> int:
        """Return `passes`, or 0 where these parameters need no measurement."""
        return self.passes if self.measure_if(parameters) else 0

    def arguments(self, available: Mapping[str, Any]) -> dict[str, Any]:
        """Return those of the positional arguments that the function asks for."""
        return {name: value for name, value in available.items() if name in self.sees}


METHODS: Registry[Method] = Registry("merge method")
_F = TypeVar("_F", bound=Callable[..., Any])


def _several_copies(shape: tuple[int, ...], models: int) -> int:
    return 8 * math.prod(shape) * (models + 3)


def merge_method(
    name: str,
    *,
    aliases: tuple[str, ...] = (),
    granularity: Granularity | Shaped[Granularity] = "element",
    measure: Make | None = None,
    passes: int = 0,
    measure_if: Callable[[Mapping[str, Any]], bool] = lambda parameters: True,
    models: tuple[int, int | None] = (1, None),
    memory: Callable[[tuple[int, ...], int], int] = _several_copies,
    drops_zero: bool = False,
    check: Callable[[Mapping[str, Any]], object] = lambda parameters: None,
    paper: str = "",
) -> Callable[[_F], _F]:
    """Register a function as a merge method; see the head of this module and `Method`."""

    def register(function: _F) -> _F:
        arguments = inspect.signature(function).parameters
        parameters = read_parameters(function)
        base = arguments.get("base")
        optional = base is not None and "None" in str(base.annotation)
        method = Method(
            name=name,
            aliases=aliases,
            function=function,
            sees=frozenset(arguments) - parameters.keys(),
            parameters=parameters,
            base="none" if base is None else "optional" if optional else "required",
            granularity=granularity if callable(granularity) else lambda *_: granularity,
            measure=measure,
            passes=passes,
            measure_if=measure_if,
            models=models,
            memory=memory,
            drops_zero=drops_zero,
            check=check,
            kernel="workspace" in arguments,
            paper=paper,
        )
        METHODS.add(name, method, aliases)
        return function

    return register


from streammerge.methods import (  # noqa: E402  they register themselves
    averages,  # noqa: F401
    breadcrumbs,  # noqa: F401
    dare,  # noqa: F401
    della,  # noqa: F401
    median,  # noqa: F401
    model_stock,  # noqa: F401
    passthrough,  # noqa: F401
    ram,  # noqa: F401
    sce,  # noqa: F401
    selective,  # noqa: F401
    slerp,  # noqa: F401
    spectral,  # noqa: F401
    spheres,  # noqa: F401
    task_vectors,  # noqa: F401
    ties,  # noqa: F401
)
