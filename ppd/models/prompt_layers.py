"""Prompt layers: what prompt rows get in every layer besides their embeddings, where a few embeddings are too little.

Rows of text get exactly nothing, so that what is verified is what plain decoding computes.

Axis letters besides `ppd.signature`'s: r rank.
"""

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from ppd.models.config import ModelConfig, PromptLayersConfig


class Vectors(nn.Module):
    """A vector for each prompt token.

    Attributes:
        table: [m+1, hidden], by place; that of text stays zero.
    """

    def __init__(self, config: ModelConfig, count: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(count + 1, config.hidden_size))

    def forward(self, places: Tensor) -> Tensor:
        """Places int64 [B, N] → [B, N, hidden]."""
        return nn.functional.embedding(places, self.table, padding_idx=0)


class Product(nn.Module):
    """LoRA (Hu et al., arXiv 2106.09685) that prompt rows alone pass, as in arXiv 2507.11851.

    Attributes:
        down: [hidden, r]
        up: [r, queries + keys + values]
    """

    def __init__(self, config: ModelConfig, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(config.hidden_size, rank))
        self.up = nn.Parameter(torch.empty(rank, sum(config.qkv_sizes)))

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        """Rows [B, N, hidden], and 1 for a prompt row, [B, N, 1] → [B, N, queries + keys + values]."""
        return torch.matmul(torch.matmul(x * gate, self.down), self.up)


class PromptLayer(nn.Module):
    """What one layer gives to prompt rows.

    Attributes:
        vectors: What it adds beside its MLP.
        product: What it adds to queries, keys and values; None of rank 0.
    """

    def __init__(self, config: ModelConfig, layers: PromptLayersConfig) -> None:
        super().__init__()
        self.vectors = Vectors(config, layers.count)
        self.product = Product(config, layers.rank) if layers.rank else None

    @torch.no_grad()
    def start(self, generator: torch.Generator) -> None:
        """Set the weights that training starts from: prompt rows get nothing yet."""
        self.vectors.table.zero_()
        if self.product is not None:
            down = self.product.down
            down.copy_(torch.randn(down.shape, generator=generator) / len(down) ** 0.5)
            self.product.up.zero_()


def started_layers(config: ModelConfig, layers: PromptLayersConfig, seed: int) -> list[PromptLayer]:
    """One for each layer of a model, as training starts; float32, on the CPU."""
    made = [PromptLayer(config, layers) for _ in range(config.num_layers)]
    generator = torch.Generator().manual_seed(seed)
    for layer in made:
        layer.start(generator)
    return made


class PromptRows:
    """The prompt rows among the rows of a pass.

    Args:
        places: int64 [B, N], j for prompt row j, 0 for a row of text.
        layers: A `PromptLayer` for each layer of the model.
        dtype: What prompt layers compute in.
    """

    def __init__(self, places: Tensor, layers: Iterable[nn.Module], dtype: torch.dtype) -> None:
        self._places, self._layers = places, list(cast("Iterable[PromptLayer]", layers))
        self._gate = (places > 0).to(dtype)[..., None]  # [B, N, 1]

    def to(self, device: torch.device) -> "PromptRows":
        """The same rows on the device where a layer computes; what layers give them stays where it lies.

        What moves a layer's arguments calls it, as it calls that of tensors (`ppd.train.spread`).
        """
        return PromptRows(self._places.to(device), self._layers, self._gate.dtype)

    def projected(self, layer: int, x: Tensor, qkv: Tensor) -> Tensor:
        """Queries, keys and values of a layer, [B, N, …], with what it adds to those of prompt rows.

        Args:
            x: [B, N, hidden], what they were projected from.
        """
        product = self._layers[layer].product
        return qkv if product is None else qkv + product(x, self._gate)

    def vectors(self, layer: int) -> Tensor:
        """What a layer adds beside its MLP, [B, N, hidden]."""
        found: Tensor = self._layers[layer].vectors(self._places)
        return found
