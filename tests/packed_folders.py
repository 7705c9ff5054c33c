"""Tiny folders whose projections are packed as GPTQ and AWQ define it, each beside the same model unpacked."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.tiny_models import FEATURES, save_tiny_model

FORMATS: dict[str, dict[str, Any]] = {
    "gptq": {"quant_method": "gptq", "bits": 4, "sym": True, "desc_act": False},
    "gptq_v2": {"quant_method": "gptq", "bits": 4, "sym": True, "desc_act": False, "checkpoint_format": "gptq_v2"},
    "awq": {"quant_method": "awq", "bits": 4, "zero_point": False, "version": "gemm"},
    "gptq, asymmetric": {"quant_method": "gptq", "bits": 4, "sym": False, "desc_act": False},
    "gptq_v2, asymmetric": {"quant_method": "gptq", "bits": 4, "sym": False, "checkpoint_format": "gptq_v2"},
    "awq, asymmetric": {"quant_method": "awq", "bits": 4, "zero_point": True, "version": "gemm"},
}
SYMMETRIC = [name for name in FORMATS if "asymmetric" not in name]
_FIELDS = {"hidden_size": 128, "intermediate_size": 256, "num_key_value_heads": 2}
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # which of eight outputs the lowest four bits hold, and so on


def save_packed_model(folder: Path, name: str, group: int) -> transformers.PreTrainedModel:
    """Write `folder/packed` and `folder/whole`, and return transformers' module of the latter.

    Args:
        name: One of `FORMATS`.
    """
    class_name, fields = FEATURES["llama"]
    FEATURES["packed"] = (class_name, fields | _FIELDS)
    try:
        model = save_tiny_model("packed", folder / "packed")
    finally:
        del FEATURES["packed"]
    file, rng = folder / "packed" / "model.safetensors", np.random.default_rng(0)
    tensors = load_file(file)
    for key in [key for key in tensors if key.endswith("_proj.weight")]:
        num_outputs, num_inputs = tensors.pop(key).shape
        numbers = rng.integers(0, 16, (num_inputs, num_outputs))
        scales = rng.uniform(0.01, 0.04, (num_inputs // group, num_outputs)).astype(np.float16)
        zeros = rng.integers(int(name.startswith("gptq,")), 16, scales.shape)
        if name in SYMMETRIC:
            zeros[:] = 8
        whole = (numbers - np.repeat(zeros, group, 0)) * np.repeat(scales.astype(np.float32), group, 0)
        model.get_parameter(key).data = torch.from_numpy(whole.T.astype(np.float32).copy())
        for kind, tensor in packed(name, numbers, zeros, scales, group).items():
            tensors[key.replace("weight", kind)] = torch.from_numpy(tensor)
    save_file(tensors, file)
    model.save_pretrained(folder / "whole")
    edit_config(folder / "packed", FORMATS[name] | {"group_size": group})
    return model


def packed(name: str, numbers: np.ndarray, zeros: np.ndarray, scales: np.ndarray, group: int) -> dict[str, np.ndarray]:
    """The tensors of one projection from its numbers 0..15, [in, out], and its zero points, [in / group, out]."""
    if name.split(",")[0] == "gptq":
        zeros = zeros - 1
    if name.startswith("awq"):
        tensors = {"qweight": eights(numbers, _AWQ_ORDER), "qzeros": eights(zeros, _AWQ_ORDER)}
    else:
        in_order = tuple(range(8))
        tensors = {"qweight": eights(numbers.T, in_order).T.copy(), "qzeros": eights(zeros, in_order)}
        tensors["g_idx"] = np.array([i // group for i in range(len(numbers))], np.int32)
    return tensors | {"scales": scales}


def eights(numbers: np.ndarray, order: tuple[int, ...]) -> np.ndarray:
    """Pack every eight neighbours of a row in an int32; `order` says which lies in the lowest bits, and so on."""
    words = np.zeros((numbers.shape[0], numbers.shape[1] // 8), np.uint32)
    for place, which in enumerate(order):
        words |= numbers[:, which::8].astype(np.uint32) << np.uint32(4 * place)
    return words.view(np.int32)


def edit_config(folder: Path, told: dict[str, Any] | None) -> None:
    """Replace the quantization_config of a folder."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"quantization_config": told}), "utf-8")
