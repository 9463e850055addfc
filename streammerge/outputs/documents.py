"""The small files of an output: index, config, tokenizer and the like, model card."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import Any

import yaml

from streammerge.checkpoint import Checkpoint
from streammerge.configs import config_with_dtype
from streammerge.errors import CheckpointError
from streammerge.formats.folder import INDEX_FILE, SINGLE_FILE
from streammerge.outputs import CARD, WrittenShard
from streammerge.outputs.manifest import MANIFEST, encode_json, encode_manifest
from streammerge.plan import Plan, PlanInput
from streammerge.references import HUB_SCHEME, Reference, parse_reference
from streammerge.tensors import format_size
from streammerge.wording import methods_in_words, part_in_words

_FRONT_MATTER = re.compile(r"---[ \t]*\r?\n(.*?\n)---", re.S)
_LICENSE = re.compile(r"^license:[ \t]*[\"']?([\w.+-]+)[\"']?[ \t]*\r?$", re.M)


def make_documents(
    plan: Plan,
    checkpoints: Sequence[Checkpoint],
    shards: Sequence[WrittenShard],
    command: Sequence[str],
) -> tuple[dict[str, bytes], str]:
    """Return the content of every file besides the shards, and the name that must appear last.

    Args:
        plan: what was done.
        checkpoints: its opened inputs.
        shards: what was written.
        command: the arguments that led here, for the card and the manifest.
    """
    donor = checkpoints[plan.side_files_from]
    documents = {path: donor.read_side_file(path) for path in donor.side_files()}
    if "config.json" in documents:
        after = [tensor.info for tensor in plan.tensors]
        config = config_with_dtype(donor.config, list(donor.tensors.values()), after)
        if config != donor.config:
            documents["config.json"] = encode_json(config)
    documents[CARD] = model_card(plan, checkpoints, command).encode()
    last = SINGLE_FILE
    if len(plan.shards) > 1:
        last = INDEX_FILE
        documents[INDEX_FILE] = encode_json(shard_index(plan), sort=True)
    documents[MANIFEST] = encode_manifest(plan, shards, documents, command)
    return documents, last


def shard_index(plan: Plan) -> dict[str, Any]:
    """Return the object of model.safetensors.index.json."""
    return {
        "metadata": {"total_parameters": plan.parameters, "total_size": plan.nbytes},
        "weight_map": {t.name: shard.file for shard in plan.shards for t in shard.tensors},
    }


def model_card(plan: Plan, checkpoints: Sequence[Checkpoint], command: Sequence[str]) -> str:
    """Return the README.md of the output, with the metadata that the Hub shows for a merge."""
    models = [_parts(model) for model in plan.inputs]
    names = [name for parts in models for name, _ in parts]
    data = {
        "base_model": list(dict.fromkeys(names)),
        "base_model_relation": "merge",
        "library_name": "transformers" if checkpoints[plan.side_files_from].config else None,
        "license": _common_license(checkpoints),
        "tags": ["merge", "streammerge"],
    }
    rows = "\n".join(
        f"| {' + '.join(name + where for name, where in parts)} | {part_in_words(plan, index)} |"
        for index, parts in enumerate(models)
    )
    known = {key: value for key, value in data.items() if value is not None}
    return (
        f"---\n{yaml.safe_dump(known, sort_keys=False, allow_unicode=True)}---\n\n"
        f"# Merge of {len(models)} models\n\n"
        f"{_kind(plan)}, made with streammerge {plan.streammerge}: "
        f"{plan.parameters:,} parameters, {format_size(plan.nbytes)}.\n\n"
        f"| model | part |\n| --- | --- |\n{rows}\n\n"
        f"```sh\n{shlex.join(command)}\n```\n\n{_recipe(plan)}"
        f"`{MANIFEST}` holds the identity of every input and the sha256 of every file.\n"
    )


def _kind(plan: Plan) -> str:
    methods = methods_in_words(plan)
    return "A weighted average" if methods == "average" else f"Merged by {methods}"


def _recipe(plan: Plan) -> str:
    """Return the recipe file as a block, with a fence that is longer than any in it."""
    text = plan.recipe.text.strip()
    if not text:
        return ""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}yaml\n{text}\n{fence}\n\n"


def _common_license(checkpoints: Sequence[Checkpoint]) -> str | None:
    """Return the license that the cards of all inputs name; None where they do not agree."""
    found = {_license(checkpoint.card()) for checkpoint in checkpoints}
    return found.pop() if len(found) == 1 else None


def _license(card: str) -> str | None:
    """Return the license in the front matter of an untrusted card; None where it names none.

    The one line is looked for instead of parsing: YAML of some 100 kB, which cards with results of
    benchmarks have, takes seconds.
    """
    front = _FRONT_MATTER.match(card)
    line = _LICENSE.search(front[1]) if front else None
    return line[1] if line else None


def _parts(model: PlanInput) -> list[tuple[str, str]]:
    """Return name and place of a model, and of the adapter on it where there is one.

    What lies on the Hub has its name there, and the commit as its place. A path means nothing to
    others, and `a/model` would pass for a repository: its last part is a name that the Hub takes.
    """
    try:
        found = parse_reference(HUB_SCHEME + model.pinned if model.pinned else model.label)
    except CheckpointError:  # a recipe, or a path that is there no more
        return [(_last_part(model.label), "")]
    return [_part(each) for each in (found, found.adapter) if each is not None]


def _part(found: Reference) -> tuple[str, str]:
    if found.is_local:
        return _last_part(found.path), ""
    where = f" at `{found.revision}`" if found.revision else ""
    return found.repo_id, where + (f", `{found.subfolder}`" if found.subfolder else "")


def _last_part(path: str) -> str:
    parts = [part for part in re.split(r"[/\\]", path) if part.strip(".")]
    if len(parts) > 1 and parts[-1].endswith((".safetensors", ".json")):
        parts.pop()
    return re.sub(r"[^\w.-]+", "-", parts[-1]) if parts else "local"
