"""Tiny Llama models with tiny tokenizers, whose rows say which token and model they are."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tests.support.checkpoints import read_checkpoint, tiny_llama

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def write_tokenizer(
    folder: Path, words: Sequence[str], added: Sequence[str] = (), **options: Any
) -> None:
    """Write a tokenizer of whole words, numbered in order, and added tokens after them."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        from tokenizers import Tokenizer
        from tokenizers.models import BPE
        from transformers import PreTrainedTokenizerFast

        vocabulary = {word: i for i, word in enumerate(words)}
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(BPE(vocab=vocabulary, merges=[])), **options
        )
        tokenizer.add_tokens(list(added))
        tokenizer.save_pretrained(folder)


def loaded_vocabulary(folder: Path) -> dict[str, int]:
    """What transformers finds in a folder."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        from transformers import AutoTokenizer

        return dict(AutoTokenizer.from_pretrained(folder).get_vocab())


def model_with_tokens(
    folder: Path,
    seed: int,
    words: Sequence[str],
    added: Sequence[str] = (),
    *,
    rows: int | None = None,
    tied: bool = False,
    dtype: torch.dtype = torch.bfloat16,
    **options: Any,
) -> Path:
    """Write a model and its tokenizer; more rows than tokens are padding."""
    count = len(words) + len(added) if rows is None else rows
    tiny_llama(folder, seed, tied=tied, dtype=dtype, vocab=count)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for number, name in enumerate(sorted({EMBEDDING, HEAD} & tensors.keys())):
        values = torch.randn(
            tensors[name].shape, generator=torch.Generator().manual_seed(seed * 7 + number)
        )
        tensors[name] = values.to(dtype)
    save_file(tensors, path, metadata={"format": "pt"})
    write_tokenizer(folder, words, added, **options)
    return folder


def rows_by_token(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """The row of each token of a written model."""
    tensor = read_checkpoint(folder)[name]
    return {token: tensor[i] for token, i in loaded_vocabulary(folder).items() if i < len(tensor)}
