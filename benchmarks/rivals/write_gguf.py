"""A Hugging Face folder as a GGUF file: `python write_gguf.py MODEL_FOLDER KIND OUT`; needs the package gguf.

KIND is F32, Q8_0, Q4_0 (embedding and LM head in Q8_0, as llama.cpp's own tool keeps them where Q6_K's blocks do not
divide the rows) or Q4_0-pure (they too in Q4_0). Norms and biases stay F32. The file has token ids and no tokenizer:
its words are placeholders.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ppd.errors import ModelError
from ppd.models.checkpoint import open_weights
from ppd.models.config import ModelConfig, read_config

if TYPE_CHECKING:
    from gguf import GGUFWriter

Array = npt.NDArray[np.float32]

KINDS = {"F32": ("F32", "F32"), "Q8_0": ("Q8_0", "Q8_0"), "Q4_0": ("Q4_0", "Q8_0"), "Q4_0-pure": ("Q4_0", "Q4_0")}
"""Kind → type of the layers' projections, type of embedding and LM head."""
_ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
_OUTER = {"embedding.weight": "token_embd.weight", "head.weight": "output.weight", "norm.weight": "output_norm.weight"}
_LAYER = {
    "attention.qkv": ("attn_q", "attn_k", "attn_v"),
    "attention.o": ("attn_output",),
    "mlp.gate_up": ("ffn_gate", "ffn_up"),
    "mlp.down": ("ffn_down",),
    "attention_norm": ("attn_norm",),
    "mlp_norm": ("ffn_norm",),
    "attention.q_norm": ("attn_q_norm",),
    "attention.k_norm": ("attn_k_norm",),
}
"""The decoder's module → GGUF's, of which it may hold several."""


def tensors(folder: Path, config: ModelConfig) -> Iterator[tuple[str, Array]]:
    """Every tensor of the file: its name there, and its numbers as llama.cpp wants them ([out, in]).

    Raises:
        ModelError: The folder is no checkpoint, or not one that this writer knows.
    """
    if config.rope.scaling != "default":
        raise ModelError(f"rope_type is {config.rope.scaling}; this writer of GGUF files knows only default")
    with open_weights(folder, config) as weights:
        for name in weights.names:
            for theirs, values in zip(gguf_names(name), weights.parts(name), strict=True):
                yield theirs, _for_rotation(theirs, values.float().contiguous().numpy(), config)


def gguf_names(ours: str) -> list[str]:
    """The decoder's name of a parameter → GGUF's, one for each part of it."""
    if ours in _OUTER:
        return [_OUTER[ours]]
    _, layer, rest = ours.split(".", 2)
    module, parameter = rest.rsplit(".", 1)
    return [f"blk.{layer}.{theirs}.{parameter}" for theirs in _LAYER[module]]


def _for_rotation(name: str, array: Array, config: ModelConfig) -> Array:
    """Llama-type files have the two halves of a head's q and k interleaved: there, neighbours are rotated."""
    heads = {"attn_q": config.num_heads, "attn_k": config.num_kv_heads}
    module = name.split(".")[-2]
    if _ARCHITECTURES[config.architecture] != "llama" or module not in heads:
        return array
    halves = array.reshape(heads[module], 2, config.head_dim // 2, -1)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(array.shape)


def write(folder: Path, kind: str, out: Path) -> None:
    """Write the file.

    Args:
        folder: A Hugging Face model folder.
        kind: One of `KINDS`.
        out: The file.
    """
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import quantize

    config = read_config(folder)
    writer = GGUFWriter(out, _ARCHITECTURES[config.architecture])
    _add_shape(writer, config)
    inner, outer = (GGMLQuantizationType[name] for name in KINDS[kind])
    for name, array in tensors(folder, config):
        is_outer = name in ("token_embd.weight", "output.weight")
        kept = GGMLQuantizationType.F32 if array.ndim == 1 else outer if is_outer else inner
        writer.add_tensor(name, quantize(array, kept), raw_dtype=kept)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_shape(writer: "GGUFWriter", config: ModelConfig) -> None:
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.ffn_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope.theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([f"token{i}" for i in range(config.vocab_size)])
    writer.add_token_types([1] * config.vocab_size)  # 1: a normal word
    writer.add_token_merges(["t o"])


if __name__ == "__main__":
    write(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
