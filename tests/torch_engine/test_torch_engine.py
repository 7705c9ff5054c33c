"""The engine `torch`: rebuilt from the bundle alone, equal to ONNX Runtime; its cache keeps what it was given."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from ppd import runtime
from ppd.bundle import open_bundle
from ppd.errors import EngineError
from ppd.signature import causal_state
from ppd.torch_engine.engine import TorchEngine
from ppd.torch_engine.weights import decoder_from_bundle
from tests.copies import link_bundle


def test_the_check_passes_in_every_phase(wide_bundle: Path) -> None:
    info = runtime.check_bundle(wide_bundle, engine="torch", threads=1)

    print(f"max difference {info.max_difference:.2g}")
    assert info.engine.startswith("torch ")


def test_a_lost_commit_is_found(wide_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TorchEngine, "commit", lambda *_: None)

    with pytest.raises(EngineError, match="commit in tree state"):
        runtime.check_bundle(wide_bundle, engine="torch", threads=1)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_tokens_equal_onnxruntimes(wide_bundle: Path, temperature: float) -> None:
    ours, theirs = (runtime.load(wide_bundle, engine=engine, threads=1) for engine in ("torch", "onnxruntime"))
    prompt = list(range(5, 25))

    for draft in (False, True):
        got, expected = (
            model.generate(prompt, max_new_tokens=24, temperature=temperature, draft=draft) for model in (ours, theirs)
        )
        assert got.token_ids == expected.token_ids


def test_a_cache_that_grows_keeps_its_rows(wide_bundle: Path) -> None:
    bundle = open_bundle(wide_bundle)
    engine = TorchEngine(bundle, threads=1)
    causal = causal_state(bundle.manifest.prompt_tokens.count)
    text = np.arange(5, 145)
    answers = []
    for num_rows in (1, 140):  # a cache of 128 rows, which has to grow, and one that has room
        engine.restart(num_rows)
        engine.run(text[:120], causal, 0, np.array([0]))
        engine.run(text[120:], causal, 120, np.array([19]))
        answers.append(engine.logits(0))

    assert np.array_equal(answers[0], answers[1])


def replace_weight(bundle: Path, name: str, parts: dict[str, np.ndarray], nodes: list[onnx.NodeProto]) -> None:
    """Store a weight of a bundle's graph in another way."""
    path = bundle / "model.onnx"
    model = onnx.load(path, load_external_data=False)
    kept = [tensor for tensor in model.graph.initializer if tensor.name != name]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    model.graph.initializer.extend(numpy_helper.from_array(part, f"{name}{key}") for key, part in parts.items())
    model.graph.node.extend(nodes)
    path.unlink()
    path.write_bytes(model.SerializeToString())


@pytest.mark.parametrize("stored", ["row", "output", "block", "all"])
def test_quantised_weights_are_read_however_their_scales_lie(stored: str, tinypy_bundle: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    name = "embedding.weight" if stored == "row" else "blocks.1.mlp.down.weight"
    folder = link_bundle(tinypy_bundle, tmp_path / "bundle")
    bundle, key = open_bundle(folder), f"decoder.{name}"
    shape = decoder_from_bundle(bundle)[0].state_dict()[name].shape
    scale_shape = {"row": (shape[0], 1), "output": (shape[1],), "block": (shape[0] // 16, shape[1]), "all": ()}[stored]
    values = random.integers(-128, 128, shape, np.int8)
    scales = random.random(scale_shape, np.float32) if scale_shape else np.array(0.25, np.float32)
    parts, zero = {"_q": values, "_scale": scales}, np.float32(0)
    attributes: dict[str, Any] = {"output": {"axis": 1}, "block": {"axis": 0, "block_size": 16}}.get(stored, {})
    names = [f"{key}_q", f"{key}_scale"]
    if stored == "block":
        parts["_zero_point"] = random.integers(-8, 8, scale_shape, np.int8)
        zero = parts["_zero_point"].repeat(16, 0)
        names.append(f"{key}_zero_point")
    node = helper.make_node("DequantizeLinear", names, ["dequantised"], **attributes)
    replace_weight(folder, key, parts, [] if stored == "row" else [node])  # gathered rows are scaled by other nodes

    found = decoder_from_bundle(bundle)[0].state_dict()[name]

    whole = scales.repeat(16, 0) if stored == "block" else scales
    assert torch.equal(found, torch.from_numpy((values.astype(np.float32) - zero) * whole))


def test_a_graph_that_lacks_a_weight_is_refused(tinypy_bundle: Path, tmp_path: Path) -> None:
    folder = link_bundle(tinypy_bundle, tmp_path / "bundle")
    bundle = open_bundle(folder)
    replace_weight(folder, "decoder.norm.weight", {}, [])

    with pytest.raises(EngineError, match=r"norm\.weight.*export the bundle again"):
        decoder_from_bundle(bundle)
