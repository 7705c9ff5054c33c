"""What was trained beside a model, as a safetensors file: read whole, and held against what the model takes."""

from collections.abc import Mapping
from pathlib import Path

import safetensors
from safetensors.torch import load
from torch import Tensor

from ppd.errors import PromptTokensError


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Every tensor by its name.

    Raises:
        PromptTokensError: The file cannot be read, or is damaged.
    """
    try:
        return load(file.read_bytes())
    except (OSError, safetensors.SafetensorError) as error:
        raise PromptTokensError(f"{file} is not a readable safetensors file ({error!s:.200}); copy it again") from error


def require_tensors(tensors: Mapping[str, Tensor], expected: Mapping[str, list[int]], file: Path, remedy: str) -> None:
    """Refuse tensors that a model does not take.

    Args:
        expected: Name → shape.
        remedy: What to do about another name or shape.

    Raises:
        PromptTokensError: A name or shape differs, or a tensor has numbers that are not finite or not floating-point.
    """
    found = {name: list(tensor.shape) for name, tensor in tensors.items()}
    if found != expected:
        wrong = min(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
        raise PromptTokensError(
            f"{file}: {wrong:.60} is {found.get(wrong, 'missing')!s:.60}, expected "
            f"{expected.get(wrong, 'no such tensor')}; {remedy}"
        )
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
            raise PromptTokensError(f"{file}: {name} holds NaN, infinite values or whole numbers; train it again")
