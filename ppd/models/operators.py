"""The three operators of a layer that ONNX has and PyTorch lacks, in the graph and in PyTorch.

PyTorch's own `torch.onnx.ops` have no gradient and compute the scores of attention twice, so they are used only while a
graph is traced.
"""

import torch
from torch import Tensor, nn


@torch.library.custom_op("ppd::kv_write", mutates_args=())
def kv_write(cache: Tensor, update: Tensor, index: Tensor) -> Tensor:
    """Write rows into a cache: the reference of ONNX `TensorScatter`, which engines do in place.

    Args:
        cache: [1, H, S, D].
        update: [1, H, N, D].
        index: int64 [1], row of the first update.

    Returns:
        The new cache, [1, H, S, D].
    """
    out = cache.clone()
    out[:, :, int(index) : int(index) + update.shape[2]] = update
    return out


@kv_write.register_fake
def _(cache: Tensor, update: Tensor, index: Tensor) -> Tensor:  # noqa: ARG001 - the signature is the operator's
    return torch.empty_like(cache)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor) -> Tensor:
    """Rotary embedding, halves paired: ONNX `RotaryEmbedding`.

    Args:
        x: [B, heads, N, D].
        cos: [positions, D/2].
        sin: [positions, D/2].
        positions: int64 [B, N].
    """
    if torch.compiler.is_exporting():
        rotated: Tensor = torch.onnx.ops.rotary_embedding(x, cos, sin, positions)
        return rotated
    c, s = (table[positions][:, None].to(x.dtype) for table in (cos, sin))  # [B, 1, N, D/2]
    a, b = x.chunk(2, -1)
    return torch.cat([a * c - b * s, b * c + a * s], -1)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Grouped-query attention: ONNX `Attention`.

    Args:
        q: [B, heads, N, D].
        k: [B, H, columns, D].
        v: [B, H, columns, D].
        mask: bool [B or 1, 1, N, columns], true where row r sees column c. None is causal: the rows are the last
            columns, and each sees those up to its own.

    Returns:
        [B, heads, N, D].
    """
    if torch.compiler.is_exporting():
        return torch.onnx.ops.attention(q, k, v, mask)[0]
    num_rows, num_columns = q.shape[2], k.shape[2]
    if num_rows == 1:
        # Heads that share keys are rows of one head: PyTorch's kernel for bfloat16 takes a fifth of the time on a CPU.
        grouped = q.reshape(q.shape[0], k.shape[1], -1, q.shape[3])
        return nn.functional.scaled_dot_product_attention(grouped, k, v, mask).reshape(q.shape)
    is_causal = mask is None and num_rows == num_columns  # PyTorch's own, which skips what no row sees
    if mask is None and not is_causal and num_rows > 1:
        mask = torch.ones(num_rows, num_columns, dtype=torch.bool, device=q.device).tril(num_columns - num_rows)
    return nn.functional.scaled_dot_product_attention(q, k, v, mask, is_causal=is_causal, enable_gqa=True)
