"""Which tensors have a row for each token: input embeddings and output heads, by their names."""

from __future__ import annotations

_INPUTS = (
    "embed_tokens",
    "embed_tokens_per_layer",
    "tok_embeddings",
    "word_embeddings",
    "wte",
    "embed_in",
    "shared",
    "backbone.embeddings",
)
_HEADS = (
    "lm_head",
    "lm_head.decoder",
    "lm_head.linear",
    "embed_out",
    "output",
    "output_layer",
    "predictions",
    "predictions.decoder",
    "vocab_projector",
)


def _ends(name: str, modules: tuple[str, ...]) -> bool:
    module, _, kind = name.rpartition(".")
    return kind in ("weight", "bias") and f".{module}".endswith(tuple(f".{m}" for m in modules))


def is_input_embedding(name: str) -> bool:
    """Whether a tensor of this name is looked up by token."""
    return _ends(name, _INPUTS)


def is_vocabulary(name: str) -> bool:
    """Whether a tensor of this name may have a row for each token."""
    return _ends(name, _INPUTS + _HEADS)
