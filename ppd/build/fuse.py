"""Fuse: rewrite the graph for ONNX Runtime's CPU provider, which has attention over a cache as one operator.

1. `Attention`, with everything between the projections before it and the one after it, becomes
   `com.microsoft.GroupQueryAttention`. Past and present are the cache: the kernel writes the rows in place, and its
   cost follows the columns in use, not the capacity.
2. Queries, keys and values that are the parts of one `Split` are passed packed, as they are before it.
3. Norms of queries and keys stay, on [1, N, heads, D] before the kernel.
4. The kernel rotates, by the graph's own tables and positions, where it can (a head size that is a multiple of 16);
   else `RotaryEmbedding` stays, on [1, N, heads · D].
5. The mask becomes a bias, made once for all layers from the tree's rows alone: [1, 1, N, cache_len + N], 0 where a row
   sees a column. The kernel itself is causal; every tree lies inside that mask, because the ancestors and prompt rows
   that a row sees come before it.
6. The sum of a residual and the norm that reads it become `com.microsoft.SkipSimplifiedLayerNormalization`.
7. `DequantizeLinear → Transpose → MatMul` becomes `com.microsoft.MatMulNBits`, over the same bytes. ONNX Runtime would
   fuse pairs without a transpose by itself, and rewrite every weight for it each time the graph is loaded. Only zero
   points of 4 bits and an odd number of blocks are copied: the kernel starts a byte with each output.
8. Products of prompt layers are computed of the prompt rows alone (`ppd.build.prompt_rows`).
9. Unused nodes and constants are removed.

Rules 1 to 6 are left out where the kernel does not take the model's heads. Weights and tree tables stay where they are.
The operators' definitions: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
With an empty cache the kernel assumes consecutive positions. The causal state has them, and a tree always follows a
prompt.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ppd.build.prompt_rows import PromptRowsOnly
from ppd.build.rewrite import Rewriter, attribute
from ppd.errors import ExportError
from ppd.signature import CACHE_LEN, INPUT_IDS, STATE, TREE_MASK, takes_fused_attention

_DOMAIN, _VERSION = "com.microsoft", 1
_ROTATED = 16
"""The kernel rotates heads of multiples of this size."""
_EPSILON = 1e-5
_HIDDEN = {onnx.TensorProto.FLOAT: -1e9, onnx.TensorProto.FLOAT16: -6e4}
"""Bias of a column that a row does not see: its exponential is 0, and the type holds it with a score added."""


def fuse(model: onnx.ModelProto, num_heads: int, folder: Path, accuracy_level: int | None) -> onnx.ModelProto | None:
    """Rewrite a graph; see the module's rules.

    Args:
        model: The bundle's graph, without its external data loaded; it is not changed.
        num_heads: Number of query heads.
        folder: Where the graph's weights are.
        accuracy_level: What the kernels of quantised products compute in, as `Precision.accuracy_level`; None leaves
            out rule 7, for a session that dequantises the weights once.

    Returns:
        The fused graph; None if no rule changes it.

    Raises:
        ExportError: The graph was not exported by this package.
    """
    fused = onnx.ModelProto()
    fused.CopyFrom(model)
    fusing = _Fusing(fused.graph, num_heads, folder, accuracy_level)
    if not fusing.run():
        return None
    fused.opset_import.append(helper.make_opsetid(_DOMAIN, _VERSION))
    return fused


class _Fusing(Rewriter):
    """The rewriting of one graph."""

    def __init__(self, graph: onnx.GraphProto, num_heads: int, folder: Path, accuracy_level: int | None) -> None:
        super().__init__(graph, "fused")
        self._heads, self._folder, self._level = num_heads, folder, accuracy_level
        self._makers = {output: node for node in graph.node for output in node.output}
        self._readers = {name: node for node in graph.node for name in node.input}
        self._norms = {node.input[0]: node for node in graph.node if node.op_type == "RMSNormalization"}
        self._replaced = set[str]()
        self._tensors = {tensor.name: tensor for tensor in graph.initializer}

    def run(self) -> bool:
        """Apply the rules; whether any applies."""
        nodes = list(self.graph.node)
        takes_attention = takes_fused_attention(self.head_dim)
        quantised = self._quantised(nodes) if self._level is not None else {}
        prompt_rows = PromptRowsOnly(self, nodes)
        if not takes_attention and not quantised and not prompt_rows.applies:
            return False
        if takes_attention:
            self._make_sizes()
            self._make_bias()
        for node in nodes:
            if prompt_rows.rewrite(node):
                continue
            if node.op_type == "MatMul" and node.input[1] in quantised:
                self._fuse_product(node, quantised[node.input[1]])
            elif not takes_attention:
                self.nodes.append(node)
            elif node.op_type == "Attention":
                self._fuse_attention(node)
            elif node.op_type == "Add" and node.output[0] in self._norms:
                self._fuse_norm(node, self._norms[node.output[0]])
            elif node.op_type != "TensorScatter" and node.output[0] not in self._replaced:
                self.nodes.append(node)
        self.finish()
        return True

    def _quantised(self, nodes: Sequence[onnx.NodeProto]) -> dict[str, onnx.NodeProto]:
        """Dequantised weight [in, out] → the `DequantizeLinear` that it is the transpose of."""
        makers = ((node.output[0], self._makers.get(node.input[0])) for node in nodes if node.op_type == "Transpose")
        return {name: maker for name, maker in makers if maker is not None and maker.op_type == "DequantizeLinear"}

    def _fuse_product(self, product: onnx.NodeProto, dequantise: onnx.NodeProto) -> None:
        values, scales, zeros = (self._tensors[name] for name in dequantise.input)
        block = int(attribute(dequantise, "block_size", 0))
        bits = {onnx.TensorProto.UINT4: 4, onnx.TensorProto.UINT8: 8}[values.data_type]
        num_outputs, num_inputs = values.dims
        num_blocks = num_inputs // block
        _as_bytes(values, [num_outputs, num_blocks, block * bits // 8])
        if bits == 8 or num_blocks % 2 == 0:
            _as_bytes(zeros, [num_outputs, num_blocks * bits // 8])
        else:
            self._copy_padded(zeros)
        self.nodes.append(
            helper.make_node(
                "MatMulNBits",
                [product.input[0], values.name, scales.name, zeros.name],
                product.output,
                f"{self.prefix}_{product.name}",
                domain=_DOMAIN,
                K=num_inputs,
                N=num_outputs,
                bits=bits,
                block_size=block,
                accuracy_level=self._level,
            )
        )

    def _copy_padded(self, zeros: onnx.TensorProto) -> None:
        """Put 4-bit zero points [out, blocks] into the graph with each output's first one at the start of a byte."""
        loaded = onnx.TensorProto()
        loaded.CopyFrom(zeros)
        numbers = numpy_helper.to_array(loaded, str(self._folder)).astype(np.uint8)
        numbers = np.pad(numbers, [(0, 0), (0, 1)])
        zeros.CopyFrom(numpy_helper.from_array(numbers[:, ::2] | numbers[:, 1::2] << 4, zeros.name))

    def _fuse_attention(self, node: onnx.NodeProto) -> None:
        """Fuse one layer's attention; the outputs keep the names of the nodes that they replace."""
        k_write, v_write = (self._maker(name, "TensorScatter") for name in node.input[1:3])
        rotaries = [self._maker(name, "RotaryEmbedding") for name in (node.input[0], k_write.input[1])]
        sources = [self._source(name) for name in (*(rotary.input[0] for rotary in rotaries), v_write.input[1])]
        _, cos, sin, positions = rotaries[0].input
        rotates = self.head_dim % _ROTATED == 0
        if not rotates:
            for i, (rotary, heads) in enumerate(zip(rotaries, (self._heads, self.kv_heads), strict=True)):
                sources[i] = self.add("RotaryEmbedding", [sources[i], *rotary.input[1:]], num_heads=heads)
        output = self._reader(self._reader(node.output[0], "Transpose").output[0], "Reshape").output[0]
        self._replaced.add(output)
        self.nodes.append(
            helper.make_node(
                "GroupQueryAttention",
                [
                    *self._packed(sources),
                    *(write.input[0] for write in (k_write, v_write)),
                    *(self._last_column, self._num_columns),
                    *((cos, sin, positions) if rotates else ("", "", "")),
                    self._bias,
                ],
                [output, k_write.output[0], v_write.output[0]],
                f"{self.prefix}_attention_{k_write.input[0]}",
                domain=_DOMAIN,
                num_heads=self._heads,
                kv_num_heads=self.kv_heads,
                do_rotary=int(rotates),
                scale=attribute(node, "scale", self.head_dim**-0.5),
            )
        )

    def _fuse_norm(self, add: onnx.NodeProto, norm: onnx.NodeProto) -> None:
        self._replaced.add(norm.output[0])
        self.nodes.append(
            helper.make_node(
                "SkipSimplifiedLayerNormalization",
                [*add.input, norm.input[1]],
                [norm.output[0], "", "", add.output[0]],
                f"{self.prefix}_norm_{norm.output[0]}",
                domain=_DOMAIN,
                epsilon=attribute(norm, "epsilon", _EPSILON),
            )
        )

    def _source(self, name: str) -> str:
        """The rows [1, N, heads · D] that are split into heads [1, heads, N, D], normalised if those are."""
        norm = self._makers[name]
        normalised = norm.op_type == "RMSNormalization"
        split = self._maker(self._maker(norm.input[0] if normalised else name, "Transpose").input[0], "Reshape")
        if not normalised:
            return split.input[0]
        rows = self.add("Reshape", split.input, **_attributes(split))
        rows = self.add("RMSNormalization", [rows, norm.input[1]], **_attributes(norm))
        return self.add("Reshape", [rows, self.ints("joined", [0, 0, -1])])

    def _packed(self, sources: list[str]) -> tuple[str, str, str]:
        """Queries, keys and values in the form that the kernel takes."""
        split = self._makers.get(sources[0])
        if split is not None and split.op_type == "Split" and list(split.output) == sources:
            return split.input[0], "", ""
        query, key, value = sources
        return query, key, value

    def _make_sizes(self) -> None:
        """N, and the number of columns in use, cache_len + N, in the form that the kernel takes."""
        self._num_rows = self.add("Shape", [INPUT_IDS], start=1, end=2)
        columns = self.add("Add", [CACHE_LEN, self._num_rows])
        self._num_columns = self.add("Cast", [columns], to=onnx.TensorProto.INT32)
        self._last_column = self.add("Sub", [self._num_columns, self.constant("one", np.array([1], np.int32))])

    def _make_bias(self) -> None:
        """The bias [1, 1, N, cache_len + N]: the tree's rows, after committed columns that every row sees."""
        size = self.add("Concat", [self._num_rows, self._num_rows], axis=0)
        tree = self.add("Slice", [TREE_MASK, self.ints("start", [0, 0]), size, self.ints("axes", [1, 2])])
        tree = self.add("Gather", [tree, STATE], axis=0)
        values = (self.constant(name, self.dtype.type(x)) for name, x in (("seen", 0), ("hidden", _HIDDEN[self.type])))
        bias = self.add("Unsqueeze", [self.add("Where", [tree, *values]), self.ints("first", [0])])
        pads = self.add("Concat", [self.ints("before", [0, 0, 0]), CACHE_LEN, self.ints("after", [0] * 4)], axis=0)
        self._bias = self.add("Pad", [bias, pads])

    def _maker(self, name: str, kind: str) -> onnx.NodeProto:
        return _require(self._makers.get(name), name, kind)

    def _reader(self, name: str, kind: str) -> onnx.NodeProto:
        return _require(self._readers.get(name), name, kind)


def _as_bytes(tensor: onnx.TensorProto, shape: Sequence[int]) -> None:
    """Describe stored whole numbers by their bytes."""
    tensor.data_type = onnx.TensorProto.UINT8
    tensor.dims[:] = shape


def _require(node: onnx.NodeProto | None, name: str, kind: str) -> onnx.NodeProto:
    if node is None or node.op_type != kind:
        found = "nothing" if node is None else node.op_type
        raise ExportError(f"found {found} at {name}, expected {kind}; give a graph that ppd-export wrote")
    return node


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {item.name: helper.get_attribute_value(item) for item in node.attribute}
