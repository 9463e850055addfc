"""Runs merges by mergekit, in mergekit's own environment, and writes what comes out.

    .venv-mergekit/bin/python tests/support/run_mergekit.py FOLDER

FOLDER/jobs.json lists tensor merges and whole recipes; FOLDER/inputs.safetensors holds the tensors
of the first. All of them run in one process, since loading mergekit takes longer than all the rest.
The results go to FOLDER/outputs.safetensors, recipes' to the folders that the jobs name, and the
names of mergekit's methods to FOLDER/methods.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from mergekit.merge_methods import merge_tensors, registered_methods
from mergekit.scripts.run_yaml import main as mergekit_yaml
from safetensors.torch import load_file, save_file


def merge(job: dict[str, Any], inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """One merge of tensors, in float32 throughout."""
    torch.manual_seed(0)
    return merge_tensors(
        [inputs[name] for name in job["tensors"]],
        job["method"],
        parameters=job["parameters"],
        base_index=job["base"],
        dtype=torch.float32,
        out_dtype=torch.float32,
    ).contiguous()


def main(folder: Path) -> None:
    jobs = json.loads((folder / "jobs.json").read_text())
    inputs = load_file(folder / "inputs.safetensors")
    outputs = {job["name"]: merge(job, inputs) for job in jobs["tensors"]}
    save_file(outputs, folder / "outputs.safetensors")
    names = [method.spec.name for method in registered_methods()]
    (folder / "methods.json").write_text(json.dumps(names))
    options = ["--no-copy-tokenizer", "--no-write-model-card", "--quiet"]
    for recipe, out in jobs["recipes"]:
        mergekit_yaml.main([recipe, out, *options], standalone_mode=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
