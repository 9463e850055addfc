"""One small registry: names to things, used by every folder that can be extended."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class UnknownNameError(LookupError):
    """A name that nobody registered; its text lists what there is."""


class Registry(Generic[T]):
    """Things by name, with aliases.

    Args:
        what: what is registered, in the singular, for messages.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._items: dict[str, T] = {}
        self._aliases: dict[str, str] = {}

    def add(self, name: str, item: T, aliases: tuple[str, ...] = ()) -> None:
        """Register an item under a name and its aliases, each of which must be new."""
        for key in (name, *aliases):
            if key in self._items or key in self._aliases:
                raise ValueError(f"{self._what} {key!r} is registered twice")
        self._items[name] = item
        self._aliases |= dict.fromkeys(aliases, name)

    def get(self, name: str) -> T:
        """Return the item of that name or alias.

        Raises:
            UnknownNameError: there is none; the message suggests what is near.
        """
        found = self._items.get(self._aliases.get(name, name))
        if found is None:
            near = difflib.get_close_matches(name, [*self._items, *self._aliases], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(self)}"
            raise UnknownNameError(f"no {self._what} is called {name!r}{hint}")
        return found

    def __contains__(self, name: str) -> bool:
        return name in self._items or name in self._aliases

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._items))
