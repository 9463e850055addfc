"""The recipes that `benchmarks.methods` measures: one YAML file each, for ours and for mergekit.

The first model is the base, the others are its fine-tunes; slerp goes from the base to the first
of them, linear averages all three.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Parameters = dict[str, Any]


@dataclass(frozen=True)
class Method:
    """A method as it is measured.

    Attributes:
        models: how many of the models it takes, the base included.
        each: parameters of each fine-tune, in turn.
        common: parameters of the recipe.
        faster: by how much it is to beat mergekit; None where no goal is set.
    """

    name: str
    models: int
    each: Sequence[Parameters]
    common: Parameters
    faster: float | None
    has_base: bool = True

    def write(self, folder: Path, models: Sequence[Path]) -> Path:
        """Write its recipe for these models; mergekit reads the same file."""
        tuned = models[1 : self.models] if self.has_base else models[: self.models]
        entries = [
            {"model": str(model.resolve()), "parameters": parameters}
            for model, parameters in zip(tuned, self.each, strict=True)
        ]
        content: dict[str, Any] = {"merge_method": self.name, "models": entries}
        if self.has_base:
            content["base_model"] = str(models[0].resolve())
        # `dtype` is what mergekit computes in: bf16, as in the recipes that people publish.
        content |= {"parameters": self.common, "dtype": "bfloat16"}
        path = folder / f"{self.name}.yml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path


_WEIGHTS: Sequence[Parameters] = ({"weight": 0.6}, {"weight": 0.4})
_SPARSE: Sequence[Parameters] = tuple(each | {"density": 0.5} for each in _WEIGHTS)

METHODS = {
    method.name: method
    for method in (
        Method("linear", 3, ({"weight": 0.2}, {"weight": 0.3}, {"weight": 0.5}), {}, None, False),
        Method("task_arithmetic", 3, _WEIGHTS, {"lambda": 0.8}, 3),
        Method("slerp", 2, ({},), {"t": 0.4}, 5),
        Method("ties", 3, _SPARSE, {"normalize": True}, 15),
        Method("dare_ties", 3, _SPARSE, {"normalize": True}, 15),
    )
}
