"""What people use today for the same job: mergekit, a loop over safetensors, and cp.

    python -m benchmarks.peers naive model_a model_b --out merged [--weight 2 --weight 1]
    python -m benchmarks.peers install-mergekit

`naive` is the loop that everybody writes first: open each file for each tensor, average in float32,
save shard by shard. mergekit gets a virtual environment of its own, so that its dependencies meet
none of ours; where it can't be installed, its rows are left out with the reason.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# mergekit asks only for ranges. What it shares with us is held to our own versions; for the rest,
# pip finds a set that works (2026-11: peft 0.21, datasets 5.2).
MERGEKIT_PINS = ("mergekit==0.1.5", "torch==2.13.0")
MERGEKIT_VENV = Path(".venv-mergekit")
CONSTRAINTS = Path(__file__).parent.parent / "constraints.txt"


class PeerUnavailable(Exception):
    """This peer cannot be measured here; the message says why."""


@dataclass(frozen=True)
class Job:
    """What is to be merged: the same for everybody."""

    models: tuple[Path, ...]
    weights: tuple[float, ...]
    dtype: str  # as config.json has it

    @property
    def equal(self) -> bool:
        return len(set(self.weights)) == 1


def naive_command(job: Job, out: Path) -> list[str]:
    command = [sys.executable, "-m", "benchmarks.peers", "naive", *map(str, job.models)]
    return [*command, "--out", str(out), *(f"--weight={weight}" for weight in job.weights)]


def cp_command(job: Job, out: Path) -> list[str]:
    """The same bytes moved by coreutils: cp of the first model while cat reads the others."""
    script = 'out=$1 first=$2; shift 2; cat "$@" > /dev/null & cp -r "$first" "$out" && wait'
    others = [str(file) for model in job.models[1:] for file in model.glob("*.safetensors")]
    return ["sh", "-c", script, "sh", str(out), str(job.models[0]), *others]


def mergekit_command(job: Job, out: Path, program: Path) -> list[str]:
    """mergekit's `linear`, without the extras that ours is not asked for."""
    models = [
        {"model": str(model.resolve()), "parameters": {"weight": weight}}
        for model, weight in zip(job.models, job.weights, strict=True)
    ]
    recipe = out.parent / "mergekit.yaml"
    # JSON is YAML; `dtype` alone would do, `out_dtype` makes sure that nothing is left in fp32.
    content = {"merge_method": "linear", "dtype": job.dtype, "out_dtype": job.dtype}
    recipe.write_text(json.dumps({**content, "models": models}, indent=2))
    options = ["--no-copy-tokenizer", "--no-write-model-card", "--quiet"]
    return [str(program), str(recipe), str(out), *options]


def install_mergekit(where: Path = MERGEKIT_VENV) -> Path:
    """The `mergekit-yaml` program, from a virtual environment that is made when missing."""
    program = where / "bin" / "mergekit-yaml"
    stamp = where / ".installed"
    if stamp.exists() and stamp.read_text() == " ".join(MERGEKIT_PINS):
        stamp.touch()
        return program.absolute()
    print(f"installing {' '.join(MERGEKIT_PINS)} into {where} (once) …", file=sys.stderr)
    try:
        venv.create(where, clear=True, with_pip=True)
        (where / ".gitignore").write_text("*\n")
        pip = [str(where / "bin" / "python"), "-m", "pip", "install", "-qq"]
        subprocess.run(
            [*pip, "-c", str(CONSTRAINTS), *MERGEKIT_PINS],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        subprocess.run([program, "--help"], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        said = str(getattr(error, "stderr", "") or error).strip().splitlines()
        shutil.rmtree(where, ignore_errors=True)
        raise PeerUnavailable(f"mergekit can't be installed: {said[-1]}") from error
    stamp.write_text(" ".join(MERGEKIT_PINS))
    return program.absolute()


def naive_merge(models: Sequence[Path], out: Path, weights: Sequence[float]) -> None:
    """The loop itself, as it is best written. Imports here: only this function needs torch."""
    from safetensors.torch import save_file

    out.mkdir(parents=True)
    maps = [_weight_map(model) for model in models]
    first, *others = zip(models, maps, weights, strict=True)
    for shard in sorted(set(maps[0].values())):
        merged = {}
        for name in (name for name, file in maps[0].items() if file == shard):
            model, files, weight = first
            tensor = _load(model / files[name], name)
            mean = tensor.float() * weight
            for model, files, weight in others:
                mean.add_(_load(model / files[name], name).float(), alpha=weight)
            merged[name] = mean.div_(sum(weights)).to(tensor.dtype)
        save_file(merged, out / shard, metadata={"format": "pt"})
    for extra in models[0].glob("*.json"):
        shutil.copy(extra, out)


def _load(path: Path, name: str) -> torch.Tensor:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
        return tensor


def _weight_map(model: Path) -> dict[str, str]:
    from safetensors import safe_open

    index = model / "model.safetensors.index.json"
    if index.exists():
        weight_map: dict[str, str] = json.loads(index.read_text())["weight_map"]
        return weight_map
    with safe_open(model / "model.safetensors", framework="pt") as file:
        return dict.fromkeys(file.keys(), "model.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("naive", "install-mergekit"))
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--weight", type=float, action="append")
    args = parser.parse_args()
    if args.what == "install-mergekit":
        try:
            print(install_mergekit())
        except PeerUnavailable as error:
            sys.exit(str(error))
    elif not args.models or args.out is None:
        parser.error("naive needs models and --out")
    else:
        naive_merge(args.models, args.out, args.weight or [1.0] * len(args.models))


if __name__ == "__main__":
    main()
