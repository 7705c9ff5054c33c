"""Exports of GPTQ's and AWQ's checkpoints: at int4 the graph has the checkpoint's own numbers and scales."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import load_file, save_file

from ppd.bundle import Bundle
from ppd.errors import ExportError
from ppd.export import exporter
from ppd.export.exporter import export
from ppd.export.forms import Forms
from ppd.export.weights import ExportedWeights
from ppd.models.checkpoint import open_weights
from ppd.models.config import read_config
from ppd.runtime.engines import open_engine
from ppd.signature import causal_state
from tests.packed_folders import SYMMETRIC, save_packed_model

QKV = "blocks.1.attention.qkv.weight"


def initializers(bundle: Bundle) -> dict[str, np.ndarray]:
    graph = onnx.load(bundle.path("model.onnx")).graph
    return {tensor.name.removeprefix("decoder."): numpy_helper.to_array(tensor) for tensor in graph.initializer}


def whole_weights(folder: Path) -> dict[str, np.ndarray]:
    """The decoder's projections [in, out] from the unpacked folder."""
    tensors = {name: tensor.numpy() for name, tensor in load_file(folder / "whole" / "model.safetensors").items()}
    found = {}
    for layer in range(2):
        for ours, theirs in (
            ("attention.qkv", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
            ("attention.o", ("self_attn.o_proj",)),
            ("mlp.gate_up", ("mlp.gate_proj", "mlp.up_proj")),
            ("mlp.down", ("mlp.down_proj",)),
        ):
            parts = [tensors[f"model.layers.{layer}.{name}.weight"] for name in theirs]
            found[f"blocks.{layer}.{ours}.weight"] = np.concatenate(parts).T
    return found


@pytest.mark.parametrize(
    ("name", "group"), [("gptq", 64), ("awq", 128), ("awq, asymmetric", 64), ("gptq, asymmetric", 32)]
)
def test_an_int4_export_for_a_cpu_computes_with_the_checkpoint_unrounded(name: str, group: int, tmp_path: Path) -> None:
    theirs = save_packed_model(tmp_path, name, group)
    bundle = export(str(tmp_path / "packed"), "cpu", precision="int4", out=tmp_path / "bundle").bundle
    stored = initializers(bundle)

    for weight, expected in whole_weights(tmp_path).items():
        numbers, scales, zeros = (stored[f"{weight}_{kind}"] for kind in ("q", "scale", "zero_point"))
        assert scales.shape == (expected.shape[1], expected.shape[0] // group)
        assert (zeros.astype(int) == 8).all() == (name in SYMMETRIC)
        steps = numbers.astype(np.float32) - np.repeat(zeros.astype(np.float32), group, 1)
        found = steps * np.repeat(scales, group, 1)
        assert np.array_equal(found.T, expected), weight

    # PyTorch's reference: transformers' model of the unpacked folder, with the two tables that are rounded to 8 bits.
    table = stored["embedding.weight_q"].astype(np.float32) * stored["embedding.weight_scale"]
    theirs.get_input_embeddings().weight.data = torch.from_numpy(table)
    numbers, scales = stored["head.weight_q"], stored["head.weight_scale"]
    head = (numbers.astype(np.float32) - 128) * np.repeat(scales, numbers.shape[1] // scales.shape[1], 1)
    theirs.get_output_embeddings().weight.data = torch.from_numpy(head)
    ids = np.random.default_rng(1).integers(0, 61, 40)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids)[None]).logits[0].numpy()
    engine = open_engine(bundle, "onnxruntime", exact=True)
    engine.restart(len(ids))
    engine.run(ids, causal_state(bundle.manifest.num_distances), 0, np.arange(len(ids)))
    difference = np.abs(np.stack([engine.logits(i) for i in range(len(ids))]) - expected).max()
    assert difference <= bundle.manifest.check.tolerance * np.abs(expected).max()


def test_an_int4_export_for_a_gpu_has_the_numbers_and_the_scales_of_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_packed_model(tmp_path, "gptq", 64)
    monkeypatch.setattr(exporter, "finish_for_target", lambda *_: None)  # no build is needed to look at the graph
    bundle = export(str(tmp_path / "packed"), "rtx-4090", precision="int4", out=tmp_path / "bundle").bundle

    stored = initializers(bundle)
    for weight, expected in whole_weights(tmp_path).items():
        numbers, scales = stored[f"{weight}_q"], stored[f"{weight}_scale"]
        assert scales.dtype == np.float16
        assert np.array_equal(numbers.astype(np.float32) * np.repeat(scales.astype(np.float32), 64, 0), expected)
    graph = onnx.load(bundle.path("model.onnx"), load_external_data=False).graph
    kinds = {tensor.data_type for tensor in graph.initializer if tensor.name.endswith("blocks.0.mlp.down.weight_q")}
    assert kinds == {onnx.TensorProto.INT4}
    blocks = {a.i for node in graph.node if ".blocks." in node.name for a in node.attribute if a.name == "block_size"}
    assert blocks == {64}


def test_zero_points_are_refused_by_name_where_the_device_takes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_packed_model(tmp_path, "awq, asymmetric", 64)
    monkeypatch.setattr(exporter, "finish_for_target", lambda *_: None)
    down = r"model\.layers\.0\.mlp\.down_proj"
    with pytest.raises(ExportError, match=rf"{down} has zero points other than 8, .* --precision fp16") as error:
        export(str(tmp_path / "packed"), "rtx-4090", precision="int4", out=tmp_path / "bundle")
    assert "\n" not in str(error.value)

    stored = initializers(export(str(tmp_path / "packed"), "rtx-4090", precision="fp16", out=tmp_path / "b").bundle)
    for weight, expected in whole_weights(tmp_path).items():
        assert np.array_equal(stored[weight], expected.astype(np.float16))


@pytest.mark.parametrize("name", ["awq", "awq, asymmetric"])
def test_an_fp32_export_has_the_weights_dequantised(name: str, tmp_path: Path) -> None:
    save_packed_model(tmp_path, name, 32)
    bundle = export(str(tmp_path / "packed"), "cpu", precision="fp32", out=tmp_path / "bundle").bundle

    stored = initializers(bundle)
    assert all(np.array_equal(stored[name], expected) for name, expected in whole_weights(tmp_path).items())


def test_only_what_is_rounded_here_is_fitted_to_a_text(tmp_path: Path) -> None:
    save_packed_model(tmp_path, "gptq", 32)
    config = read_config(tmp_path / "packed")
    needs = {}
    for folder in ("packed", "whole"):
        with open_weights(tmp_path / folder, config) as opened:
            for precision in ("int4", "int8"):
                forms = Forms(precision, groups=opened.groups)
                weights = ExportedWeights(opened, config, forms, torch.float32)
                needs[folder, precision] = weights.need_inputs
                if precision == "int8":
                    assert not any(map(forms.takes_over, opened.names))

    assert needs.pop(("whole", "int4"))
    assert not any(needs.values())


def test_scales_that_tensorrt_refuses_are_told_at_export(tmp_path: Path) -> None:
    save_packed_model(tmp_path, "gptq", 64)
    file = tmp_path / "packed" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.self_attn.k_proj.scales"][0, 0] *= -1
    save_file(tensors, file)

    with pytest.raises(ExportError, match=rf"{QKV} has negative scales, .* export with --precision fp16"):
        export(str(tmp_path / "packed"), "rtx-4090", precision="int4", out=tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
