"""A PEFT adapter applied to its base while it is read (`model+adapter`)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from functools import partial

from streammerge.errors import CheckpointError, listing, printable
from streammerge.formats import Checkpoint, as_read
from streammerge.formats.safetensors import Location
from streammerge.formats.side_files import is_tokenizer_file
from streammerge.storage import Download, FileIdentity, IoMode, RangeReader, Storage
from streammerge.tensors import TensorInfo
from streammerge.views.adapter import WEIGHTS, Adapter, Factor, Update
from streammerge.views.lowrank import LowRank, LowRankReader, Matrix, Working
from streammerge.views.vocabulary import is_vocabulary
from streammerge.views.wrapping import Wrapping, with_vocabulary

_VIRTUAL, _ADAPTER = "lora:", "adapter:"
_LICENSE = re.compile(r"^license:\s*(\S+)", re.M)


class LoraApplied(Wrapping):
    """A checkpoint with an adapter applied; see `formats.Checkpoint`.

    Args:
        base: the model that the adapter was trained on.
        adapter: the adapter's folder.

    Raises:
        CheckpointError: the adapter is broken, refused on purpose, or does not fit the base.
    """

    def __init__(self, base: Checkpoint, adapter: Storage) -> None:
        self._adapter = Adapter(adapter)
        super().__init__(base, f"{base.label}+{self._adapter.label}")
        if base.pinned:  # or what is opened again by this name would lack the adapter
            self.pinned = f"{base.pinned}+{adapter.pinned or adapter.label}"
        self._refuse_unmatched()
        self._replace_whole()
        self._changed = {
            name: self._low_rank(name, update) for name, update in self._adapter.updates.items()
        }
        for name, changed in self._changed.items():
            self._moved[name] = Location(_VIRTUAL + name, 0, changed.dtype)
        self._working = Working()
        self._take_tokenizer()
        embeddings = [n for n, update in self._adapter.updates.items() if update.embedding]
        if embeddings and self.config.get("tie_word_embeddings") is True:
            self.notes.append(
                f"{self._adapter.label} changes {printable(embeddings[0])}, and with it the output "
                "head that is tied to it, as peft does when it merges"
            )

    def _refuse_unmatched(self) -> None:
        wanted = [*self._adapter.updates, *self._adapter.whole]
        unmatched = [name for name in wanted if name not in self.base.tensors]
        if unmatched:
            raise CheckpointError(
                f"{self._adapter.label} changes {len(unmatched)} tensors that {self.base.label} "
                f"does not have:\n{listing(unmatched)}",
                "Apply it to the model that it was trained on (base_model_name_or_path in its "
                "config), or apply it with peft and merge the result.",
            )

    def _replace_whole(self) -> None:
        """Put the parameters that the adapter holds whole in the place of the base's."""
        resized: dict[tuple[int, int], str] = {}
        for name, key in self._adapter.whole.items():
            old, new = self.base.tensors[name], self._adapter.header.tensors[key]
            if old.shape != new.shape and is_vocabulary(name) and old.shape[1:] == new.shape[1:]:
                resized[old.shape[0], new.shape[0]] = name
            elif old.shape != new.shape or old.kind != new.kind:
                raise self._misfit(name, f"{new.dtype} {list(new.shape)}")
            place = self._adapter.header.locations[key]
            dtype = new.dtype if new.dtype != old.dtype else ""
            self.tensors[name] = replace(old, shape=new.shape)
            self._moved[name] = Location(_ADAPTER + place.file, place.offset, dtype)
        if len(resized) > 1:
            raise self._misfit(next(iter(resized.values())), "another number of tokens than it has")
        for before, after in resized:
            self.put_config(with_vocabulary(self.config, (before,), after))
            self.notes.append(
                f"{self._adapter.label} resizes the vocabulary from {before:,} to {after:,} rows"
            )

    def _low_rank(self, name: str, update: Update) -> LowRank:
        key = self._adapter.whole.get(name)  # W itself may be the adapter's
        source = self._adapter.header.tensors[key] if key else as_read(self.base, name)
        found = self._factors(update, source) if source.kind == "float" else None
        if found is None:
            shapes = f"{list(update.b.info.shape)} and A {list(update.a.info.shape)}"
            raise self._misfit(name, f"the factors B {shapes}")
        return LowRank(source, *found, update.scaling)

    def _factors(self, update: Update, w: TensorInfo) -> tuple[Matrix, Matrix] | None:
        """Return L and R with W + s·L·R, or None where the shapes do not fit.

        A linear layer may store W as (out, in) or, like Conv1D of GPT-2, as (in, out); the shapes
        tell, and `fan_in_fan_out` does where both are equal.
        """
        a, b = update.a.info.shape, update.b.info.shape
        rank, ones = a[0], set(b[2:])
        upright = w.shape == (b[0], *a[1:]) and ones <= {1} and not update.embedding
        turned = w.shape == (*a[1:], b[0]) and len(b) == 2
        if turned and (not upright or self._adapter.config.get("fan_in_fan_out")):
            left = self._matrix(update.a, w.shape[0], rank, transposed=True)
            return left, self._matrix(update.b, rank, w.shape[1], transposed=True)
        if upright:
            left = self._matrix(update.b, w.shape[0], rank, transposed=False)
            return left, self._matrix(update.a, rank, w.numel // w.shape[0], transposed=False)
        return None

    def _matrix(self, factor: Factor, rows: int, columns: int, *, transposed: bool) -> Matrix:
        storage, dtype = self._adapter.storage, factor.info.dtype
        return Matrix(storage, WEIGHTS, factor.offset, dtype, rows, columns, transposed)

    def _misfit(self, name: str, what: str) -> CheckpointError:
        old = self.base.tensors[name]
        return CheckpointError(
            f"{self._adapter.label} has {what} for {printable(name)}, which is {old.dtype} "
            f"{list(old.shape)} in {self.base.label}",
            "Apply the adapter to the model that it was trained on.",
        )

    def _take_tokenizer(self) -> None:
        """Show the adapter's tokenizer, where it has one: it was trained with that."""
        files = {p: n for p, n in self._adapter.side_files.items() if is_tokenizer_file(p)}
        if "tokenizer_config.json" in files:
            for path in [path for path in self.side_files() if is_tokenizer_file(path)]:
                self.hide_file(path)
            for path, identity in files.items():
                self.put_file(path, identity.size, partial(self._adapter.storage.read, path))

    def downloads(self, names: Iterable[str]) -> list[Download]:
        """Return what the base needs, and the adapter's file."""
        pending = self._adapter.storage.pending(WEIGHTS)
        return [*super().downloads(names), *([pending] if pending is not None else [])]

    @property
    def scratch(self) -> int:
        """Bytes that a thread needs to read it; see `Checkpoint`."""
        return super().scratch + max((t.scratch for t in self._changed.values()), default=0)

    def open(self, file: str, mode: IoMode = "auto") -> RangeReader:
        """Open a changed tensor, the adapter's own file, or one of the base's."""
        name = file.removeprefix(_VIRTUAL)
        if name != file and name in self._changed:
            key = self._adapter.whole.get(name)
            if key:
                reader = self._adapter.storage.open(WEIGHTS, mode)
                offset = self._adapter.header.locations[key].offset
            else:
                place = self.base.locate(name)
                reader, offset = self.base.open(place.file, mode), place.offset
            return LowRankReader(self._changed[name], reader, offset, self._working)
        if file == _ADAPTER + WEIGHTS:
            return self._adapter.storage.open(WEIGHTS, mode)
        return self.base.open(file, mode)

    def identity(self) -> dict[str, tuple[FileIdentity, str]]:
        """Return the base's files and the adapter's."""
        return {**self.base.identity(), _ADAPTER + WEIGHTS: self._adapter.identity()}

    def card(self) -> str:
        """Return the base's README.md where the adapter is under the same license, else nothing."""
        ours, theirs = (_LICENSE.search(text) for text in (self.base.card(), self._adapter.card))
        agree = ours is not None and theirs is not None and ours[1] == theirs[1]
        return self.base.card() if agree else ""
