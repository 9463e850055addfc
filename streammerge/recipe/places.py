"""Where the parts of a recipe stand in the file that it was read from, for messages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from pydantic import PrivateAttr

from streammerge.recipe.settings import Data

Path = tuple[str | int, ...]
"""Where something stands in a recipe: keys and numbers of list items, from the top."""


class Placed(Data):
    """Data that remember lines of a file; these are no part of the data, and not in the JSON."""

    _file: str = PrivateAttr("")
    _text: str = PrivateAttr("")
    _lines: Mapping[Path, int] = PrivateAttr(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        """Whether both say the same, wherever they were read."""
        return type(self) is type(other) and self.model_dump() == other.model_dump()

    @property
    def file(self) -> str:
        """The file it was read from; "" for none."""
        return self._file

    @property
    def text(self) -> str:
        """All of that file."""
        return self._text

    def read_from(self, file: str, lines: Mapping[Path, int], text: str) -> Self:
        """Return it with the lines of its parts in a file."""
        self._file, self._lines, self._text = file, lines, text
        return self

    def place(self, path: Path) -> str:
        """Return file and line of a part, or its keys where it came from no file.

        A part that has no line of its own stands where the nearest one above it does.
        """
        for length in range(len(path), -1, -1):
            if path[:length] in self._lines:
                return f"{self._file}, line {self._lines[path[:length]]}"
        return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)[1:]

    def place_of(self, key: str, model: int | None = None) -> str:
        """Return where a parameter is set.

        Args:
            key: the parameter.
            model: index of the model that it is set for; None where it is set for all of them.
        """
        exact: Path = (*(("models", model) if model is not None else ()), "parameters", key)
        for path in self._lines if exact not in self._lines else ():
            # A model of slices is made of several sources, and the first that sets it will do.
            above = path[:-2]
            at_source = "sources" in above
            inside = "model" in above or ("models" in above and not at_source)
            if path[-2:] == ("parameters", key) and at_source == (model is not None) and not inside:
                return self.place(path)
        return self.place(exact)
