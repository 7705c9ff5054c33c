"""TensorRT-RTX parses and builds our graphs on a machine without a GPU."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from typer.testing import CliRunner

from ppd.build.config import BuildSettings
from ppd.build.engine import add_lowered_graph, build
from ppd.build.finish import finish_for_target
from ppd.build.lower import lower
from ppd.build.network import has_fused_attention, parse, profiles_for, read_graph, require_native
from ppd.build.serialize import compute_capabilities, serialize_engine
from ppd.bundle import Bundle, open_bundle
from ppd.changes import refold_tree
from ppd.cli import build as _  # noqa: F401 - registers the command
from ppd.cli.app import app
from ppd.errors import EngineError
from ppd.export.exporter import export
from ppd.export.fold import fold
from ppd.export.trace import trace
from ppd.models.config import read_config
from ppd.models.decoder import Decoder
from ppd.runtime.engines.tensorrt.built import Device, engine_role, find_engine
from ppd.runtime.recording import recording_length
from ppd.targets import find_target
from ppd.tree import Tree
from tests.copies import link_bundle
from tests.tiny_models import FEATURES, save_tiny_model

trt = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed")

ADA = find_target("rtx-4090")
HEADS = {
    "mha_64": {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 64},
    "gqa_64": {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64},
    "gqa_128": {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 128},
}


@pytest.fixture(scope="module", params=HEADS)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a tiny model, fp32."""
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FEATURES, "llama", ("LlamaConfig", HEADS[request.param]))
        save_tiny_model("llama", folder / "model")
    return export(str(folder / "model"), "cpu", out=folder / "bundle").bundle.folder


@pytest.fixture
def own(bundle: Path, tmp_path: Path) -> Path:
    return link_bundle(bundle, tmp_path / "own")


def in_fp16(bundle: Bundle, model: Path) -> Bundle:
    """The same shape traced in fp16, with random weights: its graph replaces the bundle's."""
    decoder = Decoder(read_config(model), bundle.manifest.context).requires_grad_(False)
    for parameter in decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    decoder.half()
    for path in bundle.folder.iterdir():
        path.unlink()
    m, hidden = bundle.manifest.prompt_tokens.count, bundle.manifest.model.hidden_size
    fold(
        trace(decoder, m, bundle.manifest.num_top_ids),
        torch.zeros(m, hidden).half().numpy(),
        bundle.tree,
        bundle.folder,
    )
    return bundle


def quantised(folder: Path, kind: int, block: int | None) -> None:
    """Make the weights of every projection in the folder's graph random `kind` numbers.

    They have a scale per block of inputs, or, without blocks, per output.
    """
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    graph, random = model.graph, np.random.default_rng(0)
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
    for node in [node for node in graph.node if node.op_type == "MatMul" and node.input[1] in shapes]:
        name, (rows, columns) = node.input[1], shapes[node.input[1]]
        if columns % 2:
            continue  # the vocabulary of the tiny model is odd, which 4-bit packing does not take
        weights = random.integers(-7, 8, (rows, columns)).astype(dtype)
        scales = np.full((rows // block, columns) if block else columns, 0.05, np.float16)
        attributes: dict[str, Any] = {"axis": 0, "block_size": block} if block else {"axis": 1}
        graph.initializer.append(onnx.numpy_helper.from_array(weights, f"{name}_quantised"))
        graph.initializer.append(onnx.numpy_helper.from_array(scales, f"{name}_scale"))
        inputs, output = [f"{name}_quantised", f"{name}_scale"], f"{name}_dequantised"
        graph.node.insert(0, onnx.helper.make_node("DequantizeLinear", inputs, [output], **attributes))
        node.input[1] = output
    onnx.save(model, folder / "model.onnx")


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_a_graph_with_quantised_weights_builds(own: Path, bundle: Path, precision: str) -> None:
    opened = in_fp16(open_bundle(own), bundle.parent / "model")
    kind, block = (onnx.TensorProto.INT8, None) if precision == "int8" else (onnx.TensorProto.INT4, 32)
    quantised(own, kind, block)
    graph = onnx.load(own / "model.onnx", load_external_data=False)

    plan = serialize_engine(trt, opened, profiles_for(opened), BuildSettings(capability="8.9"), lowered=False)

    assert plan.layers["DEQUANTIZE"] == 4 * 2
    assert plan.layers["ATTENTION_INPUT"] == 2
    opset = lower(graph, opened.manifest.model.num_heads).opset_import[0].version
    assert opset == (20 if block is None else 21)  # blocks came with opset 21


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_graph_builds_with_native_layers(own: Path, bundle: Path, precision: str) -> None:
    opened = open_bundle(own)
    if precision == "fp16":
        opened = in_fp16(opened, bundle.parent / "model")
    model = read_graph(opened, 640, lowered=False)

    plan = serialize_engine(trt, opened, profiles_for(opened), BuildSettings(capability="8.9"), lowered=False)

    assert plan.content.nbytes > 0
    assert has_fused_attention(model, opened.manifest.model.head_dim) == (precision == "fp16")
    assert plan.layers["ATTENTION_INPUT"] == opened.manifest.model.num_layers
    assert plan.layers["KV_CACHE_UPDATE"] == plan.layers["ROTARY_EMBEDDING"] == 2 * opened.manifest.model.num_layers
    assert "SOFTMAX" not in plan.layers


def test_the_lowered_graph_builds_without_the_layers_that_10_3_lacks(own: Path) -> None:
    opened = add_lowered_graph(open_bundle(own))

    plan = serialize_engine(trt, opened, profiles_for(opened), BuildSettings(capability="8.6"), lowered=True)

    assert plan.has_buckets
    assert not {"ATTENTION_INPUT", "KV_CACHE_UPDATE", "ROTARY_EMBEDDING"} & plan.layers.keys()
    assert open_bundle(own).has("model-lowered.onnx")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tiny bundle for what does not depend on the shape."""
    folder = tmp_path_factory.mktemp("small")
    save_tiny_model("llama", folder / "model")
    return export(str(folder / "model"), "cpu", out=folder / "bundle").bundle.folder


@pytest.fixture
def small(exported: Path, tmp_path: Path) -> Path:
    return link_bundle(exported, tmp_path / "small")


def test_an_engine_is_kept_found_and_not_built_twice(small: Path) -> None:
    info = build(small, "tensorrt-rtx", target=ADA)
    opened = open_bundle(small)
    written = opened.path(engine_role(info.key)).stat()

    assert opened.manifest.engines == [info]
    assert info.size_bytes == written.st_size
    assert (info.gpu, info.compute_capability, info.checked) == (None, "8.9", False)
    assert build(small, "tensorrt-rtx", target=ADA) == info
    assert opened.path(engine_role(info.key)).stat().st_mtime_ns == written.st_mtime_ns
    assert find_engine(opened, "tensorrt-rtx", trt.__version__, Device("RTX 4090", "8.9", 128)) == info


def test_another_tree_makes_the_engine_stale_and_a_build_replaces_it(small: Path) -> None:
    first = build(small, "tensorrt-rtx", target=ADA)
    refolded = refold_tree(small, Tree.none(3), source="test")

    with pytest.raises(EngineError, match="another tree was folded in since it was built"):
        find_engine(refolded, "tensorrt-rtx", trt.__version__, Device("RTX 4090", "8.9", 128))

    second = build(small, "tensorrt-rtx", target=ADA)
    assert second.key != first.key
    assert second.max_decode_rows == 1
    assert {path.name for path in (small / "engines").iterdir()} == {f"{second.key}.engine", f"{second.key}.log"}
    assert open_bundle(small).manifest.engines == [second]


def test_the_build_reads_the_tree_that_the_manifest_names(small: Path) -> None:
    refolded = refold_tree(small, Tree.none(3), source="test")
    (small / "tree.bin").unlink()

    model = read_graph(refolded, 640, lowered=False)
    tables = [tensor for tensor in model.graph.initializer if tensor.name in ("tree_mask", "tree_depth")]

    assert {entry.value for t in tables for entry in t.external_data if entry.key == "location"} == {
        refolded.manifest.files["tree.bin"].path
    }
    assert build(small, "tensorrt-rtx", target=ADA).max_decode_rows == 1


def test_engines_for_several_gpus_live_side_by_side(small: Path) -> None:
    infos = [build(small, "tensorrt-rtx", target=find_target(name)) for name in ("rtx-4090", "rtx-3090")]

    assert open_bundle(small).manifest.engines == infos
    assert len({info.key for info in infos}) == 2


def test_profiles_follow_the_tree(small: Path) -> None:
    opened = open_bundle(small)
    m, largest = opened.manifest.prompt_tokens.count, max(opened.tree.step_sizes)

    prefill, decode = profiles_for(opened).ranges({})
    wide = profiles_for(opened, max_rows=128)

    assert prefill["input_ids"][2] == (1, opened.manifest.max_rows)
    assert prefill["head_rows"][2][0] == recording_length(m) + m
    assert decode == {"input_ids": ((1, 1), (1, largest), (1, largest)), "head_rows": ((1,), (largest,), (largest,))}
    assert wide.ranges({})[1]["input_ids"] == ((1, 1), (1, largest), (1, 128))


def test_a_calibration_engine_is_another_engine(small: Path) -> None:
    infos = [build(small, "tensorrt-rtx", target=ADA, max_rows=rows) for rows in (None, 128)]

    assert [info.max_decode_rows for info in infos] != [128, 128]
    assert infos[0].key != infos[1].key


def test_progress_runs_to_the_end(small: Path) -> None:
    seen: list[float] = []

    build(small, "tensorrt-rtx", target=ADA, progress=lambda _phase, share: seen.append(share))

    assert seen == sorted(seen)
    assert seen[-1] == 1.0


def test_a_gpu_that_tensorrt_rtx_does_not_know_is_refused(small: Path) -> None:
    assert "8.7" not in compute_capabilities(trt)
    with pytest.raises(EngineError, match=r"not for jetson-orin \(8.7\); run ppd build .* on the device itself"):
        build(small, "tensorrt-rtx", target=find_target("jetson-orin"))


def test_a_network_with_other_layers_than_expected_is_refused(small: Path) -> None:
    opened, logger = open_bundle(small), trt.Logger(trt.Logger.INTERNAL_ERROR)
    builder = trt.Builder(logger)
    network = parse(trt, logger, builder, read_graph(opened, 640, lowered=False), small)

    require_native(trt, network, 2)
    with pytest.raises(EngineError, match=r"parsed .*'KV_CACHE_UPDATE': 4.*expected"):
        require_native(trt, network, 3)


def test_export_for_an_rtx_gpu_leaves_an_engine(tmp_path: Path) -> None:
    save_tiny_model("llama", tmp_path / "model")

    bundle = export(str(tmp_path / "model"), "rtx-4090", out=tmp_path / "bundle").bundle

    assert [info.compute_capability for info in bundle.manifest.engines] == ["8.9"]
    assert not bundle.has("BUILD.md")


def test_export_for_a_jetson_leaves_the_lowered_graph_and_the_two_commands(tmp_path: Path) -> None:
    save_tiny_model("llama", tmp_path / "model")

    bundle = export(str(tmp_path / "model"), "jetson-orin", out=tmp_path / "bundle").bundle
    notes = bundle.path("BUILD.md").read_text("utf-8")

    assert bundle.has("model-lowered.onnx")
    assert bundle.manifest.engines == []
    assert "cannot be built on another machine" in notes
    (wheel,) = (name for name in bundle.manifest.files if name.endswith(".whl"))
    assert f'pip install "./{wheel}[tensorrt-jetson]" "cuda-python>=12.6.2.post1,<12.9"\n```' in notes
    assert "\nppd build . --engine tensorrt\n" in notes
    assert "parsed and built both graphs" in notes
    assert "$" not in notes


@pytest.mark.parametrize(
    ("target", "lowered", "jetpack_6", "fastest"),
    [
        ("jetson-orin-nano-8-super", True, True, "MAXN_SUPER"),
        ("jetson-thor", True, False, "MAXN"),  # JetPack 7.0 and 7.1 have 10.13
        ("h100", False, False, None),
    ],
)
def test_the_notes_fit_the_target(
    target: str, lowered: bool, jetpack_6: bool, fastest: str | None, small: Path
) -> None:
    bundle = finish_for_target(small, find_target(target))
    notes = bundle.path("BUILD.md").read_text("utf-8")

    assert bundle.has("model-lowered.onnx") == lowered
    assert ("parsed and built both graphs" in notes) == lowered
    assert ('"cuda-python>=12.6.2.post1,<12.9"' in notes) == jetpack_6
    assert ("venv --system-site-packages ~/ppd-env" in notes) == (fastest is not None)
    assert (f"The fastest of this target is {fastest};" in notes) == (fastest is not None)
    assert "nvpmodel -m 0" not in notes  # which on an Orin Nano in super mode is one of the slower
    assert ("\npip install tensorrt " in notes) == (target == "h100")


def test_what_the_notes_say_is_the_target_s_whatever_it_is_called(small: Path) -> None:
    board = dataclasses.replace(find_target("jetson-orin-nx-16"), name="my-board", notes=["Mind the fan."])

    notes = finish_for_target(small, board).path("BUILD.md").read_text("utf-8")

    assert "Mind the fan." in notes
    assert "The fastest of this target is MAXN;" in notes


def test_the_command_builds_and_says_what(small: Path) -> None:
    done = CliRunner().invoke(app, ["build", str(small), "--gpu", "rtx-4090"])

    assert done.exit_code == 0, done.output
    assert "tensorrt-rtx" in done.output
    assert "unchecked: run ppd check on the device" in done.output
    assert len(open_bundle(small).manifest.engines) == 1


def test_a_target_without_the_memory_is_refused_before_the_build(own: Path) -> None:
    small = dataclasses.replace(ADA, memory_gb=0.001)

    with pytest.raises(EngineError, match=r"need about [\d.]+ GB, rtx-4090 has 0.0 GB; .*--context or precision"):
        build(own, "tensorrt-rtx", target=small)
    finished = finish_for_target(own, small)

    assert finished.manifest.engines == []
    assert "No engine was built: it would need" in (own / "BUILD.md").read_text("utf-8")
