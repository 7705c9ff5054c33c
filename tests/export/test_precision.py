"""Exports at every precision: what ONNX Runtime makes of the graph, what the manifest tells, what memory it takes."""

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import onnx
import onnxruntime as ort
import pytest

from ppd import runtime
from ppd.build.config import BuildSettings
from ppd.build.engine import add_lowered_graph
from ppd.build.network import profiles_for
from ppd.build.serialize import serialize_engine
from ppd.bundle import Bundle
from ppd.errors import EngineError
from ppd.export import exporter
from ppd.export.exporter import export
from ppd.models.config import read_config
from ppd.signature import FUSED_GRAPH_FILE, GRAPH_FILE
from ppd.tree_tables import tree_tables_from_bytes
from tests.tiny_models import FEATURES, save_tiny_model

QUANTISED = ["llama_gqa", "qwen2", "qwen3_bias"]


@pytest.fixture(scope="module", params=QUANTISED)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param)
    save_tiny_model(request.param, path)
    return path


@pytest.fixture(scope="module", params=["int8", "int4"])
def quantised(request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("out") / request.param
    return export(str(folder), "cpu", precision=request.param, out=out).bundle


def optimised_operators(bundle: Bundle, graph: str, path: Path) -> Counter[str]:
    """The operators that ONNX Runtime really runs."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(path)
    tables = tree_tables_from_bytes(bundle.path("tree.bin").read_bytes(), bundle.manifest.prompt_tokens.count)
    values = [ort.OrtValue.ortvalue_from_numpy(table) for table in tables]
    options.add_external_initializers(["tree_mask", "tree_depth"], values)
    ort.InferenceSession(bundle.path(graph), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)


def test_every_projection_is_one_kernel(quantised: Bundle, folder: Path, tmp_path: Path) -> None:
    num_projections = 4 * read_config(folder).num_layers + 1  # a tied LM head is quantised too
    graph = onnx.load(quantised.path("model.onnx"), load_external_data=False).graph
    written = Counter(node.op_type for node in graph.node)

    run, standard = (
        optimised_operators(quantised, graph, tmp_path / "optimised.onnx") for graph in (FUSED_GRAPH_FILE, GRAPH_FILE)
    )

    assert written["DequantizeLinear"] == num_projections
    assert written["MatMul"] == num_projections
    assert run["MatMulNBits"] == num_projections
    assert run["DequantizeLinear"] == 0
    assert run["MatMul"] + run["FusedMatMul"] == 0
    assert standard["MatMulNBits"] == 0, "the pass makes them"


def test_onnx_runtime_keeps_the_embedding_in_whole_numbers(quantised: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "optimised.onnx"
    optimised_operators(quantised, FUSED_GRAPH_FILE, path)
    tables = [
        (tensor.data_type, list(tensor.dims))
        for tensor in onnx.load(path, load_external_data=False).graph.initializer
        if tensor.name == "decoder.embedding.weight_q"
    ]

    model = quantised.manifest.model
    assert tables == [(onnx.TensorProto.INT8, [model.vocab_size, model.hidden_size])]


def test_the_check_holds_and_the_damage_is_told(quantised: Bundle) -> None:
    manifest = quantised.manifest
    print(f"{manifest.precision}: largest difference {manifest.check.max_difference:.2e} of {manifest.check.tolerance}")
    assert manifest.check.max_difference <= manifest.check.tolerance
    assert manifest.damage is not None
    assert 0 < manifest.damage.mean_kl < {"int8": 0.05, "int4": 0.5}[manifest.precision]
    assert manifest.damage.top1_agreement > {"int8": 0.85, "int4": 0.5}[manifest.precision]
    assert manifest.damage.perplexity != manifest.damage.perplexity_before


def test_a_checkpoint_of_16_bits_loses_nothing_in_fp16(tmp_path: Path) -> None:
    theirs = save_tiny_model("llama_gqa", tmp_path / "fp32")
    theirs.half().save_pretrained(tmp_path / "fp16")

    damages = {
        name: export(
            str(tmp_path / name), "cpu", precision="fp16", out=tmp_path / f"{name}-bundle"
        ).bundle.manifest.damage
        for name in ("fp32", "fp16")
    }

    assert damages["fp16"] is None
    assert damages["fp32"] is not None
    assert damages["fp32"].mean_kl < 1e-3


def test_a_large_16_bit_graph_is_checked_by_its_first_layers_and_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tiny_model("llama_gqa", tmp_path / "model")
    for name, value in (("_LARGE", 0), ("_CUT_LAYERS", 1), ("_CUT_WORDS", 32)):
        monkeypatch.setattr(exporter, name, value)

    check = export(str(tmp_path / "model"), "cpu", precision="fp16", out=tmp_path / "cut").bundle.manifest.check

    assert check.engine.endswith("first 1 of 2 layers, 32 of 61 words")
    assert 0 < check.max_difference <= check.tolerance
    assert runtime.check_bundle(tmp_path / "cut", threads=1).num_rows > 100  # the whole one


def test_tensorrt_refuses_a_quantised_export_for_a_cpu(quantised: Bundle) -> None:
    trt = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed")

    with pytest.raises(EngineError, match=r"is quantised for cpu, .* export the model again with --gpu"):
        serialize_engine(trt, quantised, profiles_for(quantised), BuildSettings(capability="8.9"), lowered=False)


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_a_quantised_export_for_a_gpu_is_of_16_bits_and_builds(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed")
    heads = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64}
    monkeypatch.setitem(FEATURES, "llama", ("LlamaConfig", heads))
    save_tiny_model("llama", tmp_path / "model")

    bundle = export(str(tmp_path / "model"), "rtx-4090", precision=precision, out=tmp_path / "bundle").bundle
    lowered = serialize_engine(
        trt, add_lowered_graph(bundle), profiles_for(bundle), BuildSettings(capability="8.6"), lowered=True
    )

    assert "ATTENTION_INPUT" not in lowered.layers
    assert lowered.layers["DEQUANTIZE"] == 4 * 2 + 1
    graph = onnx.load(bundle.path("model.onnx"), load_external_data=False).graph
    stored = {tensor.name: tensor.data_type for tensor in graph.initializer}
    nodes = [node for node in graph.node if node.op_type == "DequantizeLinear"]
    *projections, head = nodes
    assert len(projections) == 4 * 2
    assert {stored[node.input[0]] for node in projections} == {getattr(onnx.TensorProto, precision.upper())}
    assert stored[head.input[0]] == onnx.TensorProto.INT8
    assert stored["decoder.embedding.weight"] == onnx.TensorProto.FLOAT16
    assert {stored[node.input[1]] for node in nodes} == {onnx.TensorProto.FLOAT16}
    assert {value.type.tensor_type.elem_type for value in graph.input[4:]} == {onnx.TensorProto.FLOAT16}
    assert [info.compute_capability for info in bundle.manifest.engines] == ["8.9"]
    assert bundle.manifest.rounding.name == "fp16"
    print(f"{precision}: largest difference {bundle.manifest.check.max_difference:.2e}")


_MEASURE = """
import sys, threading, time
from ppd.export.exporter import export
peak, done = [0], threading.Event()
def anonymous():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) * 1024
def watch():
    while not done.is_set():
        peak[0] = max(peak[0], anonymous()); time.sleep(0.005)
small, large, out = sys.argv[1:]
export(small, "cpu", precision="fp16", out=out + "/small-bundle")  # what the libraries take is there now
before = anonymous()
watcher = threading.Thread(target=watch); watcher.start()
export(large, "cpu", precision="fp16", out=out + "/large-bundle")
done.set(); watcher.join()
print("GROWN", peak[0] - before)
"""


_MAKE = """
import sys
from pathlib import Path
from make_model import Shape, write_model
shape = Shape(hidden_size=1024, ffn_size=4096, num_layers=16, num_heads=16, vocab_size=8000)
write_model(shape, Path(sys.argv[1]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the kernel's figures of a process")
def test_an_export_streams_its_weights(tmp_path: Path) -> None:
    """285 million parameters in 16 bits: memory of its own stays well below a copy of them."""
    save_tiny_model("llama_gqa", tmp_path / "small")
    benchmarks = Path(__file__).parents[2] / "benchmarks"
    subprocess.run([sys.executable, "-c", _MAKE, str(tmp_path / "large")], check=True, env=path_with(benchmarks))
    arguments = [str(tmp_path / "small"), str(tmp_path / "large" / "model"), str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, *arguments], check=True, capture_output=True, text=True, env=path_with()
    )
    found = re.search(r"GROWN (\d+)", done.stdout)
    assert found is not None
    grown, copy = int(found[1]), (tmp_path / "large" / "model" / "model.safetensors").stat().st_size
    print(f"grown by {grown / 1e6:.0f} MB; one copy is {copy / 1e6:.0f} MB")
    assert 0 < grown < 0.8 * copy


def path_with(*folders: Path) -> dict[str, str]:
    """This environment, with folders before what it imports from already."""
    root = Path(__file__).parents[2]
    return os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (*folders, root)))}
