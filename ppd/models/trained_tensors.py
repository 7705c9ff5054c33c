"""What was trained beside a model, as a safetensors file: read whole, and held against what the model takes."""

from collections.abc import Mapping
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load
from torch import Tensor

from ppd.errors import PromptTokensError

FLOAT_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""What trained tensors may be stored in; PyTorch computes little with narrower ones."""


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Every tensor by its name.

    Raises:
        PromptTokensError: The file cannot be read, or is damaged.
    """
    try:
        return load(file.read_bytes())
    except (OSError, safetensors.SafetensorError, KeyError) as error:  # KeyError: a type that PyTorch does not read
        raise PromptTokensError(f"{file} is not a readable safetensors file ({error!s:.200}); copy it again") from error


def require_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, list[int]], file: Path, remedy: str) -> None:
    """Refuse tensors that a model does not take.

    Args:
        expected: Name → shape.
        remedy: What to do about another name or shape.

    Raises:
        PromptTokensError: A name or shape differs, a tensor has none of `FLOAT_TYPES`, or no finite numbers in float32.
    """
    found = {name: list(tensor.shape) for name, tensor in tensors.items()}
    if found != expected:
        wrong = min(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        raise PromptTokensError(
            f"{file}: {wrong:.60} is {found.get(wrong, 'missing')!s:.60}, expected "
            f"{expected.get(wrong, 'no such tensor')}; {remedy}"
        )
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOAT_TYPES:
            raise PromptTokensError(
                f"{file}: {name} is {tensor.dtype}, expected a floating-point type of 16 bits or more; train it again"
            )
        if not bool(tensor.float().isfinite().all()):
            raise PromptTokensError(f"{file}: {name} holds NaN or infinite values; train it again")
