"""Prompt tokens with random prompt layers, for tiny random models."""

from pathlib import Path

import torch

from ppd.models.adapter import save_prompt_tokens
from ppd.models.config import ModelConfig, PromptLayersConfig, read_config
from ppd.models.prompt_layers import PromptLayer, started_layers
from ppd.models.prompt_layers_folder import save_prompt_layers

M = 3
RANKS = {"vectors": 0, "low-rank": 8}
"""Tier → rank."""


@torch.no_grad()
def random_layers(config: ModelConfig, rank: int) -> list[PromptLayer]:
    """Prompt layers that add about as much as an MLP does."""
    layers = started_layers(config, PromptLayersConfig(count=M, rank=rank), seed=0)
    torch.manual_seed(0)
    for layer in layers:
        for name, weight in layer.named_parameters():
            of_prompt_rows = weight[1:] if name == "vectors.table" else weight
            of_prompt_rows += 0.3 * torch.randn_like(of_prompt_rows)
    return layers


def save_random_layers(model: Path, folder: Path, rank: int) -> Path:
    """Random prompt tokens with random prompt layers for a model of a folder."""
    config = read_config(model)
    torch.manual_seed(1)
    save_prompt_tokens(0.3 * torch.randn(M, config.hidden_size), folder, "random")
    save_prompt_layers(random_layers(config, rank), folder)
    return folder
