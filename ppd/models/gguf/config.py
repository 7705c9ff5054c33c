"""A GGUF file's metadata as the `config.json` that the same model has in a Hugging Face folder.

What the decoder supports is decided where folders are read, `ppd.models.config`; here names are translated, and sizes
are held against the tensors, so that a damaged file asks for no more memory than it is long.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ppd.errors import ModelError
from ppd.models.gguf.dequantise import read_tensor, require_readable
from ppd.models.gguf.file import ROPE_FACTORS, GGUFFile

ARCHITECTURES = ("llama", "qwen2", "qwen3")
_REQUIRED = {
    "max_position_embeddings": "context_length",
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
_OPTIONAL = {
    "sliding_window": "attention.sliding_window",
    # None of these is supported; under these names they are refused as in a folder.
    "num_local_experts": "expert_count",
    "logit_scale": "logit_scale",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "attention_multiplier": "attention.scale",
    "clip_qkv": "attention.clamp_kqv",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
"""Field of a config.json → key of the metadata, behind the name of the architecture."""
_MAX_CONTEXT = 1 << 24
_LOW_FREQ_FACTOR, _HIGH_FREQ_FACTOR = 1.0, 4.0
_ENDS = frozenset(("<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "</s>"))
"""Control tokens at which every model that has them stops; metadata names one or two of them at most."""
_CONTROL = 3


def config_from_gguf(file: GGUFFile) -> dict[str, Any]:
    """What the `config.json` of the same model holds.

    Raises:
        ModelError: The architecture is not supported, or metadata is missing or contradicts the tensors.
    """
    architecture = file.get("general.architecture", str)
    if architecture not in ARCHITECTURES:
        raise ModelError(
            f"the architecture is {architecture!r:.40}, which is not supported; "
            f"supported are {', '.join(ARCHITECTURES)}"
        )
    found = {field: file.metadata.get(f"{architecture}.{key}") for field, key in (_REQUIRED | _OPTIONAL).items()}
    if missing := [key for field, key in _REQUIRED.items() if found[field] is None]:
        raise ModelError(f"its metadata lacks {architecture}.{missing[0]}; download or convert it again")
    config = {field: _single(value) for field, value in found.items() if value is not None}
    heads = config["num_attention_heads"]
    if not all(type(config[field]) is int and config[field] > 0 for field in list(_REQUIRED)[:-1]):
        raise ModelError(
            f"its metadata has sizes that are not whole numbers above 0: {config!r:.200}; convert it again"
        )
    if config["max_position_embeddings"] > _MAX_CONTEXT:
        raise ModelError(f"{architecture}.context_length is {config['max_position_embeddings']}; convert it again")
    kv_heads = _single(file.metadata.get(f"{architecture}.attention.head_count_kv"))
    head_dim = _head_dim(file, architecture, config["hidden_size"] // heads)
    config |= {
        # Only a Mistral has a window; its files are of the architecture llama.
        "model_type": "mistral" if architecture == "llama" and config.get("sliding_window") else architecture,
        "use_sliding_window": "sliding_window" in config,
        "num_key_value_heads": heads if kv_heads is None else kv_heads,
        "head_dim": head_dim,
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in file.tensors,
        "eos_token_id": _eos_ids(file),
    }
    config["vocab_size"] = _check_sizes(file, config)
    config["rope_parameters"] = _rope(file, architecture, head_dim)
    return config


def _single(value: Any) -> Any:
    """The value of all layers, where each has its own; a list where they differ, which is refused later."""
    return value[0] if isinstance(value, list) and len(set(value)) == 1 else value


def _head_dim(file: GGUFFile, architecture: str, default: int) -> int:
    sizes = [file.get(f"{architecture}.attention.{name}_length", int) for name in ("key", "value")]
    key, value = (default if size is None else size for size in sizes)
    if key != value or key < 2:
        raise ModelError(f"heads of {key} for keys and {value} for values are not supported; expected one size")
    return key


def _check_sizes(file: GGUFFile, config: dict[str, Any]) -> int:
    """Hold the sizes against the tensors of the first layer; returns the number of words, the embedding's rows."""
    hidden, num_layers = config["hidden_size"], config["num_hidden_layers"]
    layers = {name.split(".")[1] for name in file.tensors if name.startswith("blk.")}
    if len(layers) != num_layers:
        raise ModelError(f"block_count is {num_layers}, but it has tensors of {len(layers)} layers; download it again")
    rows = {
        "token_embd.weight": None,
        "blk.0.attn_q.weight": config["num_attention_heads"] * config["head_dim"],
        "blk.0.ffn_gate.weight": config["intermediate_size"],
    }
    for name, expected in rows.items():
        if name not in file.tensors:
            raise ModelError(f"it lacks the tensor {name}; expected a language model, whole")
        shape = list(file.tensors[name].shape)
        if len(shape) != 2 or shape != [expected or shape[0], hidden]:
            raise ModelError(
                f"the tensor {name} has shape {shape}; its metadata asks for {[expected or 'words', hidden]}"
            )
    return file.tensors["token_embd.weight"].shape[0]


def _rope(file: GGUFFile, architecture: str, head_dim: int) -> dict[str, Any]:
    found = {
        name: file.metadata.get(f"{architecture}.rope.{name}")
        for name in ("freq_base", "dimension_count", "scaling.type", "scaling.factor", "scale_linear")
    }
    theta = 10000.0 if found["freq_base"] is None else found["freq_base"]
    rotated = head_dim if found["dimension_count"] is None else found["dimension_count"]
    rope: dict[str, Any] = {"rope_theta": theta, "rope_type": found["scaling.type"] or "default"}
    if rope["rope_type"] == "none":
        rope["rope_type"] = "default"
    if found["scaling.factor"] is not None:
        rope["factor"] = found["scaling.factor"]
    elif found["scale_linear"] not in (None, 1):  # as older files say it
        rope |= {"rope_type": "linear", "factor": found["scale_linear"]}
    if rotated != head_dim:
        rope["partial_rotary_factor"] = f"{rotated} of {head_dim}"
    if ROPE_FACTORS in file.tensors:
        rope |= _llama3(file, theta, head_dim)
    return rope


def _llama3(file: GGUFFile, theta: float, head_dim: int) -> dict[str, Any]:
    """The parameters of Llama 3's scaling, of which a file has only what they lead to, one factor a wavelength.

    Raises:
        ModelError: The factors come from other parameters than those of the published models.
    """
    require_readable(file, ROPE_FACTORS)
    info = file.tensors[ROPE_FACTORS]
    if info.shape != (head_dim // 2,):
        raise ModelError(f"the tensor {ROPE_FACTORS} has shape {list(info.shape)}, expected [{head_dim // 2}]")
    factors = read_tensor(file, info).double().numpy()
    if (factors == 1).all():
        return {}
    factor = round(float(factors.max()), 4)  # 32 bits make 8.000001 of 8
    for exponent in range(4, 21):
        original = 1 << exponent
        if np.allclose(factors, _llama3_factors(theta, head_dim, factor, original), rtol=1e-4, atol=0):
            return {
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": _LOW_FREQ_FACTOR,
                "high_freq_factor": _HIGH_FREQ_FACTOR,
                "original_max_position_embeddings": original,
            }
    raise ModelError(
        f"the tensor {ROPE_FACTORS} scales wavelengths otherwise than Llama 3 does, which is not supported; "
        "pass the Hugging Face folder that the file was made from"
    )


def _llama3_factors(theta: float, head_dim: int, factor: float, original: int) -> npt.NDArray[np.float64]:
    """What wavelengths are multiplied by: 1 for the short ones, `factor` for the long ones, between them smoothly."""
    wavelengths = 2 * math.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    keep = (original / wavelengths - _LOW_FREQ_FACTOR) / (_HIGH_FREQ_FACTOR - _LOW_FREQ_FACTOR)
    keep = keep.clip(0, 1)
    return 1 / ((1 - keep) / factor + keep)


def _eos_ids(file: GGUFFile) -> list[int]:
    """The tokens that end an answer: those that the metadata names first, then those known by their text."""
    named = (file.get(f"tokenizer.ggml.{name}_token_id", int) for name in ("eos", "eot", "eom"))
    tokens = file.get("tokenizer.ggml.tokens", list) or []
    types = file.get("tokenizer.ggml.token_type", list) or []
    known = (
        i for i, (token, kind) in enumerate(zip(tokens, types, strict=False)) if kind == _CONTROL and token in _ENDS
    )
    return list(dict.fromkeys([*(i for i in named if i is not None), *known]))
