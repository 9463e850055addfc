"""Run by mergekit's own Python: how it resolves recipes, tensor by tensor, as JSON.

    python mergekit_settings.py < [{"recipe": YAML text}, …] > [{tensor: {…}} or {"error": …}, …]

Nothing is merged; only its planner runs.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import yaml
from mergekit.architecture import get_architecture_info
from mergekit.config import MergeConfiguration
from mergekit.io.tasks import LoaderCache
from mergekit.merge import _model_out_config
from mergekit.options import MergeOptions
from mergekit.plan import MergePlanner


def resolve(text: str) -> dict[str, Any]:
    """Return what mergekit would pass to the method for each tensor."""
    config = MergeConfiguration.model_validate(yaml.safe_load(text))
    options = MergeOptions()
    architecture = get_architecture_info(config, options)
    LoaderCache().setup(options=options)
    out_config = _model_out_config(config, architecture)
    planner = MergePlanner(config, architecture, options=options, out_model_config=out_config)
    planner._plan()
    return {weight.name: _told(task) for weight, task in planner._tensors}


def _told(task: Any) -> dict[str, Any]:
    gathered = task.gather_tensors.weight_info
    return {
        "base": str(task.base_model) if task.base_model else None,
        "shared": dict(task.parameters.items()),
        "inputs": [
            {
                "model": str(model),
                "tensor": gathered[model].name,
                "settings": dict(task.input_parameters[model].items())
                if model in dict(task.input_parameters.items())
                else {},
            }
            for model in task.model_order
        ],
    }


def main() -> None:
    """Resolve each recipe of standard input."""
    logging.disable(logging.CRITICAL)
    results = []
    for case in json.load(sys.stdin):
        try:
            results.append(resolve(case["recipe"]))
        except Exception as error:
            results.append({"error": f"{type(error).__name__}: {error}"})
    json.dump(results, sys.stdout)


main()
