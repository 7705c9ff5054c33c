"""Quantising: against a naive loop, and what PyTorch is given against what the graph itself computes."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from ppd.export.exporter import export
from ppd.export.quantise import bits_of, block_size, dequantised, quantise
from ppd.export.weights import ExportedWeights
from ppd.models.checkpoint import open_weights
from ppd.models.config import read_config
from tests.tiny_models import save_tiny_model


def naive(weight: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Number by number: the same whole numbers and scales, or a loud difference."""
    size = block_size(len(weight))
    assert size is not None
    most = 2 ** (bits - 1) - 1
    values = np.zeros(weight.shape, np.int8)
    scales = np.zeros((len(weight) // size, weight.shape[1]), np.float32)
    for column in range(weight.shape[1]):
        for block in range(len(scales)):
            rows = slice(block * size, (block + 1) * size)
            largest = max(abs(number) for number in weight[rows, column])
            scale = np.float32(largest) / np.float32(most) if largest > 0 else np.float32(1)
            scales[block, column] = scale
            for row in range(rows.start, rows.stop):
                values[row, column] = min(most, max(-most, round(float(np.float32(weight[row, column]) / scale))))
    return values, scales


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("rows", "block"), [(96, 32), (48, 16)])
def test_quantise_equals_a_naive_loop(bits: int, rows: int, block: int) -> None:
    weight = torch.randn(rows, 7, generator=torch.Generator().manual_seed(bits + rows))
    weight[:block, 2] = 0  # a block of nothing
    weight[3, 4] = 40.0  # and one with an outlier

    got = quantise(weight, bits)
    values, scales = naive(weight.numpy(), bits)

    assert got.scales.shape == (rows // block, 7)
    assert np.array_equal(got.values.numpy(), values)
    assert np.array_equal(got.scales.numpy(), scales)
    error = (got.dequantise() - weight).abs()
    assert bool((error <= 0.5001 * got.scales.repeat_interleave(block, 0)).all())
    assert float(error.max()) > 0
    assert bool((got.dequantise()[:block, 2] == 0).all())


@pytest.mark.parametrize("bits", [4, 8])
def test_quantise_is_symmetric(bits: int) -> None:
    weight = torch.randn(64, 5, generator=torch.Generator().manual_seed(7))

    there, back = quantise(weight, bits), quantise(-weight, bits)

    assert torch.equal(there.values, -back.values)
    assert torch.equal(there.scales, back.scales)
    assert int(there.values.abs().max()) == 2 ** (bits - 1) - 1


def test_what_is_quantised_is_decided_by_name_and_shape() -> None:
    for precision, bits in (("int8", 8), ("int4", 4)):
        assert bits_of("blocks.3.mlp.down.weight", (48, 32), precision) == bits
        assert bits_of("head.weight", (32, 62), precision) == bits
        assert bits_of("embedding.weight", (64, 32), precision) is None
        assert bits_of("blocks.0.attention_norm.weight", (32,), precision) is None
        assert bits_of("blocks.0.attention.q.bias", (32,), precision) is None
        assert bits_of("blocks.0.mlp.down.weight", (40, 32), precision) is None  # no block size divides 40
    assert bits_of("blocks.3.mlp.down.weight", (48, 32), "fp16") is None


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_pytorch_reads_the_numbers_that_the_graph_holds(precision: str, tmp_path: Path) -> None:
    save_tiny_model("llama_gqa", tmp_path / "model")
    export(str(tmp_path / "model"), "cpu", precision=precision, out=tmp_path / "bundle")
    graph = onnx.load(tmp_path / "bundle" / "model.onnx").graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    config = read_config(tmp_path / "model")
    dtype = torch.float16 if precision == "fp16" else torch.float32

    with open_weights(tmp_path / "model", config) as opened:
        weights = ExportedWeights(opened, precision, dtype)
        for name in opened.names:
            held = weight_in_graph(graph, stored, f"decoder.{name}")
            assert np.array_equal(held.astype(np.float32), weights.exported(name).numpy()), name
            is_exact = np.array_equal(held.astype(np.float32), weights.original(name).numpy())
            assert is_exact == (precision == "fp32" or name_is_exact(weights, name, dtype)), name


def name_is_exact(weights: ExportedWeights, name: str, dtype: torch.dtype) -> bool:
    """Whether a weight that is not quantised keeps its numbers in the graph's type."""
    original = weights.original(name)
    if bits_of(name, tuple(original.shape), weights.precision) is not None:
        return False
    return torch.equal(original, dequantised(original, None, dtype))


def weight_in_graph(graph: onnx.GraphProto, stored: dict[str, onnx.TensorProto], name: str) -> np.ndarray:
    """A stored weight; where it is quantised, what ONNX's own reference makes of its `DequantizeLinear`."""
    if name in stored:
        return onnx.numpy_helper.to_array(stored[name])
    node = next(node for node in graph.node if node.op_type == "DequantizeLinear" and name in node.output[0])
    output = onnx.helper.make_tensor_value_info(node.output[0], stored[node.input[1]].data_type, None)
    alone = onnx.helper.make_graph([node], "one", [], [output], [stored[part] for part in node.input])
    model = onnx.helper.make_model(alone, opset_imports=[onnx.helper.make_opsetid("", 24)])
    return ReferenceEvaluator(model).run(None, {})[0]
