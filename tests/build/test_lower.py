"""The graph for TensorRT 10.3 answers as the bundle's own graph does, with the caller copying the cache rows."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from ppd.build.engine import add_lowered_graph
from ppd.build.lower import lower
from ppd.bundle import open_bundle
from ppd.errors import ExportError
from ppd.export.exporter import export
from ppd.manifest import ModelInfo
from ppd.runtime.check import check_engine
from ppd.runtime.engines.base import Ids, Logits
from ppd.runtime.recording import load_recording
from ppd.signature import MAX_ROWS
from tests.tiny_models import save_tiny_model

LACKING = {"Attention", "RMSNormalization", "RotaryEmbedding", "TensorScatter"}


class LoweredEngine:
    """Runs the lowered graph in ONNX Runtime; the cache is this side's, as it is with TensorRT 10.3."""

    name = "lowered graph in onnxruntime"

    def __init__(self, path: Path, model: ModelInfo, capacity: int) -> None:
        self._session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        shape = (1, model.num_kv_heads, capacity, model.head_dim)
        self._cache = {
            name: np.zeros(shape, np.float32)
            for layer in range(model.num_layers)
            for name in (f"k_{layer}", f"v_{layer}")
        }
        self._outputs = [output.name for output in self._session.get_outputs()]

    max_rows = MAX_ROWS

    def restart(self, num_rows: int, num_kept: int = 0) -> None:
        pass

    def run(self, input_ids: Ids, state: int, cache_len: int, head_rows: Ids) -> Ids:
        feeds = {"input_ids": input_ids[None], "state": np.array([state]), "cache_len": np.array([cache_len])}
        answers = dict(
            zip(self._outputs, self._session.run(None, {**feeds, "head_rows": head_rows, **self._cache}), strict=True)
        )
        for name, cache in self._cache.items():
            cache[:, :, cache_len : cache_len + len(input_ids)] = answers[f"{name}_new"]
        self._logits = answers["logits"][0]
        return answers["top_ids"][0]

    def logits(self, index: int) -> Logits:
        return self._logits[index]

    def commit(self, cache_len: int, rows: Sequence[int]) -> None:
        for cache in self._cache.values():
            for destination, row in enumerate(rows):
                cache[:, :, cache_len + destination] = cache[:, :, cache_len + row]


@pytest.mark.parametrize("feature", ["llama_gqa", "qwen3"])
def test_the_lowered_graph_answers_as_the_reference(feature: str, tmp_path: Path) -> None:
    save_tiny_model(feature, tmp_path / "model")
    bundle = add_lowered_graph(export(str(tmp_path / "model"), "cpu", out=tmp_path / "bundle").bundle)
    graph = onnx.load(bundle.path("model-lowered.onnx"), load_external_data=False)
    engine = LoweredEngine(bundle.path("model-lowered.onnx"), bundle.manifest.model, 256)

    info = check_engine(engine, bundle, load_recording(bundle))

    print(f"{feature}: {info.num_rows} rows, max |lowered - torch| = {info.max_difference:.3g}")
    assert info.num_rows > 100
    assert info.max_difference <= info.tolerance  # 1e-4 of the largest logit
    assert not LACKING & {node.op_type for node in graph.graph.node}
    assert graph.opset_import[0].version == 20
    assert [value.name for value in graph.graph.output][2:4] == ["k_0_new", "v_0_new"]


def test_the_lowered_graph_shares_the_weights(tinypy_bundle: Path) -> None:
    bundle = open_bundle(tinypy_bundle, verify=False)
    model = onnx.load(bundle.path("model.onnx"), load_external_data=False)

    lowered = lower(model, bundle.manifest.model.num_heads)

    locations = {e.value for t in lowered.graph.initializer for e in t.external_data if e.key == "location"}
    assert locations == {"model.onnx.data", "tree.bin"}
    assert lowered.ByteSize() < 200_000


def test_a_foreign_graph_is_refused() -> None:
    with pytest.raises(ExportError, match="no input k_0"):
        lower(onnx.ModelProto(), 4)
