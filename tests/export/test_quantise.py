"""Quantising: against a naive loop, and what PyTorch is given against what the graph itself computes."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from ppd.errors import ExportError
from ppd.export import quantise as quantising
from ppd.export.exporter import export
from ppd.export.fold import fold
from ppd.export.quantise import Quantised, bits_of, block_size, quantise
from ppd.export.trace import trace
from ppd.export.weights import ExportedWeights, placeholder_decoder
from ppd.models.checkpoint import open_weights
from ppd.models.config import read_config
from ppd.signature import WEIGHTS_FILE
from ppd.tree import Tree
from tests.tiny_models import FEATURES, save_tiny_model


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
        assert bits_of("blocks.0.attention.qkv.bias", (32,), precision) is None
        assert bits_of("blocks.0.mlp.down.weight", (40, 32), precision) is None  # no block size divides 40
    assert bits_of("blocks.3.mlp.down.weight", (48, 32), "fp16") is None


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_the_graph_holds_the_checkpoint_rounded_to_the_precision(precision: str, tmp_path: Path) -> None:
    save_tiny_model("llama_gqa", tmp_path / "model")
    export(str(tmp_path / "model"), "cpu", precision=precision, out=tmp_path / "bundle")
    graph = onnx.load(tmp_path / "bundle" / "model.onnx").graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    config = read_config(tmp_path / "model")
    dtype = torch.float16 if precision == "fp16" else torch.float32

    with open_weights(tmp_path / "model", config) as opened:
        for name in opened.names:
            original = opened.read(name)
            bits = bits_of(name, tuple(original.shape), precision)
            rounded = original.to(dtype).float() if bits is None else quantise(original, bits).dequantise()
            held = weight_in_graph(graph, stored, f"decoder.{name}").astype(np.float32)
            assert np.array_equal(held, rounded.numpy()), name
            is_exact = np.array_equal(held, original.float().numpy())
            assert is_exact == (bits is None and torch.equal(original, original.to(dtype).float())), name


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose projections have two blocks or more."""
    folder = tmp_path_factory.mktemp("wide")
    with pytest.MonkeyPatch.context() as patch:
        sizes = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 64}
        patch.setitem(FEATURES, "llama", ("LlamaConfig", sizes))
        save_tiny_model("llama", folder)
    return folder


@pytest.mark.parametrize(("bits", "dtype"), [(8, torch.float16), (4, torch.float32)])
def test_pytorch_reads_what_was_written_and_notices_damage(
    bits: int, dtype: torch.dtype, model: Path, tmp_path: Path
) -> None:
    precision = f"int{bits}"
    with open_weights(model, read_config(model)) as opened:
        weights = ExportedWeights(opened, precision, dtype)
        write(weights, model, tmp_path)
        *names, last = (n for n in opened.names if bits_of(n, tuple(opened.read(n).shape), precision))
        for name in names:
            found = quantise(opened.read(name), bits)
            expected = Quantised(found.values, found.scales.to(dtype).float(), bits).dequantise()
            assert torch.equal(weights.exported(name), expected), name
        assert torch.equal(weights.exported("norm.weight"), opened.read("norm.weight").to(dtype).float())

        content = (tmp_path / WEIGHTS_FILE).read_bytes()
        (tmp_path / WEIGHTS_FILE).write_bytes(bytes(byte ^ 1 for byte in content))
        with pytest.raises(ExportError, match=f"does not hold what {last} was quantised to"):
            weights.exported(last)


def write(weights: ExportedWeights, model: Path, folder: Path) -> None:
    """Trace and write a graph of these weights, as an export does."""
    config = read_config(model)
    graph = trace(placeholder_decoder(config, 16, weights.dtype), 3, 10)
    weights.put_into(graph, config)
    fold(graph, torch.zeros(3, config.hidden_size).to(weights.dtype).numpy(), Tree.none(3), folder)


def test_an_export_quantises_every_weight_once(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []

    def count(weight: torch.Tensor, bits: int) -> Quantised:
        rows.append(len(weight))
        return quantise(weight, bits)

    monkeypatch.setattr(quantising, "quantise", count)

    damage = export(str(model), "cpu", precision="int4", out=tmp_path / "bundle").bundle.manifest.damage

    num_projections = 4 * 2 + 1
    assert sum(number > 32 for number in rows) == num_projections  # whole, when they are written
    assert rows.count(32) == num_projections  # and one block of each, to verify the file
    assert damage is not None
    assert damage.mean_kl > 0


def weight_in_graph(graph: onnx.GraphProto, stored: dict[str, onnx.TensorProto], name: str) -> np.ndarray:
    """A stored weight; where it is quantised, what ONNX's own reference makes of its `DequantizeLinear`."""
    if name in stored:
        return onnx.numpy_helper.to_array(stored[name])
    node = next(node for node in graph.node if node.op_type == "DequantizeLinear" and name in node.output[0])
    output = onnx.helper.make_tensor_value_info(node.output[0], stored[node.input[1]].data_type, None)
    alone = onnx.helper.make_graph([node], "one", [], [output], [stored[part] for part in node.input])
    model = onnx.helper.make_model(alone, opset_imports=[onnx.helper.make_opsetid("", 24)])
    return ReferenceEvaluator(model).run(None, {})[0]
