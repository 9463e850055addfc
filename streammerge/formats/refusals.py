"""Checkpoints that must not be averaged tensor by tensor, and how each is recognised.

Averaging codes and scales of a quantized model apart gives a relative error of 0.68, and averaging
the A and B of adapters apart 0.77 (measured), without any sign that something went wrong. So these
are refused when they are opened, with the way out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from streammerge.errors import CheckpointError, UnsupportedError, printable
from streammerge.tensors import TensorInfo

_QUANTIZED_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
_QUANTIZED_SUFFIXES = (
    ".weight_scale_inv",
    ".weight_scale",
    ".weight_packed",
    ".qweight",
    ".qzeros",
    ".absmax",
    ".SCB",
)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def refuse_quantized(
    label: str,
    tensors: Iterable[TensorInfo],
    config: Mapping[str, Any],
    files: Iterable[str],
) -> None:
    """Refuse a checkpoint whose weights mean nothing without scales that lie elsewhere.

    Raises:
        UnsupportedError: with the sign that gave it away.
    """
    sign = _config_sign(config) or _file_sign(files) or _tensor_sign(list(tensors))
    if sign:
        raise UnsupportedError(
            f"{label} is quantized: {sign}",
            "Quantized weights cannot be merged without their scales. Use the original bf16, fp16 "
            "or fp32 checkpoint, or dequantize this one first and save it.",
        )


def _config_sign(config: Mapping[str, Any]) -> str:
    quantization = config.get("quantization_config")
    if isinstance(quantization, dict) and quantization:
        method = printable(str(quantization.get("quant_method", "unnamed")), 40)
        return f"its config.json has a quantization_config (quant_method: {method})"
    if config.get("compression_config"):
        return "its config.json has a compression_config"
    return ""


def _file_sign(files: Iterable[str]) -> str:
    found = sorted(set(files) & set(_QUANTIZED_FILES))
    return f"it comes with {found[0]}" if found else ""


def _tensor_sign(tensors: list[TensorInfo]) -> str:
    names = {tensor.name for tensor in tensors}
    for tensor in tensors:
        shown = f"tensor {printable(tensor.name)}"
        if tensor.kind == "quantized":
            return f"{shown} has dtype {tensor.dtype}"
        if tensor.name.endswith(_QUANTIZED_SUFFIXES):
            return f"{shown} holds codes or scales"
        if tensor.name.endswith("_blocks") and f"{tensor.name[:-7]}_scales" in names:
            return f"{shown} has scales beside it"
        packed = tensor.kind == "integer" and len(tensor.shape) == 2
        if packed and tensor.name.endswith("weight"):
            return f"{shown} is a matrix of {tensor.dtype}"
    return ""


def refuse_other_weights(label: str, files: Iterable[str]) -> None:
    """Explain what a folder or file without mergeable safetensors weights holds instead.

    Raises:
        UnsupportedError: weights of a known kind that streammerge does not read.
        CheckpointError: no weights at all.
    """
    names = sorted(files)
    if any(name.startswith("adapter_") for name in names):
        raise UnsupportedError(
            f"{label} is a PEFT adapter, not a model",
            "Averaging the two factors of adapters apart is wrong. Name it with the model that it "
            "was trained on, as `base+adapter`: it is applied while that is read.",
        )
    for name in names:
        if name.endswith(".gguf"):
            raise UnsupportedError(
                f"{label} holds a GGUF file ({printable(name)})",
                "Merge the original safetensors checkpoints, then convert the result to GGUF.",
            )
        if name.endswith(_PICKLES) and name != "training_args.bin":
            raise UnsupportedError(
                f"{label} holds pickled weights ({printable(name)}), which can run code on loading",
                "Convert it once: load it with transformers and `save_pretrained(folder)`.",
            )
    raise CheckpointError(
        f"{label} is no checkpoint: no safetensors weights in it",
        "Give a folder with model.safetensors or with a model.safetensors.index.json and its "
        "shards, or the path of a .safetensors file.",
    )
