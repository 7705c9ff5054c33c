"""Quantise: projections become whole numbers with a scale per block, in standard operators.

A weight [in, out] of a `MatMul` becomes `DequantizeLinear(q, scale, axis=0, block_size=B) → MatMul`: symmetric, no zero
point, one scale for B numbers along the inputs. ONNX Runtime fuses the pair into one kernel and TensorRT reads it as it
is. Embedding, norms, biases and prompt tokens keep the graph's own type. An LM head of its own is quantised as the rest
is (on a CPU, 8-bit weights have no fast kernel that computes in fp32, as int4's have); a tied one stays as it is:
quantised, it would be a second table.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from ppd.errors import ExportError
from ppd.precision import PRECISIONS

BLOCK_SIZES = (32, 16)
"""Numbers that share a scale: the first that divides the inputs of a projection."""
HEAD = "head.weight"


@dataclass(frozen=True)
class Quantised:
    """A weight as it is stored.

    Attributes:
        values: int8 [in, out], -7..7 or -127..127.
        scales: float32 [in / B, out].
        bits: 4 or 8.
    """

    values: Tensor
    scales: Tensor
    bits: int

    def dequantise(self) -> Tensor:
        """What the graph computes with: float32 [in, out]."""
        block = len(self.values) // len(self.scales)
        blocks = self.values.view(len(self.scales), block, -1).float().mul_(self.scales[:, None])
        return blocks.view(self.values.shape)


def bits_of(name: str, shape: tuple[int, ...], precision: str) -> int | None:
    """Bits of a weight, by its name in the decoder; None if it is not quantised.

    Args:
        name: Such as "blocks.0.attention.qkv.weight".
        shape: Its shape.
        precision: Of the export.
    """
    is_projection = name == HEAD or (name.startswith("blocks.") and name.endswith(".weight") and len(shape) == 2)
    found = PRECISIONS[precision]
    return found.bits if found.is_quantised and is_projection and block_size(shape[0]) is not None else None


def block_size(num_inputs: int) -> int | None:
    """B for a projection of so many inputs; None if no block size divides it."""
    return next((size for size in BLOCK_SIZES if num_inputs % size == 0), None)


def quantise(weight: Tensor, bits: int) -> Quantised:
    """Round a weight to whole multiples of a scale per block: the block's largest number keeps its value.

    Args:
        weight: Floating point [in, out].
        bits: 4 or 8.
    """
    size = block_size(len(weight))
    assert size is not None
    most = 2 ** (bits - 1) - 1
    blocks = weight.float().reshape(-1, size, weight.shape[1])  # [in / B, B, out]
    scales = blocks.abs().amax(1) / most
    scales = torch.where(scales > 0, scales, torch.ones_like(scales))
    values = (blocks / scales[:, None]).round_().clamp_(-most, most).to(torch.int8)
    return Quantised(values.view(weight.shape), scales, bits)


def quantise_graph(model: ir.Model, read: Callable[[str], Tensor], names: dict[str, str], precision: str) -> int:
    """Replace projections by their quantised form. Nothing is computed before the graph is written.

    Args:
        model: The traced graph; the weights of its `MatMul`s are [in, out].
        read: Name in the decoder → weight.
        names: Initializer → name in the decoder.
        precision: "int8" or "int4".

    Returns:
        How many projections were replaced.

    Raises:
        ExportError: A projection that should be quantised is not read by a `MatMul`.
    """
    graph, replaced = model.graph, set[str]()
    for node in list(graph):
        weight = node.inputs[1] if node.op_type == "MatMul" else None
        name = names.get(weight.name or "") if weight is not None else None
        if weight is None or name is None:
            continue
        shape = _sizes(weight)
        bits = bits_of(name, shape, precision)
        if bits is not None:
            dequantised = _dequantise_node(model, node, weight.name or "", functools.partial(read, name), shape, bits)
            node.replace_input_with(1, dequantised)
            replaced.add(weight.name or "")
    for initializer in replaced:
        del graph.initializers[initializer]
    wanted = {key for key, name in names.items() if _is_wanted(model, key, name, precision)}
    if wanted:
        raise ExportError(f"{min(wanted)} is not read by a MatMul; use the torch version of constraints.txt")
    return len(replaced)


def _is_wanted(model: ir.Model, key: str, name: str, precision: str) -> bool:
    value = model.graph.initializers.get(key)
    if value is None or value.shape is None:
        return False
    return bits_of(name, _sizes(value), precision) is not None


def _sizes(value: ir.Value) -> tuple[int, ...]:
    assert value.shape is not None
    return tuple(dim for dim in value.shape if isinstance(dim, int))


def _dequantise_node(
    model: ir.Model, before: ir.Node, name: str, read: Callable[[], Tensor], shape: tuple[int, ...], bits: int
) -> ir.Value:
    """`DequantizeLinear` in front of a node; its constants are computed when they are written, one weight at a time."""
    size = block_size(shape[0])
    assert size is not None
    kind = before.outputs[0].dtype or ir.DataType.FLOAT
    whole = ir.DataType.INT4 if bits == 4 else ir.DataType.INT8

    @functools.lru_cache(maxsize=1)
    def computed() -> Quantised:
        return quantise(read(), bits)

    def values() -> ir.TensorProtocol:
        numbers = computed().values.numpy()
        return ir.Tensor(numbers.astype(ml_dtypes.int4) if bits == 4 else numbers, dtype=whole, name=f"{name}_q")

    def scales() -> ir.TensorProtocol:
        numbers = computed().scales.numpy().astype(kind.numpy())
        computed.cache_clear()  # written last: the next weight has the memory
        return ir.Tensor(numbers, name=f"{name}_scale")

    parts = (
        ir.LazyTensor(values, whole, ir.Shape(shape), name=f"{name}_q"),
        ir.LazyTensor(scales, kind, ir.Shape((shape[0] // size, shape[1])), name=f"{name}_scale"),
    )
    inputs = []
    for tensor in parts:
        value = ir.Value(name=tensor.name, shape=ir.Shape(tensor.shape), type=ir.TensorType(tensor.dtype))
        value.const_value = tensor
        model.graph.register_initializer(value)
        inputs.append(value)
    node = ir.node("DequantizeLinear", inputs, {"axis": 0, "block_size": size}, name=f"{name}_dequantise")
    output = node.outputs[0]
    output.name, output.dtype, output.shape = f"{name}_dequantised", kind, ir.Shape(shape)
    model.graph.insert_before(before, node)
    return output


def stored(model: ir.Model, name: str) -> Quantised:
    """A quantised weight as the graph holds it. Of a graph that was written, the file is mapped: nothing is loaded.

    Args:
        model: The quantised graph.
        name: The initializer that was replaced.
    """
    values, scales = (model.graph.initializers[f"{name}_{part}"].const_value for part in ("q", "scale"))
    assert values is not None
    assert scales is not None
    numbers, bits = _bytes(values).view(torch.int8), values.dtype.bitwidth
    if bits == 4:  # two in a byte, the first in its lower half
        numbers = torch.stack([(numbers << 4) >> 4, numbers >> 4], -1)
    kind = torch.float16 if scales.dtype == ir.DataType.FLOAT16 else torch.float32
    return Quantised(
        numbers.view(values.shape.numpy()), _bytes(scales).view(kind).view(scales.shape.numpy()).float(), bits
    )


def _bytes(tensor: ir.TensorProtocol) -> Tensor:
    """uint8 [bytes] of a tensor; copied only when written to."""
    if isinstance(tensor, ir.ExternalTensor):
        return torch.from_numpy(np.memmap(tensor.path, np.uint8, "c", tensor.offset or 0, (tensor.nbytes,)))
    return torch.frombuffer(bytearray(tensor.tobytes()), dtype=torch.uint8)


def require_stored(found: Quantised, weight: Tensor, name: str, dtype: torch.dtype) -> None:
    """Verify that a stored weight is the checkpoint's: its last block is quantised again and compared.

    Args:
        found: From `stored`.
        weight: Floating point [in, out], from the checkpoint.
        name: Of the weight.
        dtype: The type that the scales were rounded to.

    Raises:
        ExportError: It is another weight, or was damaged on its way to the file.
    """
    size = block_size(len(weight))
    assert size is not None
    last = quantise(weight[-size:], found.bits)
    same = torch.equal(last.values, found.values[-size:])
    if not (same and torch.equal(last.scales.to(dtype).float(), found.scales[-1:])):
        raise ExportError(
            f"the file of weights does not hold what {name} was quantised to; export again, to another disk"
        )


def stored_bytes(num_weights: int, bits: int, item_bytes: int) -> int:
    """Bytes of so many quantised weights with their scales: arithmetic for reports."""
    return num_weights * bits // 8 + num_weights // BLOCK_SIZES[0] * item_bytes


def numpy_dtype(dtype: torch.dtype) -> np.dtype[np.floating]:
    """The numpy type of a torch type that graphs have."""
    return np.dtype(np.float16 if dtype == torch.float16 else np.float32)
