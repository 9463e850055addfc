"""What the user asked for: read from YAML or made from options, resolved tensor by tensor.

entries, recipe      the data: strict, read-only, JSON
settings, layers     values, gradients over layers, filters by name
sections             slices and modules laid out as inputs
treatment            all that is said about one tensor
document, reading…   YAML → recipe, with lines for errors
selection, average   checkpoints of a run; the plainest recipe
"""

from __future__ import annotations

import os

from streammerge.recipe.average import average_recipe
from streammerge.recipe.entries import ModelEntry
from streammerge.recipe.recipe import Recipe
from streammerge.recipe.selection import Selection
from streammerge.recipe.treatment import Treatment, Treatments

__all__ = [
    "ModelEntry",
    "Recipe",
    "Selection",
    "Treatment",
    "Treatments",
    "average_recipe",
    "load_recipe",
]


def load_recipe(path: str | os.PathLike[str]) -> Recipe:
    """Read a recipe from a YAML file; see `reading.load_recipe`."""
    from streammerge.recipe import reading  # loads PyYAML, which options alone do not need

    return reading.load_recipe(path)
