"""The chat template of the output: the models' own, a common one by name, or the recipe's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from streammerge.errors import RecipeError, printable
from streammerge.formats import Checkpoint
from streammerge.tokenizers.vocabulary import HasFiles, read_json
from streammerge.views.wrapping import Wrapping, encode_json

_FILE, _OTHER, _CONFIG = "chat_template.jinja", "chat_template.json", "tokenizer_config.json"
_LARGEST = 1_000_000

# The formats that recipes name (mergekit's names), as the makers of the models describe them.
_NAMED = {
    "chatml": """\
{%- for message in messages %}
{{- '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
""",
    "llama3": """\
{{- bos_token }}
{%- for message in messages %}
{{- '<|start_header_id|>' ~ message.role ~ '<|end_header_id|>\\n\\n' }}
{{- message.content | trim ~ '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    "mistral": """\
{{- bos_token }}
{%- set system = messages[0].content ~ '\\n\\n' if messages[0].role == 'system' else '' %}
{%- set turns = messages[1:] if system else messages %}
{%- for message in turns %}
{%- if message.role != ('assistant' if loop.index0 % 2 else 'user') %}
{{- raise_exception('after a system message, user and assistant take turns') }}
{%- endif %}
{%- if message.role == 'user' %}
{{- ' [INST] ' ~ (system if loop.first else '') ~ message.content ~ ' [/INST]' }}
{%- else %}{{- ' ' ~ message.content ~ eos_token }}
{%- endif %}
{%- endfor %}
""",
    "alpaca": """\
{%- set heads = {'user': '### Instruction:\\n', 'user_context': '### Input:\\n',
                 'assistant': '### Response:\\n', 'system': ''} %}
{%- for message in messages %}{{- heads[message.role] ~ message.content | trim ~ '\\n\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '### Response:\\n' }}{%- endif %}
""",
    "exaone": """\
{%- if messages[0].role != 'system' %}{{- '[|system|][|endofturn|]\\n' }}{%- endif %}
{%- for message in messages %}
{{- '[|' ~ message.role ~ '|]' ~ message.content }}
{{- '\\n' if message.role == 'user' else '[|endofturn|]\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '[|assistant|]' }}{%- endif %}
""",
}


def apply_chat_template(
    checkpoints: Sequence[Checkpoint], wish: str | None, folder: Path | None = None
) -> list[Checkpoint]:
    """Return views of the models that all have the chat template that a recipe asks for.

    Args:
        checkpoints: the models.
        wish: "auto" for the one that most models have; a name (chatml, llama3, mistral, alpaca,
            exaone); a template; or the path of one. None changes nothing.
        folder: where relative paths start; the working folder by default.

    Raises:
        RecipeError: it is none of these.
    """
    text = None if wish is None else _template(wish, checkpoints, folder or Path())
    return list(checkpoints) if text is None else [_view(c, text) for c in checkpoints]


def _template(wish: str, checkpoints: Sequence[Checkpoint], folder: Path) -> str | None:
    if wish == "auto":
        found = [text for c in checkpoints if (text := template_of(c).strip())]
        return Counter(found).most_common(1)[0][0] if found else None
    if wish in _NAMED:
        return _NAMED[wish]
    if "{" in wish:
        return wish
    try:
        path = folder / wish
        if path.stat().st_size <= _LARGEST:
            return path.read_text()
    except (OSError, ValueError):  # ValueError: NUL in a path, or no text
        pass
    raise RecipeError(
        f"chat_template {printable(wish, 80)!r} is neither a template, nor the path of one",
        f"Write auto, {', '.join(_NAMED)}, a Jinja template, or a path.",
    )


def template_of(model: HasFiles) -> str:
    """Return the chat template of a model; empty where it has none."""
    files = model.side_files()
    if _FILE in files:
        return model.read_side_file(_FILE).decode(errors="replace")
    value: Any = None
    for path in (_OTHER, _CONFIG):
        value = value or read_json(model, path).get("chat_template")
    if isinstance(value, list):  # several, each with a name
        named = {item.get("name"): item.get("template") for item in value if isinstance(item, dict)}
        value = named.get("default")
    return value if isinstance(value, str) else ""


def _view(checkpoint: Checkpoint, text: str) -> Checkpoint:
    view = Wrapping(checkpoint)
    template = text.encode()
    view.hide_file(_OTHER)
    view.put_file(_FILE, len(template), lambda: template)
    config = read_json(checkpoint, _CONFIG)
    if config.pop("chat_template", None) is not None:
        raw = encode_json(config)
        view.put_file(_CONFIG, len(raw), lambda: raw)
    return view
