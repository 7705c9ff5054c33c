"""Dequantise: the nodes that a graph needs to read quantised weights, and the weights as its file has them.

A weight [in, out] of a `MatMul` becomes `DequantizeLinear → MatMul`. With zero points it is stored [out, in], in the
bytes that ONNX Runtime's kernel reads, and `DequantizeLinear → Transpose → MatMul` (`ppd/build/fuse.py` makes these the
kernel). A row of the embedding is gathered as whole numbers and multiplied by its scale: `Gather → Cast → Mul`.
"""

import functools
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field

import ml_dtypes
import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from ppd.errors import ExportError
from ppd.export.forms import EMBEDDING
from ppd.export.quantise import Form, Quantised
from ppd.signature import QUANTISED_SUFFIX, SCALE_SUFFIX, ZERO_POINT_SUFFIX

_REMEDY = "use the torch version of constraints.txt"
_KINDS = {
    (8, False): ir.DataType.INT8,
    (8, True): ir.DataType.UINT8,
    (4, False): ir.DataType.INT4,
    (4, True): ir.DataType.UINT4,
}
"""Bits, and whether there are zero points → the type of the whole numbers."""


@dataclass(frozen=True, slots=True)
class Promise:
    """A weight to be quantised when the graph is written.

    Attributes:
        name: The initializer that it replaces by `<name>_q`, `<name>_scale` and `<name>_zero_point`.
        quantise: Computes the weight, [in, out]; called once.
        checksums: Checksums of what was written, by initializer.
    """

    name: str
    form: Form
    quantise: Callable[[], Quantised]
    checksums: dict[str, int] = field(default_factory=dict)


def dequantise_in_graph(model: ir.Model, promise: Promise) -> None:
    """Replace an initializer by its quantised form. Nothing is computed before the graph is written.

    Raises:
        ExportError: The weight is not read by a `MatMul`, or the embedding not by a `Gather`: the tracer changed the
            graph.
    """
    weight = model.graph.initializers[promise.name]
    readers = [node for node, _ in weight.uses()]
    is_embedding = promise.name.endswith(EMBEDDING)
    operator, place = ("Gather", 0) if is_embedding else ("MatMul", 1)
    if not readers or any(node.op_type != operator or node.inputs[place] is not weight for node in readers):
        raise ExportError(f"{promise.name} is not read by a {operator}; {_REMEDY}")
    parts = _register(model, weight, promise, is_embedding=is_embedding)
    for reader in readers:
        if is_embedding:
            _gather_and_scale(model, reader, parts, promise.name)
        else:
            _dequantise_before(model, reader, parts, promise)
    del model.graph.initializers[promise.name]


def _dequantise_before(model: ir.Model, reader: ir.Node, parts: list[ir.Value], promise: Promise) -> None:
    weight, form, name = reader.inputs[1], promise.form, promise.name
    assert weight is not None
    by_output = form.zero_points or form.block is None
    attributes = {"axis": int(by_output)} | ({"block_size": form.block} if form.block else {})
    node = ir.node("DequantizeLinear", parts, attributes, name=f"{name}_dequantise")
    model.graph.insert_before(reader, node)
    if form.zero_points:
        _describe(node.outputs[0], f"{name}_by_output", parts[1].dtype, parts[0].shape)
        node = ir.node("Transpose", node.outputs, {"perm": [1, 0]}, name=f"{name}_transpose")
        model.graph.insert_before(reader, node)
    _describe(node.outputs[0], f"{name}_dequantised", parts[1].dtype, weight.shape)
    reader.replace_input_with(1, node.outputs[0])


def _gather_and_scale(model: ir.Model, reader: ir.Node, parts: list[ir.Value], name: str) -> None:
    """`Gather(table, ids)` becomes the gathered numbers times the gathered scales [V, 1]."""
    values, scales = parts
    whole, scale = (ir.node("Gather", [table, reader.inputs[1]], name=f"{table.name}_rows") for table in parts)
    numbers = ir.node("Cast", [whole.outputs[0]], {"to": scales.dtype}, name=f"{name}_cast")
    rows = ir.node("Mul", [numbers.outputs[0], scale.outputs[0]], name=f"{name}_dequantise")
    old = reader.outputs[0]
    assert old.shape is not None
    _describe(whole.outputs[0], f"{name}_whole", values.dtype, old.shape)
    _describe(scale.outputs[0], f"{name}_row_scales", scales.dtype, ir.Shape([*list(old.shape)[:-1], 1]))
    _describe(numbers.outputs[0], f"{name}_numbers", scales.dtype, old.shape)
    _describe(rows.outputs[0], f"{name}_dequantised", scales.dtype, old.shape)
    model.graph.insert_before(reader, [whole, scale, numbers, rows])
    old.replace_all_uses_with(rows.outputs[0])
    model.graph.remove(reader, safe=True)


def _describe(value: ir.Value, name: str, dtype: ir.DataType | None, shape: ir.Shape | None) -> None:
    value.name, value.shape = name, shape
    value.dtype = dtype or ir.DataType.FLOAT


def _register(model: ir.Model, weight: ir.Value, promise: Promise, *, is_embedding: bool) -> list[ir.Value]:
    """The initializers of a quantised weight, lazy; the last one written frees the weight."""
    form, name = promise.form, promise.name
    shape = tuple(weight.shape.numpy()) if weight.shape is not None else ()
    kind: ir.DataType = weight.dtype or ir.DataType.FLOAT
    computed = functools.lru_cache(maxsize=1)(promise.quantise)
    # The rows of an embedding are its outputs; other weights are [in, out], and stored so unless a kernel decides.
    by_output = form.zero_points or is_embedding
    num_outputs, num_inputs = shape if is_embedding else shape[::-1]
    num_blocks = num_inputs // form.block if form.block else 1

    def laid_out(numbers: Tensor) -> np.ndarray:
        return (numbers if by_output else numbers.T.contiguous()).numpy()

    def values() -> np.ndarray:
        return _packable(laid_out(computed().values), whole)

    def scales() -> np.ndarray:
        return laid_out(computed().scales).astype(kind.numpy()).reshape(scale_shape)

    def zero_points() -> np.ndarray:
        found = computed().zero_points
        assert found is not None
        return _packable(found.numpy(), whole)

    whole = _KINDS[form.bits, form.zero_points]
    scale_shape: tuple[int, ...] = (num_blocks, num_outputs) if form.block else (num_outputs,)
    if by_output:
        shape, scale_shape = (num_outputs, num_inputs), (num_outputs, num_blocks)
    parts = [(QUANTISED_SUFFIX, whole, shape, values), (SCALE_SUFFIX, kind, scale_shape, scales)]
    if form.zero_points:
        parts.append((ZERO_POINT_SUFFIX, whole, scale_shape, zero_points))
    registered = []
    for suffix, dtype, size, make in parts:
        is_last = suffix == parts[-1][0]
        tensor = _lazy(
            f"{name}{suffix}", dtype, size, make, promise.checksums, computed.cache_clear if is_last else None
        )
        value = ir.Value(name=tensor.name, shape=ir.Shape(size), type=ir.TensorType(dtype), const_value=tensor)
        model.graph.register_initializer(value)
        registered.append(value)
    return registered


def _lazy(
    name: str,
    dtype: ir.DataType,
    shape: tuple[int, ...],
    make: Callable[[], "np.ndarray"],
    checksums: dict[str, int],
    after: Callable[[], None] | None,
) -> ir.LazyTensor:
    def compute() -> ir.TensorProtocol:
        tensor = ir.Tensor(make(), dtype=dtype, name=name)
        checksums[name] = zlib.crc32(tensor.tobytes())
        if after is not None:
            after()
        return tensor

    return ir.LazyTensor(compute, dtype, ir.Shape(shape), name=name)


def _packable(numbers: "np.ndarray", dtype: ir.DataType) -> "np.ndarray":
    four_bits = {ir.DataType.INT4: ml_dtypes.int4, ir.DataType.UINT4: ml_dtypes.uint4}
    return numbers.astype(four_bits[dtype]) if dtype in four_bits else numbers


def stored(model: ir.Model, promise: Promise) -> Quantised:
    """A quantised weight as the graph holds it; memory-mapped if the graph was written to a file.

    Raises:
        ExportError: The file does not hold the bytes that were written.
    """
    found = {}
    for suffix in (QUANTISED_SUFFIX, SCALE_SUFFIX, ZERO_POINT_SUFFIX):
        value = model.graph.initializers.get(f"{promise.name}{suffix}")
        if value is None or value.const_value is None:
            continue
        content = _bytes(value.const_value)
        expected = promise.checksums.pop(value.name or "", None)  # once is enough
        if expected is not None and zlib.crc32(content.numpy().data) != expected:
            raise ExportError(
                f"the file of weights does not hold what {promise.name} was quantised to; export again, to another disk"
            )
        found[suffix] = _numbers(content, value.const_value)
    values, scales = found[QUANTISED_SUFFIX], found[SCALE_SUFFIX].float()
    if promise.form.zero_points or promise.name.endswith(EMBEDDING):
        return Quantised(values, scales, found.get(ZERO_POINT_SUFFIX))
    return Quantised(values.T, scales.view(-1, values.shape[1]).T)


def _numbers(content: Tensor, tensor: ir.TensorProtocol) -> Tensor:
    """The tensor of these bytes; 4-bit numbers become int8 or uint8."""
    shape = tensor.shape.numpy()
    if tensor.dtype.bitwidth > 4:
        return content.view(_STORED[tensor.dtype]).view(shape)
    # Two in a byte, the first in its lower half; a signed shift keeps the sign.
    halves = content.view(torch.int8) if tensor.dtype == ir.DataType.INT4 else content
    lower = (halves << 4) >> 4
    numbers = torch.stack([lower, halves >> 4], -1).flatten()
    return numbers[: int(np.prod(shape))].view(shape)


_STORED = {
    ir.DataType.INT8: torch.int8,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.FLOAT: torch.float32,
}


def _bytes(tensor: ir.TensorProtocol) -> Tensor:
    """uint8 [bytes] of a tensor; copied only when written to."""
    if isinstance(tensor, ir.ExternalTensor):
        return torch.from_numpy(np.memmap(tensor.path, np.uint8, "c", tensor.offset or 0, (tensor.nbytes,)))
    return torch.frombuffer(bytearray(tensor.tobytes()), dtype=torch.uint8)
