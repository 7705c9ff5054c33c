"""Unrolling: a graph of two traced layers, copied, is the graph that tracing every layer gives."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch

from ppd.errors import ExportError
from ppd.export import trace as tracing
from ppd.export.trace import trace
from ppd.export.unroll import unroll
from ppd.models.config import ModelConfig, Rope
from ppd.models.decoder import Decoder, StepGraph

LAYERS, CAPACITY = 4, 128


def decoder(num_layers: int = LAYERS, *, qk_norm: bool = True) -> Decoder:
    """Random weights, different in every layer."""
    torch.manual_seed(0)
    config = ModelConfig(
        architecture="qwen3",
        vocab_size=50,
        hidden_size=32,
        ffn_size=48,
        num_layers=num_layers,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        norm_eps=1e-6,
        rope=Rope(theta=1e4),
        qkv_bias=True,
        output_bias=False,
        mlp_bias=False,
        qk_norm=qk_norm,
        tied=True,
        context=64,
        eos_ids=(),
    )
    model = Decoder(config, 64)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    return model.requires_grad_(False).eval()


def kinds(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def test_the_graph_is_the_one_that_tracing_every_layer_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    unrolled = trace(decoder(), 3, 10)
    monkeypatch.setattr(tracing, "TRACED_LAYERS", LAYERS)
    monkeypatch.setattr(tracing, "unroll", lambda _model, _num_layers: None)
    whole = trace(decoder(), 3, 10)

    assert kinds(unrolled) == kinds(whole)
    for kind in ("inputs", "outputs"):
        assert [v.name for v in getattr(unrolled.graph, kind)] == [v.name for v in getattr(whole.graph, kind)]
    parameters = {name for name in whole.graph.initializers if name.startswith("decoder.")}
    assert parameters == {name for name in unrolled.graph.initializers if name.startswith("decoder.")}


def test_it_answers_as_the_decoder_does(tmp_path: Path) -> None:
    model = decoder()
    ir.save(trace(model, 3, 10), tmp_path / "model.onnx")
    session = ort.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    rng = np.random.default_rng(0)
    caches = [rng.normal(size=(1, 2, CAPACITY, 8)).astype(np.float32) for _ in names[4:]]
    step = [np.array([[3, 1, 4]]), np.array([1]), np.array([7]), np.array([0, 2])]

    found = session.run(None, dict(zip(names, [*step, *caches], strict=True)))
    expected = StepGraph(model, 3, 10).eval()(*map(torch.tensor, step), [torch.tensor(cache) for cache in caches])

    difference = max(np.abs(a - b.numpy()).max() for a, b in zip(found[1:], expected[1:], strict=True))
    print(f"largest difference {difference:.2g}")
    assert difference < 1e-4


@pytest.mark.parametrize("num_layers", [1, 2])
def test_a_model_of_one_or_two_layers_is_traced_whole(num_layers: int) -> None:
    assert kinds(trace(decoder(num_layers), 3, 10)).count("Attention") == num_layers


def test_layers_that_differ_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(tracing, "unroll", lambda model, _: kept.append(model.clone()))
        kept: list[ir.Model] = []
        patched.setattr(tracing, "_strip_metadata", lambda _: None)
        trace(decoder(2), 3, 10)
    (model,) = kept
    attention = [node for node in model.graph if node.op_type == "Attention"][1]
    attention.attributes["scale"] = ir.AttrFloat32("scale", 0.5)

    with pytest.raises(ExportError, match="the traced layers differ"):
        unroll(model, LAYERS)


def test_a_value_that_leaves_its_layer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[ir.Model] = []
    monkeypatch.setattr(tracing, "unroll", lambda model, _: kept.append(model.clone()))
    monkeypatch.setattr(tracing, "_strip_metadata", lambda _: None)
    trace(decoder(2), 3, 10)
    (model,) = kept
    normed = next(node for node in model.graph if "blocks.1.mlp_norm" in str(node.inputs)).outputs[0]
    last = [node for node in model.graph if node.op_type == "RMSNormalization"][-1]
    last.replace_input_with(0, normed)

    with pytest.raises(ExportError, match="leaves its layer"):
        unroll(model, LAYERS)
