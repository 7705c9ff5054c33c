"""Precisions: everything that the choice of one decides. A new one is an entry in `PRECISIONS`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ppd.errors import ArgumentError

GraphType = Literal["float32", "float16"]
"""Type of all that a graph does not quantise: activations, cache, logits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Precision:
    """How a bundle stores the weights of its projections, and what follows from it.

    Attributes:
        name: What `--precision` takes.
        bits: Bits per stored weight.
        bytes_per_weight: Bytes per weight, with its share of the scales.
        tolerance: Largest difference of a logit from PyTorch's in an exact engine, relative to the largest logit.
            Engines are checked as they compute exactly: the error of rounded activations depends on the model (0.4 % to
            17 % of the largest logit were seen for int8), so no bound on it would catch a wrong mask.
        tie_gap: ε: where plain decoding's own two best logits are closer than this, drafting may take the other.
        accuracy_level: What ONNX Runtime's CPU kernels compute quantised products in: 1 is fp32; 4 rounds activations
            to 8 bits, which is faster and can flip near-ties. None where nothing is quantised.
        computes_in: Engine → what it computes in, in words.
    """

    name: str
    bits: int
    bytes_per_weight: float
    tolerance: float
    tie_gap: float
    accuracy_level: int | None = None
    computes_in: Mapping[str, str]

    @property
    def is_quantised(self) -> bool:
        """Whether weights are whole numbers with scales."""
        return self.bits <= 8

    def graph_type(self, *, on_gpu: bool) -> GraphType:
        """The graph's type: 16 bits where asked for, and on GPUs unless the precision is fp32."""
        return "float16" if self.name == "fp16" or (on_gpu and self.name != "fp32") else "float32"


EXACT_LEVEL = 1
"""The accuracy level of an engine that is opened to be exact."""


def _computes_in(onnxruntime: str, onnxruntime_cuda: str, tensorrt: str, torch: str) -> Mapping[str, str]:
    return {
        "onnxruntime": onnxruntime,
        "onnxruntime-cuda": onnxruntime_cuda,
        "tensorrt": tensorrt,
        "tensorrt-rtx": tensorrt,
        "torch": torch,
    }


_ALL = (
    Precision(
        name="fp32",
        bits=32,
        bytes_per_weight=4.0,
        tolerance=1e-4,
        tie_gap=1e-4,
        computes_in=_computes_in("fp32", "fp32", "fp32", "fp32"),
    ),
    Precision(
        name="fp16",
        bits=16,
        bytes_per_weight=2.0,
        tolerance=2e-2,
        tie_gap=2e-2,
        computes_in=_computes_in("fp32", "fp16", "fp16", "fp32"),
    ),
    Precision(
        name="int8",
        bits=8,
        bytes_per_weight=1.01953125,
        tolerance=1e-4,
        tie_gap=0.5,
        accuracy_level=4,
        computes_in=_computes_in("int8", "fp16", "fp16", "fp32"),
    ),
    Precision(
        name="int4",
        bits=4,
        bytes_per_weight=0.5703125,
        tolerance=1e-4,
        tie_gap=0.5,
        accuracy_level=4,
        computes_in=_computes_in("int8", "fp16", "fp16", "fp32"),
    ),
)
PRECISIONS: Mapping[str, Precision] = {precision.name: precision for precision in _ALL}
"""By name, the most exact first. `bytes_per_weight` counts the fp32 scales and the zero points of int8's blocks of 256
and int4's blocks of 64."""


def find_precision(name: str) -> Precision:
    """The precision of this name.

    Raises:
        ArgumentError: There is no such precision.
    """
    if name not in PRECISIONS:
        raise ArgumentError(f"precision {name!r} cannot be exported; this version exports {', '.join(PRECISIONS)}")
    return PRECISIONS[name]


def rounding_of(precision: str, graph_type: GraphType) -> Precision:
    """The precision whose rounding an exact engine has: a 16-bit graph rounds as fp16 does, whatever its weights."""
    return PRECISIONS["fp16" if graph_type == "float16" else precision]


def tie_gap_of(precision: str, graph_type: GraphType) -> float:
    """ε for a bundle: the larger of its weights' and its graph's."""
    return max(PRECISIONS[precision].tie_gap, rounding_of(precision, graph_type).tie_gap)
