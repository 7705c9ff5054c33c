"""Forms: how each weight of the decoder is stored at a precision, by its name, its shape and the device.

| weight | on ONNX Runtime's CPU | for TensorRT |
|---|---|---|
| projections, int8 | 8 bits, blocks, no sign | 8 bits, a scale per output |
| projections, int4 | 4 bits, blocks with zero points | 4 bits, blocks |
| the same, of GPTQ or AWQ | the checkpoint's numbers and zero points | the checkpoint's numbers, if symmetric |
| LM head, projections of guess heads | 8 bits, blocks, no sign | 8 bits, a scale per output |
| embedding | 8 bits, a scale per row | the graph's type |

TensorRT dequantises only blocks of 4 bits, without zero points, and reads 8-bit constants only in `DequantizeLinear`:
rows cannot be gathered before they are dequantised. A tied table becomes two, the head and the embedding, which
together are smaller than one of 32 bits. Norms and biases keep the graph's type.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ppd.errors import ExportError
from ppd.export.quantise import Form
from ppd.precision import PRECISIONS
from ppd.signature import GUESS_HEADS_PREFIX

EMBEDDING, HEAD = "embedding.weight", "head.weight"
_BLOCKS = {4: (64, 32, 16), 8: (256, 128, 64, 32, 16)}
"""Bits → how many inputs share a scale: the first that divides the inputs. Blocks of 64 are a quarter faster on a CPU
than blocks of 32, in 4 bits."""
_BLOCKS_FOR_TENSORRT = (32, 16)
"""The same for TensorRT, in 4 bits."""


@dataclass(frozen=True, slots=True)
class Forms:
    """The forms of one export.

    Attributes:
        groups: As of `ppd.models.checkpoint.Weights`; they count for projections of 4 bits.
        asymmetric: The same.

    Raises:
        ExportError: Zero points would have to be taken over that the device does not take.
    """

    precision: str
    for_tensorrt: bool = False
    groups: Mapping[str, int] = field(default_factory=dict)
    asymmetric: str = ""

    def __post_init__(self) -> None:
        if self.asymmetric and self.for_tensorrt and PRECISIONS[self.precision].bits == 4:
            raise ExportError(
                f"{self.asymmetric} has zero points other than 8, and TensorRT takes none in 4 bits: export with "
                "--precision fp16 or int8, or get a symmetric checkpoint (sym true, zero_point false)"
            )

    @property
    def quantise(self) -> bool:
        """Whether anything is quantised."""
        return PRECISIONS[self.precision].is_quantised

    def of(self, name: str, shape: tuple[int, ...]) -> Form | None:
        """How a weight is stored; None for the graph's own type.

        Args:
            name: A parameter of the decoder, such as "blocks.0.attention.qkv.weight".
            shape: The parameter's. For the embedding [V, hidden], the form is that of its transpose.
        """
        if not self.quantise:
            return None
        if name == EMBEDDING:
            return None if self.for_tensorrt else Form(8, None)
        if not is_head(name) and not _is_of_layer(name, shape):
            return None
        if self.takes_over(name):
            return Form(4, self.groups[name], zero_points=not self.for_tensorrt)
        bits = 8 if is_head(name) else PRECISIONS[self.precision].bits
        if bits == 8 and self.for_tensorrt:
            return Form(8, None)
        blocks = _BLOCKS_FOR_TENSORRT if self.for_tensorrt else _BLOCKS[bits]
        block = next((size for size in blocks if shape[0] % size == 0), None)
        return None if block is None else Form(bits, block, zero_points=not self.for_tensorrt)

    def takes_over(self, name: str) -> bool:
        """Whether a weight's numbers are the checkpoint's own."""
        return PRECISIONS[self.precision].bits == 4 and name in self.groups and not is_head(name)

    def kept(self, shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
        """Projections that no block divides and that stay unquantised; "mlp.down" stands for every layer's.

        Raises:
            ExportError: No projection of a layer is quantised: the export would not be what was asked for.
        """
        if not self.quantise:
            return []
        of_layers = {name for name, shape in shapes.items() if _is_of_layer(name, shape)}
        heads = {name for name in shapes if is_head(name)}
        kept = {name for name in of_layers | heads if self.of(name, shapes[name]) is None}
        if of_layers <= kept:
            widths = " and ".join(map(str, sorted({shapes[name][0] for name in of_layers})))
            raise ExportError(
                f"{self.precision} takes blocks of {_BLOCKS[4][-1]} inputs, which do not divide this model's {widths}; "
                "export with --precision fp32, or fp16 for a GPU"
            )
        return _kinds(kept)


def is_head(name: str) -> bool:
    """Whether it is a projection to the vocabulary, the LM head or that of a guess head."""
    return name == HEAD or name.startswith(f"{GUESS_HEADS_PREFIX}projections.")


def _is_of_layer(name: str, shape: tuple[int, ...]) -> bool:
    """Whether it is the weight of a projection of a layer, or inside guess heads."""
    return (
        name.startswith(("blocks.", GUESS_HEADS_PREFIX))
        and not is_head(name)
        and name.endswith(".weight")
        and len(shape) == 2
    )


def _kinds(names: Iterable[str]) -> list[str]:
    """Names without the layer's number and the word "weight", each once."""
    bare = (name.removesuffix(".weight") for name in names)
    return sorted({name.split(".", 2)[2] if name.startswith("blocks.") else name for name in bare})
