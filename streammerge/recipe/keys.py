"""The keys of a recipe, and what to say of others that people write there."""

from __future__ import annotations

KEYS = (
    # mergekit's
    "merge_method",
    "models",
    "slices",
    "modules",
    "base_model",
    "parameters",
    "dtype",
    "out_dtype",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
    # ours
    "name",
    "checkpoints",
    "last",
    "every",
    "steps",
    "schedule",
    "rules",
    "layers",
    "before_layers",
    "compute_dtype",
    "skip",
    "keep",
    "rows",
    "side_files_from",
    "seed",
    "plugins",
)
_OPTION = "It is an option of mergekit's command line, not needed here; remove it."
HINTS = {
    **dict.fromkeys(
        ("lazy_unpickle", "trust_remote_code", "allow_crimes", "low_cpu_memory", "copy_tokenizer"),
        _OPTION,
    ),
    **dict.fromkeys(("clone_tensors", "cuda", "device", "read_to_gpu"), _OPTION),
    **dict.fromkeys(
        ("normalize", "weight", "density", "t", "lambda", "rescale", "int8_mask", "scale"),
        "Settings of a method stand below `parameters:`.",
    ),
    "random_seed": "Write `seed:`.",
    "out_shard_size": "Give --max-shard-size on the command line.",
    "method": "Write `merge_method:`.",
    "sources": "Sources stand below an item of `slices:`.",
    "layer_range": "Layer ranges stand below `sources:` of an item of `slices:`.",
    "residual_weight": "mergekit reads it and does nothing with it; remove it.",
}
REFERENCE_KEYS = ("model", "path", "revision", "lora")
REFERENCE_HINTS = {"override_architecture": "There is no table of architectures; remove it."}
