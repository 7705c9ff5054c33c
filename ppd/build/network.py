"""The bundle's graph as a TensorRT network: prepared, parsed, and verified to have native layers."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from ppd.build.masks import add_masks, cache_type
from ppd.bundle import Bundle
from ppd.codec import AGAIN
from ppd.errors import ArgumentError, EngineError
from ppd.runtime.recording import recording_length
from ppd.signature import (
    CACHE_LEN,
    GRAPH_FILE,
    HEAD_ROWS,
    INPUT_IDS,
    LOWERED_GRAPH_FILE,
    MIN_CAPACITY,
    STATE,
    TREE_DEPTH,
    TREE_MASK,
    TREE_TABLES_FILE,
    WEIGHTS_FILE,
    cache_names,
    max_capacity,
)

Shapes = tuple[tuple[int, ...], ...]
_MAX_FUSED_HEAD_DIM = 128
_BEST_CAPACITY = 512
"""The S that an engine with an open one is tuned for: that of a short chat."""
LEAST_CHUNK = 64
"""Fewest rows of a prefill step: some steps that are no tree's go there too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profiles:
    """Shapes that an engine is built for; the attributes are those of `EngineInfo`."""

    capacity: int
    max_prefill_rows: int
    max_prefill_head_rows: int
    max_decode_rows: int
    best_decode_rows: int

    def ranges(self, caches: Mapping[str, tuple[int, ...]]) -> list[dict[str, Shapes]]:
        """For each profile: input → least, best and largest shape.

        Args:
            caches: Caches whose S is open → their shape [1, H, S, D], with any S.
        """
        best, most = self.best_decode_rows, self.max_decode_rows
        rows = [min(capacity, self.capacity) for capacity in (MIN_CAPACITY, _BEST_CAPACITY, self.capacity)]
        open_caches = {name: tuple((*shape[:2], count, *shape[3:]) for count in rows) for name, shape in caches.items()}
        return [
            {
                INPUT_IDS: ((1, 1), (1, self.max_prefill_rows), (1, self.max_prefill_rows)),
                HEAD_ROWS: ((1,), (1,), (self.max_prefill_head_rows,)),
                **open_caches,
            },
            {INPUT_IDS: ((1, 1), (1, best), (1, most)), HEAD_ROWS: ((1,), (best,), (most,)), **open_caches},
        ]


def profiles_for(bundle: Bundle, max_rows: int | None = None, chunk: int | None = None) -> Profiles:
    """The profiles of a bundle, with room for the check of its recorded reference: the text, and its prompt rows.

    Args:
        max_rows: Largest N of the decode profile; None for that of the tree's largest step, with its branch, which it
            is tuned for.
        chunk: Largest N of the prefill profile, `LEAST_CHUNK` or more; None for all that the graph takes.

    Raises:
        ArgumentError: The chunk is out of its range.
    """
    manifest = bundle.manifest
    largest = max(bundle.tree.step_sizes)
    rows = min(manifest.max_rows, max(largest, max_rows or 1))
    count = manifest.num_distances
    most = manifest.max_rows if chunk is None else chunk
    if not LEAST_CHUNK <= most <= manifest.max_rows:
        raise ArgumentError(f"chunk is {most}; expected {LEAST_CHUNK} to {manifest.max_rows} rows")
    return Profiles(
        capacity=max_capacity(manifest.context, max(most, rows)),
        max_prefill_rows=most,
        max_prefill_head_rows=min(most, recording_length(count) + count),
        max_decode_rows=rows,
        best_decode_rows=largest,
    )


def read_graph(bundle: Bundle, capacity: int | None, *, lowered: bool) -> onnx.ModelProto:
    """Read the graph with the tree tables and weights that the manifest names now.

    Args:
        capacity: S; None leaves it open.

    Raises:
        EngineError: The weights are quantised in a form that only ONNX Runtime reads.
    """
    role = LOWERED_GRAPH_FILE if lowered else GRAPH_FILE
    model = load_graph(bundle, role, bundle.path(role).read_bytes())
    return prepare_graph(model, bundle, capacity, lowered=lowered)


def load_graph(bundle: Bundle, role: str, content: bytes) -> onnx.ModelProto:
    """One of a bundle's graphs, without its weights.

    Args:
        content: Of its file.

    Raises:
        EngineError: It is damaged, or none of this package's.
    """
    try:
        model = onnx.load_from_string(content)
    except DecodeError as error:
        raise EngineError(f"{bundle.path(role)} is damaged ({error}); {AGAIN}") from error
    wanted = {INPUT_IDS, STATE, CACHE_LEN, HEAD_ROWS, *cache_names(bundle.manifest.model.num_layers)}
    if missing := wanted - {value.name for value in model.graph.input}:
        raise EngineError(f"{bundle.path(role)} has no input {min(missing)}, which its manifest describes; {AGAIN}")
    return model


def prepare_graph(model: onnx.ModelProto, bundle: Bundle, capacity: int | None, *, lowered: bool) -> onnx.ModelProto:
    """A graph of the bundle, changed in place as `read_graph` says.

    Raises:
        EngineError: The weights are quantised in a form that only ONNX Runtime reads.
    """
    _require_readable(model, bundle)
    caches = set(cache_names(bundle.manifest.model.num_layers))
    for value in (*model.graph.input, *model.graph.output):
        if capacity is not None and value.name.removesuffix("_out") in caches:
            value.type.tensor_type.shape.dim[2].dim_value = capacity
    for tensor in model.graph.initializer:
        role = TREE_TABLES_FILE if tensor.name in (TREE_MASK, TREE_DEPTH) else WEIGHTS_FILE
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = bundle.manifest.files[role].path
    if not lowered and cache_type(model) != onnx.TensorProto.FLOAT:
        add_masks(model)
    return model


def _require_readable(model: onnx.ModelProto, bundle: Bundle) -> None:
    """Refuse what TensorRT cannot read: it dequantises blocks of 4 bits only, without zero points."""
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear":
            in_blocks = any(attribute.name == "block_size" and attribute.i for attribute in node.attribute)
            if len(node.input) > 2 or (in_blocks and kinds.get(node.input[0]) == onnx.TensorProto.INT8):
                raise EngineError(
                    f"{bundle.folder} is quantised for {bundle.manifest.target}, in a form that TensorRT cannot read; "
                    "export the model again with --gpu and the device's name (ppd targets lists them)"
                )


def open_caches(model: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """The caches of a graph whose S is open, with their shapes; S is 0 in them."""
    shapes = {
        value.name: tuple(dimension.dim_value for dimension in value.type.tensor_type.shape.dim)
        for value in model.graph.input
        if value.name.startswith(("k_", "v_"))
    }
    return {name: shape for name, shape in shapes.items() if not shape[2]}


def parse(trt: ModuleType, logger: Any, builder: Any, model: onnx.ModelProto, folder: Path) -> Any:
    """Parse a graph into a strongly typed network.

    Raises:
        EngineError: The parser rejects the graph; the message quotes it.
    """
    strongly_typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # the only kind in 11.x
    network = builder.create_network(0 if strongly_typed is None else 1 << int(strongly_typed))
    try:
        parser = trt.OnnxParser(network, logger)
    except TypeError as error:  # all that its Python module says of a NULL
        raise EngineError(
            f"TensorRT {trt.__version__} has no parser for ONNX here; install all of it (Jetson: apt install tensorrt)"
        ) from error
    if not parser.parse(model.SerializeToString(), str(folder / GRAPH_FILE)):
        reasons = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise EngineError(
            f"TensorRT {trt.__version__} cannot parse the graph of {folder} ({reasons}); install another version of it"
        )
    return network


def layer_kinds(network: Any) -> Counter[str]:
    """How many layers of each kind a network has, by the names of TensorRT's `LayerType`."""
    return Counter(network.get_layer(i).type.name for i in range(network.num_layers))


def require_native(trt: ModuleType, network: Any, num_layers: int) -> None:
    """Verify that attention, rotary positions and KV writes are native layers, and that each write is in place.

    Raises:
        EngineError: A layer is missing, or a cache does not go through its own KV write.
    """
    kinds = layer_kinds(network)
    expected = {"ATTENTION_INPUT": num_layers, "ROTARY_EMBEDDING": 2 * num_layers, "KV_CACHE_UPDATE": 2 * num_layers}
    if wrong := {kind: kinds[kind] for kind, count in expected.items() if kinds[kind] != count}:
        raise EngineError(
            f"TensorRT {trt.__version__} parsed {wrong}, expected {expected}; install another version of it"
        )
    updates = [layer for layer in _layers(network) if layer.type == trt.LayerType.KV_CACHE_UPDATE]
    written = {(layer.get_input(0).name, layer.get_output(0).name) for layer in updates}
    if missing := {(name, f"{name}_out") for name in cache_names(num_layers)} - written:
        raise EngineError(f"no KV write goes from {' to '.join(min(missing))}; export the bundle again")


def make_decomposable(trt: ModuleType, network: Any) -> None:
    """Let TensorRT decompose attention where no fused kernel takes the shape and type."""
    for layer in _layers(network):
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True


def has_fused_attention(model: onnx.ModelProto, head_dim: int) -> bool:
    """Whether fused attention supports the graph's type and head size: 16-bit numbers, heads of up to 128."""
    return cache_type(model) != onnx.TensorProto.FLOAT and head_dim <= _MAX_FUSED_HEAD_DIM


def _layers(network: Any) -> list[Any]:
    return [network.get_layer(i) for i in range(network.num_layers)]
