"""The projection of every module."""

import torch
from torch import Tensor, nn


class Linear(nn.Module):
    """A projection whose weight is kept as [in, out], the order that `MatMul` reads: the graph needs no transpose."""

    def __init__(self, in_size: int, out_size: int, *, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(in_size, out_size))
        self.bias = nn.Parameter(torch.empty(out_size)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Project [..., in] to [..., out]."""
        y = torch.matmul(x, self.weight)
        return y if self.bias is None else y + self.bias
