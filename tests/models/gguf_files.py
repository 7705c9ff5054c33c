"""GGUF files of tiny models, written by the package `gguf` from what transformers saved."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import QuantError, quantize
from safetensors.numpy import load_file

from tests.tiny_models import save_tiny_model

Change = Callable[[GGUFWriter], None]
_ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}


def tiny_gguf(feature: str, folder: Path, kind: str = "F32", change: Change = lambda _: None) -> Path:
    """A tiny model of a feature as `folder/hf` and `folder/tiny.gguf`; returns the file."""
    save_tiny_model(feature, folder / "hf")
    return write_gguf(folder / "hf", folder / "tiny.gguf", kind, change)


def write_gguf(folder: Path, out: Path, kind: str = "F32", change: Change = lambda _: None) -> Path:
    """Write a Hugging Face folder as llama.cpp's converter does, without a tokenizer.

    Args:
        kind: How the matrices are stored; rows that no block divides stay in F32.
        change: Adds to the file before it is written.
    """
    config = json.loads((folder / "config.json").read_text("utf-8"))
    writer = GGUFWriter(out, _ARCHITECTURES[config["model_type"]])
    _add_metadata(writer, config)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN3, config["num_hidden_layers"])
    for name, array in load_file(folder / "model.safetensors").items():
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert stored is not None
        add_tensor(writer, stored, _as_llama_cpp_rotates(name, array, config), kind)
    if config["rope_parameters"]["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", _llama3_factors(config))
    change(writer)
    finish(writer)
    return out


def add_tensor(writer: GGUFWriter, name: str, array: np.ndarray[Any, Any], kind: str = "F32") -> None:
    chosen = GGMLQuantizationType[kind if array.ndim > 1 else "F32"]
    try:
        content = quantize(array, chosen)
    except QuantError:
        content, chosen = array, GGMLQuantizationType.F32
    writer.add_tensor(name, content, raw_dtype=chosen)


def add_tokenizer(writer: GGUFWriter) -> None:
    """A byte-level tokenizer as large as the tiny models' embeddings, fillers included."""
    characters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    tokens = ["<s>", "<x>", "</s>", *characters, *(f"{a}e" for a in characters)]
    fillers = [f"[PAD{i}]" for i in range(61 - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*tokens, *fillers])
    writer.add_token_types([3] * 3 + [1] * 52 + [5] * len(fillers))
    writer.add_token_merges([f"{a} e" for a in characters])
    writer.add_chat_template("{{ messages }}")


def write_tokenizer(file: Path, model: str, tokens: list[str], types: list[int], **values: Any) -> Path:
    """A file with a tokenizer, an embedding of as many rows, and the sizes without which llama.cpp opens none.

    Args:
        values: Further keys of `tokenizer.ggml`; None leaves one out.
    """
    writer = GGUFWriter(file, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model(model)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    for name, value in values.items():
        adders: dict[type, Callable[[str, Any], None]]
        adders = {int: writer.add_uint32, bool: writer.add_bool, str: writer.add_string, list: writer.add_array}
        add = adders.get(type(value))
        if add is not None:
            add(f"tokenizer.ggml.{name}", value)
    writer.add_tensor("token_embd.weight", np.zeros((len(tokens), 1), np.float16))
    finish(writer)
    return file


def finish(writer: GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_metadata(writer: GGUFWriter, config: dict[str, Any]) -> None:
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    rope = config["rope_parameters"]
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_eos_token_id(config["eos_token_id"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if config.get("sliding_window"):
        writer.add_sliding_window(config["sliding_window"])


def _as_llama_cpp_rotates(name: str, array: np.ndarray[Any, Any], config: dict[str, Any]) -> np.ndarray[Any, Any]:
    """Files of the architecture llama have the two halves of every head of q and k interleaved."""
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}.get(name.split(".")[-2])
    if heads is None or _ARCHITECTURES[config["model_type"]] != "llama":
        return array
    halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(array.shape)


def _llama3_factors(config: dict[str, Any]) -> np.ndarray[Any, Any]:
    """The table of Llama 3's scaling, from transformers' frequencies."""
    import transformers
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    read = transformers.LlamaConfig(**config)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](read, "cpu")
    plain = 1 / config["rope_parameters"]["rope_theta"] ** (np.arange(len(scaled)) / len(scaled))
    return (plain / scaled.numpy()).astype(np.float32)
