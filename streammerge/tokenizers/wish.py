"""What a recipe says about the tokenizer, checked; the keys are mergekit's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from streammerge.errors import RecipeError


class _Wish(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)


class ZeroRow(_Wish):
    """A row of zeros."""

    kind: Literal["zero"]


class TokenRow(_Wish):
    """The row of another token.

    Attributes:
        model: whose; as it is named in the recipe.
        token, token_id: exactly one of them.
    """

    kind: Literal["model_token"]
    model: str
    token: str | None = None
    token_id: Annotated[int, Field(ge=0)] | None = None


class TokenWish(_Wish):
    """Where the row of a token comes from.

    Attributes:
        source: a model, whose row of this token it is; the row of another token; zero; or, where
            nothing is said, what holds for all tokens.
        force: every model gets it, not only those that lack the token.
    """

    source: str | ZeroRow | TokenRow | None = None
    force: bool = False


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


class TokenizerWish(_Wish):
    """The `tokenizer:` of a recipe.

    Attributes:
        source: base, union, or a model.
        tokens: rules for single tokens; those that the vocabulary lacks are added to it.
        pad_to_multiple_of: the output's rows are filled up to such a number.
        embeddings: globs of the tensors with a row for each token; by their names where empty.
    """

    source: str = "union"
    tokens: dict[str, TokenWish] = Field(default_factory=dict)
    pad_to_multiple_of: Annotated[int, Field(ge=1, le=2**20)] | None = None
    embeddings: Annotated[tuple[str, ...], BeforeValidator(_as_tuple)] = ()


def tokenizer_wish(source: str | None, tokenizer: Mapping[str, Any] | None) -> TokenizerWish | None:
    """Return what a recipe's `tokenizer_source` or `tokenizer` asks for; None where neither is.

    Raises:
        RecipeError: both are given, or one makes no sense; names the key.
    """
    if source is not None and tokenizer is not None:
        raise RecipeError(
            "tokenizer_source and tokenizer are both given", "Write `tokenizer: {source: …}` only."
        )
    if source is None and tokenizer is None:
        return None
    try:
        wish = TokenizerWish.model_validate({"source": source} if tokenizer is None else tokenizer)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in ("tokenizer", *first["loc"]))
        raise RecipeError(
            f"{place}: {first['msg']}", "See docs/guide.md for the keys of `tokenizer:`."
        ) from error
    for token, rule in wish.tokens.items():
        where = f"tokenizer.tokens.{token!r}"
        if isinstance(rule.source, TokenRow) and (rule.source.token is None) == (
            rule.source.token_id is None
        ):
            raise RecipeError(f"{where}: give either token or token_id", "Name one token.")
        if rule.force and rule.source is None:
            raise RecipeError(f"{where}: force needs a source", "Say which row all models get.")
    return wish
