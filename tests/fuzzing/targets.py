"""What takes bytes from strangers: each target reads them as one file of a checkpoint, or a recipe.

A target returns nothing and may raise a StreammergeError; anything else is a bug.
"""

from __future__ import annotations

import json
import struct
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streammerge.checkpoint import Checkpoint
from streammerge.errors import CheckpointError
from streammerge.formats.folder import INDEX_FILE, SINGLE_FILE, SafetensorsCheckpoint
from streammerge.formats.safetensors import encode_header
from streammerge.outputs import WrittenShard
from streammerge.outputs.documents import model_card
from streammerge.outputs.manifest import MANIFEST, encode_json, encode_manifest, read_manifest
from streammerge.plan import Plan
from streammerge.planning import make_plan
from streammerge.recipe import average_recipe, load_recipe
from streammerge.storage import FileIdentity, IoMode, RangeReader
from streammerge.views.adapter import CONFIG, WEIGHTS, Adapter
from streammerge.views.rows import with_rows
from tests.support.raw import entry

NO_LIMIT = 2**63
SHARDS = tuple(f"model-0000{i}-of-00002.safetensors" for i in (1, 2))


class MemoryFolder:
    """A folder of files in memory; see `storage.Storage`."""

    label, pinned = "memory", ""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = dict(files)

    def name(self, path: str) -> str:
        return f"{self.label}/{path}"

    def list(self, folder: str = "") -> Mapping[str, int]:
        found = {p: len(c) for p, c in self.files.items() if p.rpartition("/")[0] == folder}
        if folder and not found:
            raise CheckpointError("there is no such folder")
        return found

    def identity(self, path: str) -> FileIdentity:
        return FileIdentity(len(self.files[path]), "1")

    def read(self, path: str, offset: int = 0, length: int | None = None) -> bytes:
        if path not in self.files:
            raise CheckpointError("there is no such file")
        return self.files[path][offset : None if length is None else offset + length]

    def open(self, path: str, mode: IoMode) -> RangeReader:
        raise AssertionError("no data is read")

    def pending(self, path: str) -> None:
        return None


def safetensors_file(header: Mapping[str, Any] | bytes, data: bytes) -> bytes:
    """A file: length, header, data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def shard(name: str, rows: int = 2) -> bytes:
    """A file with one fp32 tensor of four columns."""
    return safetensors_file({name: entry("F32", [rows, 4], 0, 16 * rows)}, bytes(16 * rows))


HEADER: dict[str, Any] = {
    "__metadata__": {"format": "pt"},
    "model.embed_tokens.weight": entry("F32", [2, 4], 0, 32),
    "model.layers.0.weight": entry("BF16", [3, 1, 2], 32, 44),
    "model.layers.0.bias": entry("F16", [], 44, 46),
    "model.position_ids": entry("I64", [1, 1], 46, 54),
    "empty": entry("U8", [0, 7], 54, 54),
}
INDEX: dict[str, Any] = {
    "metadata": {"total_size": 64},
    "weight_map": {"a.weight": SHARDS[0], "b.weight": SHARDS[1]},
}
MODEL_CONFIG: dict[str, Any] = {
    "model_type": "toy",
    "torch_dtype": "float32",
    "vocab_size": 2,
    "tie_word_embeddings": True,
    "text_config": {"vocab_size": 2, "dtype": "float32"},
    "auto_map": {"AutoModel": "modeling.Model", "AutoConfig": ["x--y.Config", None]},
    "id2label": {"0": "no", "1": "yes"},
}
ADAPTER_CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "r": 1,
    "lora_alpha": 2,
    "target_modules": ["q_proj", "v.*"],
    "rank_pattern": {"layers.0.q_proj": 1},
    "alpha_pattern": {},
    "use_rslora": False,
    "modules_to_save": None,
}
RECIPE = """\
merge_method: ties  # a comment
base_model: org/base@main
models:
  - model: org/a
    parameters: {weight: 0.5, density: [0.1, 1.0]}
  - model: &b ./b
    parameters:
      weight:
        - filter: mlp
          value: 1e-3
        - value: 0.2
rules:
  - tensors: ["*.norm.weight"]
    action: keep
parameters: {normalize: true}
dtype: bfloat16
seed: 7
skip: [lm_head.weight]
"""
CARD = "---\nlicense: mit\ntags:\n- x\nmodel-index:\n- name: y\n---\n# Title\nlicense: other\n"


def read_header_of(data: bytes) -> None:
    """As the only weight file of a folder."""
    checkpoint = SafetensorsCheckpoint(MemoryFolder({SINGLE_FILE: data}))
    encode_header(list(checkpoint.tensors.values()))
    checkpoint.identity()


def read_header_text(data: bytes) -> None:
    """As a header whose length is right, since a fuzzer seldom comes upon that by itself."""
    read_header_of(safetensors_file(data, bytes(54)))


def read_index(data: bytes) -> None:
    """As the index of two shards."""
    files = {INDEX_FILE: data, SHARDS[0]: shard("a.weight"), SHARDS[1]: shard("b.weight")}
    SafetensorsCheckpoint(MemoryFolder(files)).identity()


def _pair(files: Mapping[str, bytes]) -> list[Checkpoint]:
    """A model with these files, and one with another vocabulary."""
    weights = "model.embed_tokens.weight"
    other = encode_json(MODEL_CONFIG | {"vocab_size": 3})
    folders = [
        {SINGLE_FILE: shard(weights), **files},
        {SINGLE_FILE: shard(weights, 3), "config.json": other},
    ]
    return with_rows([SafetensorsCheckpoint(MemoryFolder(folder)) for folder in folders], "max")


def _plan(models: list[Checkpoint]) -> Plan:
    return make_plan(average_recipe(["a", "b"], [2, 1], "float16", [], [], None), models, NO_LIMIT)


def _plan_with(files: Mapping[str, bytes]) -> None:
    """Plan everything that a config or a card has a say in."""
    models = _pair(files)
    for path in models[0].side_files():
        models[0].read_side_file(path)
    encode_json(models[0].config)
    model_card(_plan(models), models, ["streammerge"]).encode()


def read_config(data: bytes) -> None:
    """As a config.json, with what is read of it for a plan, views and documents."""
    _plan_with({"config.json": data})


def read_modules(data: bytes) -> None:
    """As the modules.json of a sentence-transformers model."""
    _plan_with({"modules.json": data, "1_Pooling/config.json": b"{}"})


def read_card(data: bytes) -> None:
    """As a README.md."""
    _plan_with({"README.md": data, "config.json": encode_json(MODEL_CONFIG)})


def read_adapter(data: bytes) -> None:
    """As the config of a PEFT adapter."""
    names = (f"base_model.model.layers.0.q_proj.lora_{factor}.weight" for factor in "AB")
    header = {name: entry("F32", [1, 1], 4 * i, 4 * i + 4) for i, name in enumerate(names)}
    Adapter(MemoryFolder({CONFIG: data, WEIGHTS: safetensors_file(header, bytes(8))})).identity()


def read_manifest_of(data: bytes) -> None:
    """As the manifest of an output."""
    read_manifest(MemoryFolder({MANIFEST: data}))


def read_recipe(data: bytes) -> None:
    """As a recipe in YAML; references in it lead nowhere."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "recipe.yml")
        path.write_bytes(data)
        recipe = load_recipe(path)
        recipe.model_dump_json()
        recipe.treatments(["model.layers.0.mlp.weight", "lm_head.weight"])["lm_head.weight"]


@dataclass(frozen=True)
class Target:
    """What reads a file, a good one, and how the JSON in it becomes bytes (None: it has none)."""

    read: Callable[[bytes], None]
    seed: bytes
    content: Mapping[str, Any] | list[Any] | None = None
    build: Callable[[Any], bytes] = lambda content: json.dumps(content).encode()


def _manifest_seed() -> Any:
    plan = _plan(_pair({}))
    shards = [WrittenShard(SINGLE_FILE, 100, "0" * 64, {"x": 1}, {"memory": 1})]
    return json.loads(encode_manifest(plan, shards, {"config.json": b"{}"}, ["streammerge"]))


def _file_of(header: Any) -> bytes:
    return safetensors_file(json.dumps(header).encode(), bytes(54))


def _json_target(read: Callable[[bytes], None], content: Any) -> Target:
    return Target(read, json.dumps(content).encode(), content)


TARGETS: dict[str, Target] = {
    "header": Target(read_header_of, _file_of(HEADER), HEADER, _file_of),
    "header_text": _json_target(read_header_text, HEADER),
    "index": _json_target(read_index, INDEX),
    "config": _json_target(read_config, MODEL_CONFIG),
    "modules": _json_target(read_modules, [{"idx": 0, "path": "", "type": "x"}, {"path": "1_P"}]),
    "adapter": _json_target(read_adapter, ADAPTER_CONFIG),
    "manifest": _json_target(read_manifest_of, _manifest_seed()),
    "recipe": Target(read_recipe, RECIPE.encode()),
    "card": Target(read_card, CARD.encode()),
}
