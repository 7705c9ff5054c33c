"""Weights on their way into a graph: numbers that 16 bits do not hold are told as such."""

from pathlib import Path
from typing import cast

import pytest
import torch

import ppd
from ppd.errors import ExportError
from ppd.export.forms import Forms
from ppd.export.weights import ExportedWeights, ReadableWeights
from ppd.models.config import read_config

NAME = "blocks.0.mlp.down.weight"
CONFIG = read_config(Path(ppd.__file__).parent / "models" / "tinypy")


class Weights:
    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = weight

    def read(self, name: str) -> torch.Tensor:
        assert name == NAME
        return self.weight


def exported(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    one = cast("ReadableWeights", Weights(weight))
    return ExportedWeights(one, CONFIG, Forms("fp16", for_tensorrt=False), dtype).exported(NAME)


@pytest.mark.parametrize("value", [65600.0, -1e5, 3e38])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_that_overflows_is_named(value: float, dtype: torch.dtype) -> None:
    weight = torch.tensor([[0.0, 1.0], [value, 2.0]], dtype=dtype)
    with pytest.raises(ExportError, match=rf"{NAME} has numbers up to .* fp16 ends at 65504.*--precision fp32"):
        exported(weight, torch.float16)
    assert exported(weight, torch.float32).isfinite().all()


def test_a_weight_that_just_fits_is_exported() -> None:
    assert exported(torch.tensor([[65504.0, -65504.0]]), torch.float16).tolist() == [[65504.0, -65504.0]]
