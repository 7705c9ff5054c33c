"""Numbers of a GGUF file's tensors, as torch has them."""

import math

import gguf
import numpy as np
import numpy.typing as npt
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from torch import Tensor

from ppd.errors import ModelError
from ppd.models.gguf.file import GGUFFile, TensorInfo

_PLAIN = {
    GGMLQuantizationType.F32: torch.float32,
    GGMLQuantizationType.F16: torch.float16,
    GGMLQuantizationType.BF16: torch.bfloat16,
}
_PIECE = 1 << 18
"""Numbers that are dequantised at a time."""


def require_readable(file: GGUFFile, name: str) -> None:
    """Refuse a tensor whose type the package `gguf` cannot dequantise."""
    kind = file.tensors[name].kind
    try:
        gguf.dequantize(np.zeros((1, GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
    except NotImplementedError as error:
        raise ModelError(
            f"the tensor {name} is stored as {kind.name}, which cannot be read; download the file "
            "in another precision, such as Q8_0"
        ) from error


def read_tensor(file: GGUFFile, info: TensorInfo, order: npt.NDArray[np.int64] | None = None) -> Tensor:
    """A tensor's numbers.

    Args:
        order: The rows to take, in order; None for all as they are.

    Returns:
        Memory-mapped where it is stored in a type of torch and `order` is None; else float32, dequantised in pieces.
    """
    # A private copy of what is written to, which nothing does: torch warns of memory that it may not write to.
    data = np.memmap(file.path, np.uint8, "c", info.offset, (info.size_bytes,))
    if info.kind in _PLAIN:
        tensor = torch.from_numpy(data).view(_PLAIN[info.kind]).view(info.shape)
        return tensor if order is None else tensor[torch.from_numpy(order)]
    if len(info.shape) == 1 and order is not None:
        return read_tensor(file, info)[torch.from_numpy(order)]
    columns = info.shape[-1]
    rows = data.reshape(-1, info.size_bytes * columns // math.prod(info.shape))
    out = np.empty((len(rows), columns), np.float32)
    step = max(1, _PIECE // columns)
    for start in range(0, len(rows), step):
        piece = rows[start : start + step] if order is None else rows[order[start : start + step]]
        # Rows hold whole blocks, so that many are as good as one long one, which is much faster.
        numbers = gguf.dequantize(piece.reshape(1, -1), info.kind)
        out[start : start + step] = numbers.reshape(-1, columns)
    return torch.from_numpy(out).view(info.shape)
