"""What was trained beside a model: types and numbers that no model takes are one line."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ppd.errors import PromptTokensError
from ppd.models.trained_tensors import FLOAT_TYPES, read_tensors, require_tensors


def read(tensor: Tensor, folder: Path) -> dict[str, Tensor]:
    """What is read of a file that holds one tensor of two by two."""
    save_file({"weight": tensor}, folder / "some.safetensors")
    tensors = read_tensors(folder / "some.safetensors")
    require_tensors(tensors, {"weight": [2, 2]}, folder / "some.safetensors", "train it again")
    return tensors


@pytest.mark.parametrize("dtype", FLOAT_TYPES)
def test_types_that_pytorch_computes_with_are_read(dtype: torch.dtype, tmp_path: Path) -> None:
    assert read(torch.ones(2, 2, dtype=dtype), tmp_path)["weight"].dtype == dtype


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.ones(2, 2).to(torch.float8_e4m3fn), r"weight is torch\.float8_e4m3fn, expected a floating-point type"),
        (torch.ones(2, 2).to(torch.float8_e8m0fnu), r"not a readable safetensors file|is torch\.float8_e8m0fnu"),
        (torch.ones(2, 2, dtype=torch.complex64), r"weight is torch\.complex64, expected a floating-point type"),
        (torch.full((2, 2), 1e300, dtype=torch.float64), r"weight holds NaN or infinite values"),
    ],
    ids=["8 bits", "a type that safetensors does not read", "complex", "beyond float32"],
)
def test_other_types_and_numbers_are_one_line(tensor: Tensor, message: str, tmp_path: Path) -> None:
    with pytest.raises(PromptTokensError, match=message) as raised:
        read(tensor, tmp_path)
    assert "\n" not in str(raised.value)
