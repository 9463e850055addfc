"""A PEFT adapter, read: which tensors of a base model it changes, and how.

LoRA (arXiv:2106.09685): W becomes W + s·B·A with s = α/r, or α/√r with rank stabilisation
(arXiv:2312.03732). The layout of the files is that of the peft library: `adapter_config.json`, and
`adapter_model.safetensors` with the keys `base_model.model.<module>.lora_A.weight` and `….lora_B…`,
`….lora_embedding_A` and `…_B` for embeddings, and whole parameters by their own name.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from streammerge.errors import CheckpointError, HeaderError, UnsupportedError, listing, printable
from streammerge.formats.limits import refuse_length
from streammerge.formats.safetensors import Header, load_json_object, read_header
from streammerge.formats.side_files import select_side_files
from streammerge.storage import FileIdentity, Storage
from streammerge.tensors import TensorInfo
from streammerge.views.patterns import Patterns

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<factor>(embedding_)?[AB])(\.weight)?")
_PAIRS = ({"A", "B"}, {"embedding_A", "embedding_B"})
_OTHER = re.compile(r"\.lora_\w+(\.\w+)?")
_WRAPPERS = re.compile(r"\.(base_layer|modules_to_save(\.default)?)(?=\.)")
_MAX_CARD = 1_000_000

# What changes the meaning of the factors, or adds something that no weight can hold.
_REFUSED = {
    "use_dora": "DoRA normalises the columns of the whole matrix",
    "use_qalora": "QALoRA is bound to a quantized base",
    "use_bdlora": "block-diagonal LoRA has factors of another shape",
    "kasa_config": "KaSA changes the base's singular values",
    "alora_invocation_tokens": "activated LoRA depends on the text and cannot be merged",
    "arrow_config": "Arrow routes between adapters",
    "monteclora_config": "Monte Carlo LoRA samples its factors",
    "layer_replication": "it copies layers of its base",
    "lora_bias": "its factor B has a bias",
    "target_parameters": "it targets parameters of stacked experts",
    "trainable_token_indices": "it retrains single rows of the embedding",
    "megatron_config": "its layers are Megatron's",
}
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_HARMLESS = {"use_rslora", "velora_config", "eva_config", "lora_ga_config", "corda_config"}
_HARMLESS |= {"loftq_config", "runtime_config"}
_PEFT_WAY = "Apply it with peft (`model.merge_and_unload()`), save the model, and merge that."


@dataclass(frozen=True, slots=True)
class Factor:
    """One of the two matrices, as it is stored."""

    info: TensorInfo
    offset: int


@dataclass(frozen=True, slots=True)
class Update:
    """B and A for one tensor, and what their product is multiplied by.

    Attributes:
        a: (r, in) as stored; in a convolution (r, in, height, width).
        b: (out, r).
        scaling: s.
        embedding: they change an embedding, whose rows are A's columns.
    """

    a: Factor
    b: Factor
    scaling: float
    embedding: bool


class Adapter:
    """The files of an adapter; opening reads its config and its header."""

    def __init__(self, storage: Storage) -> None:
        """Open an adapter.

        Raises:
            CheckpointError: it is no adapter, breaks the format, or is refused on purpose.
        """
        self.label = storage.label
        self.storage = storage
        self._listed = storage.list()
        self._raw = self._read_config()
        self.config = self._parse_config()
        if WEIGHTS not in self._listed:
            raise UnsupportedError(
                f"{self.label} has no {WEIGHTS}",
                "An adapter_model.bin is a pickle, which can run code on loading: convert it once "
                "with peft (`model.save_pretrained(folder)`).",
            )
        self.header: Header = read_header(storage, WEIGHTS)
        self.updates, self.whole = self._sort_tensors()

    def _read_config(self) -> bytes:
        if CONFIG not in self._listed:
            raise CheckpointError(
                f"{self.label} is no PEFT adapter: it has no {CONFIG}",
                f"Give a folder with {CONFIG} and {WEIGHTS} after the +.",
            )
        try:
            refuse_length("the file", self._listed[CONFIG], self._listed.get(WEIGHTS, 0))
        except HeaderError as error:
            raise self._unreadable(error) from error
        return self.storage.read(CONFIG)

    def _unreadable(self, error: HeaderError) -> CheckpointError:
        return CheckpointError(f"{self.label}/{CONFIG}: {error.message}", "Download it again.")

    def _parse_config(self) -> Mapping[str, Any]:
        try:
            config = load_json_object(self._raw, "the file")
        except HeaderError as error:
            raise self._unreadable(error) from error
        kind = config.get("peft_type")
        if kind != "LORA":
            raise self._refused(f"a PEFT adapter of type {printable(repr(kind))}", "")
        for key, value in config.items():
            if value and key in _REFUSED:
                raise self._refused(f"an adapter with {key}", _REFUSED[key])
            variant = key.startswith("use_") or key.endswith("_config")
            if value and variant and key not in _HARMLESS:
                raise self._refused(f"an adapter with {printable(key)}", "the variant is unknown")
        start = config.get("init_lora_weights")
        if isinstance(start, str) and start.startswith(_CHANGES_BASE):
            raise UnsupportedError(
                f"{self.label} was initialised by {printable(start, 40)}, which changed its base, "
                "so it does not fit the base as it is",
                "Convert it to a plain LoRA with peft: `save_pretrained(folder, "
                "path_initial_model_for_weight_conversion=…)`.",
            )
        return config

    def _refused(self, what: str, why: str) -> UnsupportedError:
        return UnsupportedError(
            f"{self.label} is {what}, which is not supported{f': {why}' if why else ''}", _PEFT_WAY
        )

    def _sort_tensors(self) -> tuple[dict[str, Update], dict[str, str]]:
        """Return the updates by the tensor that they change, and the keys of whole ones."""
        pairs: dict[str, dict[str, str]] = {}
        whole: dict[str, str] = {}
        strange = []
        for key in self.header.tensors:
            name = key.removeprefix(_PREFIX)
            plain = _WRAPPERS.sub("", name)
            found = _FACTOR.fullmatch(name)
            if found and name != key:
                pairs.setdefault(found["module"], {})[found["factor"]] = key
            elif name == key or plain in whole or _OTHER.search(name):
                strange.append(key)
            else:
                whole[plain] = key
        strange += [k for pair in pairs.values() if set(pair) not in _PAIRS for k in pair.values()]
        if strange or not (pairs or whole):
            raise CheckpointError(
                f"{self.label}/{WEIGHTS} holds {len(strange)} tensors that no LoRA adapter has:\n"
                f"{listing(strange)}"
                if strange
                else f"{self.label}/{WEIGHTS} is empty",
                "Save the adapter again with peft, or apply it there.",
            )
        patterns = Patterns(self.label, self.config)
        updates = {
            f"{module}.weight": self._update(module, pair, patterns)
            for module, pair in pairs.items()
        }
        return updates, whole

    def _update(self, module: str, pair: Mapping[str, str], patterns: Patterns) -> Update:
        a, b = (
            Factor(self.header.tensors[key], self.header.locations[key].offset)
            for _, key in sorted(pair.items())
        )
        rank, alpha = patterns.rank(module), patterns.alpha(module)
        shapes = a.info.shape, b.info.shape
        floats = a.info.kind == b.info.kind == "float"
        if not floats or min(map(len, shapes)) < 2 or {shapes[0][0], shapes[1][1]} != {rank}:
            raise CheckpointError(
                f"{self.label}: the factors of {printable(module)} are {a.info.dtype} "
                f"{list(shapes[0])} and {b.info.dtype} {list(shapes[1])}, its rank is {rank}",
                "The adapter's files do not belong together: download or save it again.",
            )
        root = math.sqrt(rank) if self.config.get("use_rslora") else rank
        return Update(a, b, alpha / root, "embedding_A" in pair)

    def identity(self) -> tuple[FileIdentity, str]:
        """Return the weight file's identity, and a sha256 over its header and the config."""
        digest = hashlib.sha256(self.header.raw)
        digest.update(self._raw)
        return self.storage.identity(WEIGHTS), digest.hexdigest()

    @cached_property
    def side_files(self) -> Mapping[str, FileIdentity]:
        """Path and identity of each side file, a tokenizer above all."""
        return {path: self.storage.identity(path) for path in select_side_files(self.storage, {})}

    @cached_property
    def card(self) -> str:
        """README.md; empty where there is none."""
        if self._listed.get("README.md", _MAX_CARD + 1) > _MAX_CARD:
            return ""
        return self.storage.read("README.md").decode(errors="replace")
