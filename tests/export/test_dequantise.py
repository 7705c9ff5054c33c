"""Quantised weights in the graph: what ONNX's own reference makes of it, what the file holds, what PyTorch is given."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator

import ppd.export.weights as weights_module
from ppd.errors import ExportError
from ppd.export.exporter import export
from ppd.export.fold import fold
from ppd.export.forms import Forms
from ppd.export.quantise import Form, Quantised, quantise
from ppd.export.text import run_checkpoint
from ppd.export.trace import trace
from ppd.export.weights import ExportedWeights, UntiedWeights, placeholder_decoder
from ppd.models.checkpoint import open_weights
from ppd.models.config import read_config
from ppd.signature import WEIGHTS_FILE
from ppd.tree import Tree
from tests.tiny_models import FEATURES, save_tiny_model

INT4, UINT4 = onnx.TensorProto.INT4, onnx.TensorProto.UINT4
INT8, UINT8 = onnx.TensorProto.INT8, onnx.TensorProto.UINT8
FLOAT, FLOAT16 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
NUM_QUANTISED = 4 * 2 + 1  # without the embedding


@pytest.fixture(scope="module", params=["llama", "llama_tied"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose projections have two blocks or more."""
    folder = tmp_path_factory.mktemp("wide")
    with pytest.MonkeyPatch.context() as patch:
        kind, fields = FEATURES[request.param]
        sizes = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 70}
        patch.setitem(FEATURES, request.param, (kind, fields | sizes))
        save_tiny_model(request.param, folder)
    return folder


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_the_graph_computes_with_the_checkpoint_rounded_to_the_precision(
    precision: str, model: Path, tmp_path: Path
) -> None:
    export(str(model), "cpu", precision=precision, out=tmp_path / "bundle")
    graph = onnx.load(tmp_path / "bundle" / "model.onnx").graph
    config, forms = read_config(model), Forms(precision)
    dtype = torch.float16 if precision == "fp16" else torch.float32

    with open_weights(model, config) as opened:
        inputs = run_checkpoint(
            lambda name: opened.read(name).float(), config, "english", None, 1, keep_inputs=precision == "int4"
        ).inputs
        source = UntiedWeights(opened) if config.tied else opened
        names = [*opened.names, *(["head.weight"] if config.tied and forms.quantise else [])]
        for name in names:
            original = source.read(name).float()
            form, fitted_to = forms.of(name, tuple(original.shape)), inputs.get(name.removesuffix(".weight"))
            if form is None:
                expected = original.to(dtype).float()
            elif name == "embedding.weight":
                expected = quantise(original.T, form).dequantise().T
            else:
                expected = quantise(original, form, fitted_to).dequantise()
            assert np.array_equal(held_weight(graph, f"decoder.{name}").astype(np.float32), expected.numpy()), name


def held_weight(graph: onnx.GraphProto, name: str) -> np.ndarray:
    """A weight of the graph; where it is quantised, what ONNX's own reference makes of its nodes."""
    stored = {tensor.name: tensor for tensor in graph.initializer}
    if name in stored:
        return onnx.numpy_helper.to_array(stored[name])
    output = f"{name}_dequantised"
    made = {value: node for node in graph.node for value in node.output}
    needed, nodes, ids = [output], list[onnx.NodeProto](), "no ids"
    while needed:
        node = made[needed.pop()]
        nodes.insert(0, node)
        if node.op_type == "Gather":
            ids = node.input[1]
        needed += [value for value in node.input if value in made and value != ids]
    parts = [stored[value] for value in dict.fromkeys(v for node in nodes for v in node.input) if value in stored]
    given = onnx.helper.make_tensor_value_info(ids, onnx.TensorProto.INT64, [None])
    wanted = onnx.helper.make_tensor_value_info(output, FLOAT, None)
    alone = onnx.helper.make_graph(nodes, "one", [given] if ids != "no ids" else [], [wanted], parts)
    evaluator = ReferenceEvaluator(onnx.helper.make_model(alone, opset_imports=[onnx.helper.make_opsetid("", 24)]))
    rows = stored[f"{name}_q"].dims[0]
    found: Any = evaluator.run(None, {ids: np.arange(rows)} if ids != "no ids" else {})
    return found[0]


@pytest.mark.parametrize("gpu", ["cpu", "jetson-orin"])
@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_the_file_has_the_types_and_bytes_of_the_precision(
    precision: str, gpu: str, model: Path, tmp_path: Path
) -> None:
    bundle = export(str(model), gpu, precision=precision, out=tmp_path / "bundle").bundle
    graph = onnx.load(bundle.path("model.onnx"), load_external_data=False).graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    on_cpu = gpu == "cpu"
    scale = FLOAT if on_cpu else FLOAT16

    def described(name: str) -> list[tuple[int, list[int]]]:
        parts = [stored.get(f"decoder.{name}{part}") for part in ("_q", "_scale", "_zero_point")]
        return [(tensor.data_type, list(tensor.dims)) for tensor in parts if tensor is not None]

    down = {
        ("int8", True): [(UINT8, [64, 96]), (scale, [64, 3]), (UINT8, [64, 3])],
        ("int8", False): [(INT8, [96, 64]), (scale, [64])],
        ("int4", True): [(UINT4, [64, 96]), (scale, [64, 3]), (UINT4, [64, 3])],
        ("int4", False): [(INT4, [96, 64]), (scale, [3, 64])],
    }[precision, on_cpu]
    assert described("blocks.1.mlp.down.weight") == down
    head = [(UINT8, [70, 64]), (scale, [70, 1]), (UINT8, [70, 1])] if on_cpu else [(INT8, [64, 70]), (scale, [70])]
    assert described("head.weight") == head
    assert described("embedding.weight") == ([(INT8, [70, 64]), (scale, [70, 1])] if on_cpu else [])
    places = {entry.key: int(entry.value) for entry in stored["decoder.blocks.1.mlp.down.weight_q"].external_data[1:]}
    assert places["length"] == 96 * 64 // (2 if precision == "int4" else 1)
    nodes = [node for node in graph.node if node.op_type == "DequantizeLinear"]
    assert len(nodes) == NUM_QUANTISED
    attributes = [{a.name: a.i for a in node.attribute} for node in nodes if "down" in node.name]
    per_output = precision == "int8" and not on_cpu
    assert attributes == 2 * [{"axis": 1} if per_output else {"axis": int(on_cpu), "block_size": 32}]


@pytest.mark.parametrize(("precision", "dtype"), [("int8", torch.float16), ("int4", torch.float32)])
def test_pytorch_reads_what_was_written_and_notices_damage(
    precision: str, dtype: torch.dtype, model: Path, tmp_path: Path
) -> None:
    config, forms = read_config(model), Forms(precision)
    with open_weights(model, config) as opened:
        weights = ExportedWeights(opened, config, forms, dtype)
        write(weights, model, tmp_path)
        quantised = [n for n in opened.names if n != "embedding.weight" and forms.of(n, tuple(opened.read(n).shape))]
        for name in quantised[:-1]:
            form = forms.of(name, tuple(opened.read(name).shape))
            assert form is not None
            found = quantise(opened.read(name), form)
            expected = Quantised(found.values, found.scales.to(dtype).float(), found.zero_points).dequantise()
            assert torch.equal(weights.exported(name), expected), name
        assert torch.equal(weights.exported("norm.weight"), opened.read("norm.weight").to(dtype).float())

        content = (tmp_path / WEIGHTS_FILE).read_bytes()
        (tmp_path / WEIGHTS_FILE).write_bytes(bytes(byte ^ 1 for byte in content))
        with pytest.raises(ExportError, match=f"does not hold what decoder.{quantised[-1]} was quantised to"):
            weights.exported(quantised[-1])


def write(weights: ExportedWeights, model: Path, folder: Path) -> None:
    """Trace and write a graph of these weights, as an export does."""
    config = read_config(model)
    graph = trace(placeholder_decoder(config, 16, weights.dtype), 3, 10)
    if config.tied:  # a tied head is no projection: an export unties it first
        pytest.skip("exports of tied models are tested whole")
    weights.put_into(graph)
    fold(graph, torch.zeros(3, config.hidden_size).to(weights.dtype).numpy(), Tree.none(3), folder)


def test_an_export_quantises_every_weight_once(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forms: list[Form] = []

    def count(weight: torch.Tensor, form: Form, inputs: torch.Tensor | None) -> Quantised:
        forms.append(form)
        assert (inputs is not None) == (form.bits == 4)
        return quantise(weight, form, inputs)

    monkeypatch.setattr(weights_module, "quantise", count)

    damage = export(str(model), "cpu", precision="int4", out=tmp_path / "bundle").bundle.manifest.damage

    assert sorted(form.bits for form in forms) == [4] * 8 + [8] * 2  # head and embedding have 8
    assert damage is not None
    assert damage.mean_kl > 0
