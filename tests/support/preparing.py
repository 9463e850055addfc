"""A merge planned and checked, with nothing written yet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from streammerge import api
from streammerge.options import PlanOptions, Reference


def prepare_average(models: Sequence[Reference], out: Reference, **options: Any) -> api.Prepared:
    """What `plan_average` returns the plan of."""
    own = {k: v for k, v in options.items() if k in PlanOptions.__optional_keys__}
    return api.prepare(api.recipe_of(models, options), out, **own)  # type: ignore[arg-type]
