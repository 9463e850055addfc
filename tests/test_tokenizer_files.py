"""Vocabularies as transformers has them after loading, and chat templates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from streammerge.checkpoint import open_checkpoint
from streammerge.tokenizers import apply_chat_template, tokenizer_wish
from streammerge.tokenizers.apply import apply_tokenizer
from streammerge.tokenizers.templates import template_of
from streammerge.tokenizers.vocabulary import read_vocabulary
from tests.support.checkpoints import write_checkpoint, write_json
from tests.support.merging import refusal
from tests.support.outputs import read_json
from tests.support.tokens import loaded_vocabulary, write_tokenizer
from tests.support.views import merge_views


def folder(root: Path, rows: int = 8) -> Path:
    tensors = {"model.embed_tokens.weight": torch.ones(rows, 4)}
    return write_checkpoint(root, tensors, config={"vocab_size": rows, "model_type": "llama"})


def vocabulary_of(path: Path) -> dict[str, int]:
    return read_vocabulary(open_checkpoint(path)).rows


@pytest.mark.parametrize("kind", ["BPE", "WordLevel", "WordPiece", "Unigram"])
def test_every_kind_of_tokenizer_json(tmp_path: Path, kind: str) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokens = {"[UNK]": 0, "a": 1, "b": 2, "ab": 3, "c": 4}
    model = {
        "BPE": lambda: models.BPE(vocab=tokens, merges=[("a", "b")]),
        "WordLevel": lambda: models.WordLevel(vocab=tokens, unk_token="[UNK]"),
        "WordPiece": lambda: models.WordPiece(vocab=tokens, unk_token="[UNK]"),
        "Unigram": lambda: models.Unigram([(t, -1.0) for t in tokens], unk_id=0),
    }[kind]()
    path = folder(tmp_path)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(model), unk_token="[UNK]", pad_token="[PAD]", bos_token="<s>"
    )
    tokenizer.add_tokens(["extra", "b"])
    tokenizer.save_pretrained(path)
    assert vocabulary_of(path) == loaded_vocabulary(path) == dict(tokenizer.get_vocab())


def test_special_tokens_that_only_the_config_names(tmp_path: Path) -> None:
    write_tokenizer(folder(tmp_path), ["<unk>", "a"], ["<s>"], unk_token="<unk>")
    config = read_json(tmp_path / "tokenizer_config.json")
    config |= {"pad_token": "<pad>", "eos_token": "a", "extra_special_tokens": ["<i>"]}
    config["added_tokens_decoder"] = {"2": added("<s>"), "3": added("<new>")}
    write_json(tmp_path / "tokenizer_config.json", config)
    assert vocabulary_of(tmp_path) == loaded_vocabulary(tmp_path)
    assert vocabulary_of(tmp_path).keys() >= {"<pad>", "<i>", "<new>"}


def added(content: str) -> dict[str, Any]:
    flags = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized"), False)
    return {"content": content, "special": True, **flags}


def test_older_files(tmp_path: Path) -> None:
    path = folder(tmp_path / "txt")
    (path / "vocab.txt").write_text("[PAD]\n[UNK]\nhello\n\x85odd\n##x")
    rows = {"[PAD]": 0, "[UNK]": 1, "hello": 2, "\x85odd": 3, "##x": 4}
    assert vocabulary_of(path) == rows
    path = folder(tmp_path / "json")
    write_json(path / "vocab.json", {"a": 0, "b": 1})
    write_json(path / "added_tokens.json", {"<x>": 3, "<w>": 2})
    assert vocabulary_of(path) == {"a": 0, "b": 1, "<w>": 2, "<x>": 3}


@pytest.mark.parametrize("settings", [{"special": True}, {"lstrip": True, "normalized": False}])
def test_the_unions_file_is_read_back_with_its_settings(
    tmp_path: Path, settings: dict[str, bool]
) -> None:
    from tokenizers import AddedToken
    from transformers import AutoTokenizer

    a, b = folder(tmp_path / "a"), folder(tmp_path / "b")
    write_tokenizer(a, ["<unk>", "a", "b"], ["<s>"], unk_token="<unk>")
    write_tokenizer(b, ["<unk>", "c", "a"], [AddedToken("<t>", **settings), "b"])  # type: ignore[list-item]
    wish = tokenizer_wish("union", None)
    assert wish is not None
    merge_views(apply_tokenizer([open_checkpoint(p) for p in (a, b)], 0, wish), tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.get_vocab() == {"<unk>": 0, "a": 1, "b": 2, "<s>": 3, "c": 4, "<t>": 5}
    token = next(t for t in tokenizer.added_tokens_decoder.values() if t.content == "<t>")
    assert all(getattr(token, key) == value for key, value in settings.items())
    assert tokenizer("b")["input_ids"] == [2]
    assert vocabulary_of(tmp_path / "out") == tokenizer.get_vocab()


BROKEN = {
    "no JSON": ("tokenizer.json", "{", "not JSON"),
    "no model": ("tokenizer.json", "{}", "vocabulary"),
    "no ids": ("tokenizer.json", '{"model": {"vocab": {"a": "x"}}}', "vocabulary"),
    "negative": ("tokenizer.json", '{"model": {"vocab": {"a": -1}}}', "vocabulary"),
    "far too large": ("tokenizer.json", '{"model": {"vocab": {"a": 99999999999}}}', "vocabulary"),
    "added without content": (
        "tokenizer.json",
        '{"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 1}]}',
        "without content",
    ),
    "added without id": (
        "tokenizer.json",
        '{"model": {"vocab": {"a": 0}}, "added_tokens": [{"content": "x"}]}',
        "vocabulary",
    ),
    "list of numbers": ("tokenizer.json", '{"model": {"vocab": [[1, 2]]}}', "vocabulary"),
    "decoder without ids": (
        "tokenizer_config.json",
        '{"added_tokens_decoder": {"x": "y"}}',
        "without ids",
    ),
    "token a number": ("tokenizer_config.json", '{"bos_token": 5}', "the token 5"),
    "vocabulary a list": ("vocab.json", '{"a": [1]}', "vocabulary"),
}


@pytest.mark.parametrize(("file", "content", "says"), BROKEN.values(), ids=BROKEN)
def test_broken_files_are_refused_by_name(
    tmp_path: Path, file: str, content: str, says: str
) -> None:
    path = folder(tmp_path)
    if file == "tokenizer_config.json":
        write_tokenizer(path, ["a"])
    (path / file).write_text(content)
    refusal(lambda: vocabulary_of(path), says, file.replace(".", r"\."))


@pytest.mark.parametrize("file", ["tokenizer.model", "tekken.json", ""])
def test_tokenizers_that_only_their_library_reads_are_refused(tmp_path: Path, file: str) -> None:
    path = folder(tmp_path)
    if file:
        (path / file).write_text("x")
    refusal(lambda: vocabulary_of(path), file or "no tokenizer", "save_pretrained")


def test_added_tokens_need_a_tokenizer_json(tmp_path: Path) -> None:
    path = folder(tmp_path)
    (path / "vocab.txt").write_text("a\nb\n")
    wish = tokenizer_wish(None, {"source": "base", "tokens": {"new": {}}})
    assert wish is not None
    refusal(lambda: apply_tokenizer([open_checkpoint(path)] * 2, 0, wish), r"tokenizer\.json")


CHAT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "user", "content": "Bye"},
]
RENDERED = {
    "chatml": "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n"
    "<|im_start|>assistant\n",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nHello<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s> [INST] Be kind.\n\nHi [/INST] Hello</s> [INST] Bye [/INST]",
    "alpaca": "Be kind.\n\n### Instruction:\nHi\n\n### Response:\nHello\n\n"
    "### Instruction:\nBye\n\n### Response:\n",
    "exaone": "[|system|]Be kind.[|endofturn|]\n[|user|]Hi\n[|assistant|]Hello[|endofturn|]\n"
    "[|user|]Bye\n[|assistant|]",
}


@pytest.mark.parametrize("name", RENDERED)
def test_named_templates_say_what_the_models_expect(tmp_path: Path, name: str) -> None:
    from transformers import AutoTokenizer

    path = folder(tmp_path / "a")
    write_tokenizer(path, ["<unk>", "<s>", "</s>"], bos_token="<s>", eos_token="</s>")
    config = read_json(path / "tokenizer_config.json")
    write_json(path / "tokenizer_config.json", config | {"chat_template": "{{ old }}"})
    merge_views(apply_chat_template([open_checkpoint(path)] * 2, name), tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    text = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert text == RENDERED[name]


def with_template(root: Path, text: str, place: str) -> Path:
    path = folder(root)
    write_tokenizer(path, ["<unk>"])
    if place == "jinja":
        (path / "chat_template.jinja").write_text(text)
    elif place == "list":
        named = [{"name": "tools", "template": "no"}, {"name": "default", "template": text}]
        write_json(path / "tokenizer_config.json", {"chat_template": named})
    else:
        write_json(path / place, {"chat_template": text})
    return path


def test_auto_takes_what_most_models_have(tmp_path: Path) -> None:
    places = {"jinja": "{{ a }}", "list": "{{ b }}", "tokenizer_config.json": "{{ a }}\n"}
    models = [open_checkpoint(with_template(tmp_path / p[:4], t, p)) for p, t in places.items()]
    assert [template_of(m).strip() for m in models] == ["{{ a }}", "{{ b }}", "{{ a }}"]
    for view in apply_chat_template(models, "auto"):
        assert view.read_side_file("chat_template.jinja") == b"{{ a }}"
        assert "chat_template" not in json.loads(view.read_side_file("tokenizer_config.json"))
    assert apply_chat_template(models, None) == models
    bare = [open_checkpoint(folder(tmp_path / "bare"))]
    assert apply_chat_template(bare, "auto") == bare


def test_a_template_given_as_text_or_path(tmp_path: Path) -> None:
    models = [open_checkpoint(folder(tmp_path / "a"))]
    (tmp_path / "mine.jinja").write_text("{{ mine }}")
    for wish in ("{{ mine }}", "mine.jinja", str(tmp_path / "mine.jinja")):
        view = apply_chat_template(models, wish, tmp_path)[0]
        assert view.read_side_file("chat_template.jinja") == b"{{ mine }}"
    for wrong in ("nothing", "a", "x\0y"):
        refusal(lambda w=wrong: apply_chat_template(models, w, tmp_path), "chat_template", "chatml")
