"""A GGUF file's tensors under the names of a Hugging Face folder, dequantised one by one as they are read."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ppd.errors import ModelError
from ppd.models.config import ModelConfig
from ppd.models.gguf.dequantise import read_tensor, require_readable
from ppd.models.gguf.file import ROPE_FACTORS, GGUFFile

_OUTSIDE_LAYERS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_MODULES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


class Tensors:
    """The tensors, by the names that a folder's would have.

    Args:
        config: The model's configuration, as it was read from the file.
    """

    def __init__(self, file: GGUFFile, config: ModelConfig) -> None:
        self._file, self._config = file, config

    def __getitem__(self, name: str) -> Tensor:
        """One tensor: memory-mapped if it is stored in F32, F16 or BF16, else float32."""
        return read_tensor(self._file, self._file.tensors[stored_name(name)], self._order(name))

    def check(self, expected: Mapping[str, tuple[int, ...]]) -> None:
        """Hold names, shapes and types against what the configuration asks for, without reading a number.

        Args:
            expected: Name in a folder → shape.

        Raises:
            ModelError: A tensor is missing, unexpected, of the wrong shape, or of a type that cannot be dequantised.
        """
        found = self._file.tensors
        shapes = {stored_name(name): shape for name, shape in expected.items()}
        if missing := sorted(shapes.keys() - found.keys()):
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise ModelError(f"it lacks the tensor {missing[0]}{more}; its metadata asks for it")
        if extra := sorted(found.keys() - shapes.keys() - {ROPE_FACTORS}):
            raise ModelError(
                f"it has the tensor {extra[0]}, which a {self._config.architecture} does not have; "
                "pass a file of a supported variant"
            )
        for name, shape in shapes.items():
            if found[name].shape != shape:
                raise ModelError(
                    f"the tensor {name} has shape {list(found[name].shape)}; metadata ask for {list(shape)}"
                )
            require_readable(self._file, name)

    def _order(self, name: str) -> npt.NDArray[np.int64] | None:
        """The rows of a tensor in the order of a folder; None where that is the file's.

        In files of the architecture llama the two halves of every head of q and k are interleaved.
        """
        module, config = name.split(".")[-2], self._config
        heads = {"q_proj": config.num_heads, "k_proj": config.num_kv_heads}.get(module)
        if heads is None or self._file.metadata["general.architecture"] != "llama":
            return None
        rows = np.arange(heads * config.head_dim).reshape(heads, config.head_dim // 2, 2)
        return rows.swapaxes(1, 2).reshape(-1)


def stored_name(name: str) -> str:
    """A folder's name of a tensor → GGUF's."""
    if name in _OUTSIDE_LAYERS:
        return _OUTSIDE_LAYERS[name]
    _, _, layer, rest = name.split(".", 3)
    module, parameter = rest.rsplit(".", 1)
    return f"blk.{layer}.{_MODULES[module]}.{parameter}"
