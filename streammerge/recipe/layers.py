"""Which layer a tensor belongs to, read from its name.

In `model.layers.12.mlp.up_proj.weight` the first number between dots is the layer, and what stands
before it, `model.layers`, names the stack. A model may have several stacks (a text and a vision
tower); each is counted by itself. Where that is not what a model means, a recipe says
`layers: "vision_model.encoder.layers.*"`, and only what fits belongs to layers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from fractions import Fraction

_NUMBER = re.compile(r"\.(0|[1-9]\d{0,5})(?=\.)")


@dataclass(frozen=True, slots=True)
class Layer:
    """A name cut at its layer number: `stack.number` and the rest, which begins with a dot."""

    stack: str
    number: int
    rest: str

    def renumbered(self, number: int) -> str:
        """Return the name of the same tensor in another layer."""
        return f"{self.stack}.{number}{self.rest}"


def find_layer(name: str, patterns: Sequence[str] = ()) -> Layer | None:
    """Return the layer of a tensor; None where it belongs to none.

    Args:
        name: of the tensor.
        patterns: globs that end with ".*" in place of the number; any stack where there are none.
    """
    for found in _NUMBER.finditer(name):
        stack = name[: found.start()]
        if not patterns or any(fnmatchcase(stack, pattern[:-2]) for pattern in patterns):
            return Layer(stack, int(found[1]), name[found.end() :])
    return None


class Layers:
    """The stacks of a model.

    Args:
        names: of all its tensors.
        patterns: see `find_layer`.

    Attributes:
        counts: number of layers by stack; the highest number and one.
    """

    def __init__(self, names: Iterable[str], patterns: Sequence[str] = ()) -> None:
        self._patterns = patterns
        self.counts: dict[str, int] = {}
        for name in names:
            if layer := find_layer(name, patterns):
                self.counts[layer.stack] = max(self.counts.get(layer.stack, 0), layer.number + 1)

    def find(self, name: str) -> Layer | None:
        """Return the layer of a tensor; None where it belongs to none."""
        return find_layer(name, self._patterns)

    def depth(self, name: str) -> Fraction:
        """Return where in its stack a tensor lies: 0 in the first layer, 1 in the last.

        What lies outside layers counts as 0, the layer of a stack of one as 1.
        """
        layer = self.find(name)
        return depth(layer.number, self.counts[layer.stack]) if layer else Fraction(0)


def depth(index: int, count: int) -> Fraction:
    """Return the place of a layer among `count`, from 0 to 1."""
    return Fraction(index, count - 1) if count > 1 else Fraction(1)


# Embeddings and what follows them at once; norms and heads come behind the layers.
_BEFORE = ("emb", "wte", "wpe", "patch", "_pe.", "conv", "pre_layr", "pre_layern", "_pre.")
_BEHIND = ("embed_out", "lm_head")


def comes_before_layers(name: str, globs: Sequence[str] | None = None) -> bool:
    """Whether a tensor outside layers goes with the first of them (embeddings) or the last.

    Args:
        name: of the tensor.
        globs: names of those that do; None to judge by words that such names contain.
    """
    if globs is not None:
        return any(fnmatchcase(name, glob) for glob in globs)
    return any(word in name for word in _BEFORE) and not any(word in name for word in _BEHIND)
