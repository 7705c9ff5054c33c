"""The graph for ONNX Runtime answers as the standard one, to 1e-4 of the largest logit, in every phase."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from ppd.build.fuse import fuse
from ppd.build.rewrite import attribute
from ppd.bundle import Bundle, open_bundle
from ppd.errors import ExportError
from ppd.export import exporter
from ppd.export.exporter import export
from ppd.runtime.engines.base import EngineOptions
from ppd.runtime.engines.onnxruntime.cpu import OnnxRuntimeEngine
from ppd.runtime.plans import Plans
from ppd.signature import EXACT_GRAPH_FILE, FUSED_GRAPH_FILE, GRAPH_FILE, MIN_CAPACITY, takes_fused_attention
from ppd.tree import load_tree
from tests.conftest import FIXTURES
from tests.copies import refolded_copy, standard
from tests.random_prompt_layers import M, save_random_layers
from tests.tiny_models import FEATURES, save_tiny_model

WIDE_TREE = FIXTURES / "reference_cases" / "case_0" / "run_a" / "tree_ppd.json"
MODELS = ("tinypy", "llama_mqa", "llama_head_dim", "llama_biases", "llama_llama3", "qwen3", "qwen3_bias")
QUANTISED = ("int8", "int4", "int4, odd heads")
LAYERS = ("fp32", "int8", "fp32, odd heads")
"""Precisions of bundles with prompt layers, and heads that the kernel does not take."""


class Pair:
    """The standard graph and the fused one, run side by side. Quantised ones compute in fp32."""

    def __init__(self, bundle: Bundle) -> None:
        self.plans = Plans(bundle.manifest, bundle.tree)
        options = EngineOptions(threads=1, exact=True)
        self._engines = [OnnxRuntimeEngine(which, options) for which in (standard(bundle), bundle)]
        self._rng = np.random.default_rng(3)

    def text(self, length: int) -> np.ndarray:
        return self._rng.integers(0, self.plans.vocab_size, length)

    def restart(self, num_rows: int) -> None:
        for engine in self._engines:
            engine.restart(num_rows)

    def run(self, ids: np.ndarray, cache_len: int, state: int | None = None) -> None:
        """A step of both, all of whose logits have to agree."""
        state = self.plans.plain.state if state is None else state
        for engine in self._engines:
            engine.run(ids, state, cache_len, np.arange(len(ids)))
        expected, got = (np.stack([engine.logits(row) for row in range(len(ids))]) for engine in self._engines)
        assert np.abs(got - expected).max() <= 1e-4 * np.abs(expected).max()

    def commit(self, cache_len: int, rows: Sequence[int]) -> None:
        for engine in self._engines:
            engine.commit(cache_len, rows)

    @property
    def capacities(self) -> list[int]:
        return [engine.cache.capacity for engine in self._engines]


@pytest.fixture(scope="module", params=[*MODELS, *QUANTISED, *(f"layers, {precision}" for precision in LAYERS)])
def bundle(request: pytest.FixtureRequest, tinypy_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("fuse")
    if request.param == "tinypy":
        return open_bundle(refolded_copy(tinypy_bundle, folder / "wide", load_tree(WIDE_TREE)))
    if request.param in QUANTISED:
        return quantised(folder, request.param)
    if request.param.startswith("layers"):
        return with_layers(folder, request.param.removeprefix("layers, "))
    save_tiny_model(request.param, folder / "model")
    return export(str(folder / "model"), "cpu", tree=str(WIDE_TREE), out=folder / "bundle").bundle


def quantised(folder: Path, kind: str) -> Bundle:
    """A model whose projections have one, two and three blocks, with the kernels of exact products."""
    name, precision = ("qwen3_odd" if "odd" in kind else "llama_gqa"), kind[:4]
    config, fields = FEATURES[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FEATURES, name, (config, fields | {"hidden_size": 64, "intermediate_size": 96}))
        patch.setattr(exporter, "LARGE_MODEL", 0)
        save_tiny_model(name, folder / "model")
        return export(
            str(folder / "model"), "cpu", precision=precision, tree=str(WIDE_TREE), out=folder / "bundle"
        ).bundle


def with_layers(folder: Path, kind: str) -> Bundle:
    """A model whose prompt tokens have prompt layers with products."""
    save_tiny_model("qwen3_odd" if "odd" in kind else "llama_gqa", folder / "model")
    tokens = save_random_layers(folder / "model", folder / "tokens", rank=8)
    return export(
        str(folder / "model"),
        "cpu",
        prompt_tokens=str(tokens),
        precision=kind[:4],
        tree=str(WIDE_TREE),
        out=folder / "bundle",
    ).bundle


@pytest.fixture(scope="module")
def pair(bundle: Bundle) -> Pair:
    return Pair(bundle)


def test_prefill_in_one_chunk_agrees(pair: Pair) -> None:
    pair.restart(60)
    pair.run(pair.text(60), 0)


def test_prefill_in_several_chunks_agrees(pair: Pair) -> None:
    pair.restart(60)
    for start in range(0, 60, 25):
        pair.run(pair.text(min(25, 60 - start)), start)


def test_plain_decoding_agrees(pair: Pair) -> None:
    pair.restart(1)
    for position in range(12):  # from an empty cache
        pair.run(pair.text(1), position)


def test_every_tree_state_agrees(pair: Pair) -> None:
    pair.restart(40)
    pair.run(pair.text(40), 0)
    assert len(pair.plans.by_state) > 2
    for plan in pair.plans.by_state:
        ids = plan.input_ids.copy()
        ids[: len(plan.rows.nodes)] = pair.text(len(plan.rows.nodes))
        pair.run(ids, 40, plan.state)


def test_a_growing_cache_agrees(pair: Pair) -> None:
    pair.restart(1)
    start = MIN_CAPACITY - 3
    pair.run(pair.text(start), 0)
    pair.run(pair.text(2), start)
    assert pair.capacities == [MIN_CAPACITY] * 2
    pair.run(pair.text(4), start + 2)
    assert pair.capacities == [2 * MIN_CAPACITY] * 2
    pair.run(pair.text(1), start + 6)


def test_a_commit_that_moves_rows_agrees(pair: Pair) -> None:
    pair.restart(30)
    pair.run(pair.text(20), 0)
    plan = pair.plans.by_state[-1]
    last = max(plan.rows.children[0])
    assert last > 1, "the last child of the root has to be moved"
    pair.run(plan.input_ids, 20, plan.state)
    pair.commit(20, [0, last])
    pair.run(pair.text(1), 22)
    pair.run(plan.input_ids, 23, plan.state)


def test_every_layer_has_one_attention_that_reads_the_projection_and_the_cache(bundle: Bundle) -> None:
    if not takes_fused_attention(bundle.manifest.model.head_dim):
        pytest.skip("attention stays as it is")
    graph = onnx.load(bundle.path(FUSED_GRAPH_FILE), load_external_data=False).graph
    attentions = [node for node in graph.node if node.op_type == "GroupQueryAttention"]
    assert len(attentions) == bundle.manifest.model.num_layers
    assert [tuple(node.input[3:5]) for node in attentions] == [(f"k_{i}", f"v_{i}") for i in range(len(attentions))]
    assert [tuple(node.output[1:]) for node in attentions] == [
        (f"k_{i}_out", f"v_{i}_out") for i in range(len(attentions))
    ]
    replaced = {"Attention", "TensorScatter", "Transpose", "DequantizeLinear"}
    places = {node.output[0] for node in graph.node if node.op_type == "NonZero"}  # of prompt rows
    left = [node for node in graph.node[:-3] if node.op_type in replaced and node.input[0] not in places]
    assert not left
    assert len({node.input[10] for node in attentions}) == 1, "one bias serves all layers"


def test_the_fused_graph_reads_the_weights_of_the_standard_one(bundle: Bundle) -> None:
    fused, whole = (
        {
            (tensor.name, *((entry.key, entry.value) for entry in tensor.external_data))
            for tensor in onnx.load(bundle.path(role), load_external_data=False).graph.initializer
            if tensor.external_data
        }
        for role in (FUSED_GRAPH_FILE, GRAPH_FILE)
    )
    is_four_bits = bundle.manifest.precision == "int4"  # whose zero points of odd numbers of blocks are copied
    assert fused <= whole
    assert all(is_four_bits and name.endswith("_zero_point") for name, *_ in whole - fused)


@pytest.mark.parametrize("kind", LAYERS)
def test_the_products_of_prompt_layers_have_no_rows_of_text(kind: str, tmp_path: Path) -> None:
    bundle = with_layers(tmp_path, kind)
    model = onnx.load(bundle.path(FUSED_GRAPH_FILE), load_external_data=False)
    downs = {
        node.output[0] for node in model.graph.node if node.op_type == "MatMul" and "product.down" in node.input[1]
    }
    assert len(downs) == bundle.manifest.model.num_layers

    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in downs)
    onnx.save(model, bundle.folder / "told.onnx")
    session = onnxruntime.InferenceSession(bundle.folder / "told.onnx", providers=["CPUExecutionProvider"])
    shapes = {num_prompts: rows_of(session, downs, bundle, num_prompts) for num_prompts in (0, 1, 3)}
    assert shapes == {num_prompts: {(1, num_prompts, 8)} for num_prompts in shapes}


def rows_of(
    session: onnxruntime.InferenceSession, names: set[str], bundle: Bundle, num_prompts: int
) -> set[tuple[int, ...]]:
    """Shapes of some values in a step of two rows of text with prompt rows behind them."""
    ids = [5, 6, *range(bundle.manifest.model.vocab_size, bundle.manifest.model.vocab_size + num_prompts)]
    inputs = {
        "input_ids": np.array([ids]),
        "state": np.array([M + 1]),
        "cache_len": np.zeros(1, np.int64),
        "head_rows": np.zeros(1, np.int64),
    }
    caches = {
        value.name: np.zeros((1, bundle.manifest.model.num_kv_heads, 16, bundle.manifest.model.head_dim), np.float32)
        for value in session.get_inputs()
        if value.name not in inputs
    }
    return {value.shape for value in session.run(sorted(names), inputs | caches)}


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_products_are_rounded_in_one_graph_and_exact_in_the_other(precision: str, tmp_path: Path) -> None:
    save_tiny_model("llama_gqa", tmp_path / "model")
    levels = {}
    for is_large in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(exporter, "LARGE_MODEL", 0 if is_large else 10**9)
            made = export(str(tmp_path / "model"), "cpu", precision=precision, out=tmp_path / f"{is_large}").bundle
        for role in (FUSED_GRAPH_FILE, EXACT_GRAPH_FILE):
            nodes = onnx.load(made.path(role), load_external_data=False).graph.node
            products = [node for node in nodes if node.op_type == "MatMulNBits"]
            levels[is_large, role] = {attribute(node, "accuracy_level", 0) for node in products}
    assert levels == {
        (False, FUSED_GRAPH_FILE): {4},
        (False, EXACT_GRAPH_FILE): set(),  # dequantised when it is loaded
        (True, FUSED_GRAPH_FILE): {4},
        (True, EXACT_GRAPH_FILE): {1},
    }


def test_head_sizes_that_the_kernel_does_not_take_leave_the_standard_graph(tmp_path: Path) -> None:
    save_tiny_model("qwen3_odd", tmp_path / "model")
    made = export(str(tmp_path / "model"), "cpu", out=tmp_path / "bundle").bundle
    assert not made.has(FUSED_GRAPH_FILE)
    graph = onnx.load(made.path(GRAPH_FILE), load_external_data=False)
    assert fuse(graph, made.manifest.model.num_heads, made.folder, None) is None


def test_a_foreign_graph_is_refused(tinypy_bundle: Path) -> None:
    model = onnx.load(tinypy_bundle / GRAPH_FILE, load_external_data=False)
    next(node for node in model.graph.node if node.op_type == "RotaryEmbedding").op_type = "Identity"
    with pytest.raises(ExportError, match=r"found Identity at .*expected RotaryEmbedding"):
        fuse(model, 4, tinypy_bundle, None)
    del model.graph.input[4:]
    with pytest.raises(ExportError, match="no input k_0"):
        fuse(model, 4, tinypy_bundle, None)
