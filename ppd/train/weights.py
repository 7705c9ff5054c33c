"""Weights of the frozen model: 16 or 32 bits, and what products are computed in."""

from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import nn

from ppd.models.checkpoint import load_decoder, open_weights
from ppd.models.config import ModelConfig
from ppd.models.decoder import Decoder
from ppd.train.spread import spread

_JUDGED = "blocks.0.mlp.down.weight"
"""The weight whose type counts as the checkpoint's: norms are often kept wider."""


def stored_dtype(path: Path, config: ModelConfig) -> torch.dtype:
    """The type that a checkpoint's projections have.

    Raises:
        ModelError: The checkpoint cannot be read.
    """
    with open_weights(path, config) as weights:
        return weights.parts(_JUDGED)[0].dtype


def choose_dtype(asked: str, stored: torch.dtype, device: torch.device) -> torch.dtype:
    """The type that the weights are held in.

    Args:
        asked: "float32", "bfloat16", or "auto": 16 bits stay 16 bits on a GPU that computes with bfloat16. A CPU widens
            them, since few have 16-bit products.
    """
    if asked == "auto":
        is_narrow = stored.itemsize == 2
        return torch.bfloat16 if is_narrow and device.type == "cuda" and has_bfloat16(device) else torch.float32
    return torch.bfloat16 if asked == "bfloat16" else torch.float32


def load_frozen(path: Path, config: ModelConfig, dtype: torch.dtype, *devices: torch.device) -> Decoder:
    """The decoder, its norms in float32 whatever the rest is: hidden states are, and cost little.

    Args:
        devices: Where it goes: its layers are spread over them.

    Raises:
        ModelError: As for `load_decoder`.
    """
    decoder = load_decoder(path, config, config.context, dtype)
    for module in decoder.modules():
        if isinstance(module, nn.RMSNorm):
            module.float()
    return spread(decoder, devices)


def products(decoder: Decoder, *, in_steps: bool = False) -> AbstractContextManager[None]:
    """What the model's products are computed in: bfloat16 where the weights are.

    Args:
        in_steps: Also where the weights are float32 and the device multiplies bfloat16 natively: the steps of training.
            Rollouts and figures are computed in the type of the weights.
    """
    weight = decoder.embedding.weight
    enabled = weight.dtype == torch.bfloat16 or (in_steps and has_bfloat16(weight.device))
    context: AbstractContextManager[None] = torch.autocast(weight.device.type, torch.bfloat16, enabled=enabled)
    return context


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 natively."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)  # else true of every GPU
    return bool(torch.cpu._is_avx512_bf16_supported())  # oneDNN also takes it where it only emulates it
