"""Tokens and rows: models with different tokenizers brought to one vocabulary."""

from streammerge.tokenizers.apply import apply_tokenizer
from streammerge.tokenizers.templates import apply_chat_template
from streammerge.tokenizers.wish import TokenizerWish, tokenizer_wish

__all__ = ["TokenizerWish", "apply_chat_template", "apply_tokenizer", "tokenizer_wish"]
