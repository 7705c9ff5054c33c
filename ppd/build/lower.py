"""Lower: rewrite the graph for TensorRT before 10.15 (JetPack 6 has 10.3), which lacks four of its operators.

1. `RMSNormalization` becomes its definition: square, mean, root, divide, in float32, and the scale.
2. `RotaryEmbedding` becomes its definition on two halves; cosines and sines are gathered once per graph.
3. `TensorScatter` and `Attention` become attention over two blocks of columns, the cache as it is and the rows' own
   keys and values, whose scores meet in one softmax. The cache is only read; it is never copied.
4. The outputs `k_i_out`, `v_i_out` become `k_i_new`, `v_i_new`, the rows' own keys and values [1, H, N, D]; the caller
   copies them into the cache at `cache_len`.
5. Nodes and constants that nothing uses any more go, and the opset number falls to 20, or 21 for 4-bit and
   block-quantised weights.

Weights and tree tables stay where they are. The operators' definitions: https://onnx.ai/onnx/operators/.
"""

import numpy as np
import onnx
from onnx import helper

from ppd.build.rewrite import Rewriter, attribute
from ppd.errors import ExportError
from ppd.signature import CACHE_LEN, INPUT_IDS, STATE, TREE_MASK

_OPSET, _OPSET_OF_BLOCKS = 20, 21
_IR_VERSION = 10
_LACKING = ("Attention", "RMSNormalization", "RotaryEmbedding", "TensorScatter")
_EPSILON = 1e-5
_LOWEST = -6e4
"""Score of a column that a row does not see; fp16 holds it, and its exponential is 0."""


def lower(model: onnx.ModelProto, num_heads: int) -> onnx.ModelProto:
    """Rewrite a graph; see the module's rules.

    Args:
        model: The bundle's graph, without its external data loaded; it is not changed.
        num_heads: Query heads.

    Returns:
        The lowered graph.

    Raises:
        ExportError: The graph is not one that this package exports.
    """
    lowered = onnx.ModelProto()
    lowered.CopyFrom(model)
    _Lowering(lowered.graph, num_heads).run()
    lowered.opset_import[0].version = _OPSET_OF_BLOCKS if _has_blocks(lowered.graph) else _OPSET
    lowered.ir_version = _IR_VERSION
    _check(lowered)
    return lowered


class _Lowering(Rewriter):
    """The rewriting of one graph."""

    def __init__(self, graph: onnx.GraphProto, num_heads: int) -> None:
        super().__init__(graph, "lowered")
        self._heads = num_heads
        self._rotary: dict[tuple[str, str], str] = {}
        self._written: dict[str, tuple[str, str]] = {}  # output of TensorScatter → cache, new rows

    def run(self) -> None:
        nodes = list(self.graph.node)
        self._make_mask()
        for node in nodes:
            rewrite = getattr(self, f"_{node.op_type}", None) if node.op_type in _LACKING else None
            if rewrite is None:
                self.nodes.append(node)
            else:
                rewrite(node)
        self._replace_outputs()
        self.finish()

    def _RMSNormalization(self, node: onnx.NodeProto) -> None:  # noqa: N802 - the operator's name
        x, scale = node.input
        epsilon = attribute(node, "epsilon", _EPSILON)
        wide = self.add("Cast", [x], to=onnx.TensorProto.FLOAT)
        mean = self.add("ReduceMean", [self.add("Mul", [wide, wide]), self.ints("last", [-1])], keepdims=1)
        root = self.add("Sqrt", [self.add("Add", [mean, self.constant(f"epsilon_{epsilon}", np.float32(epsilon))])])
        narrow = self.add("Cast", [self.add("Div", [wide, root])], to=self.type)
        self.add("Mul", [narrow, scale], node.output[0])

    def _RotaryEmbedding(self, node: onnx.NodeProto) -> None:  # noqa: N802 - the operator's name
        x, *tables, positions = node.input
        if attribute(node, "interleaved", 0) or attribute(node, "rotary_embedding_dim", 0):
            raise ExportError(f"{node.name}: only rotary embeddings of whole heads in halves are lowered")
        cos, sin = (self._rotary_rows(table, positions) for table in tables)
        half = self.head_dim // 2
        first = self.slice(x, self.ints("zero", [0]), self.ints(f"int_{half}", [half]), 3)
        second = self.slice(x, self.ints(f"int_{half}", [half]), self.ints(f"int_{2 * half}", [2 * half]), 3)
        real = self.add("Sub", [self.add("Mul", [first, cos]), self.add("Mul", [second, sin])])
        imaginary = self.add("Add", [self.add("Mul", [second, cos]), self.add("Mul", [first, sin])])
        self.add("Concat", [real, imaginary], node.output[0], axis=3)

    def _rotary_rows(self, table: str, positions: str) -> str:
        """Rows of a table at the positions, [1, 1, N, D/2]."""
        if (table, positions) not in self._rotary:
            rows = self.add("Gather", [table, positions], axis=0)  # [1, N, D/2]
            self._rotary[table, positions] = self.add("Unsqueeze", [rows, self.ints("one", [1])])
        return self._rotary[table, positions]

    def _TensorScatter(self, node: onnx.NodeProto) -> None:  # noqa: N802 - the operator's name
        self._written[node.output[0]] = (node.input[0], node.input[1])

    def _Attention(self, node: onnx.NodeProto) -> None:  # noqa: N802 - the operator's name
        q, (k_cache, k_new), (v_cache, v_new) = node.input[0], *(self._written[name] for name in node.input[1:3])
        scale = self.constant("scale", self.dtype.type(attribute(node, "scale", self.head_dim**-0.5)))
        # The query heads of a KV head become rows of it: [1, H, heads/H·N, D].
        rows = self.add("Reshape", [self.add("Mul", [q, scale]), self._grouped])
        scores = [self.add("MatMul", [rows, self.add("Transpose", [k], perm=[0, 1, 3, 2])]) for k in (k_cache, k_new)]
        joined = self.add("Reshape", [self.add("Concat", scores, axis=3), self._by_head])  # [1, heads, N, S+N]
        masked = self.add("Where", [self._mask, joined, self._lowest])
        shares = self.add("Reshape", [self.add("Softmax", [masked], axis=3), self._by_kv_head])
        of_cache = self.slice(shares, self.ints("zero", [0]), self._capacity, 3)
        of_rows = self.slice(shares, self._capacity, self._columns, 3)
        parts = [self.add("MatMul", pair) for pair in ([of_cache, v_cache], [of_rows, v_new])]
        self.add("Reshape", [self.add("Add", parts), self._ungrouped], node.output[0])

    def _make_mask(self) -> None:
        """What all layers share: numbers of rows and columns, shapes, and the mask bool [1, 1, N, S+N]."""
        heads, kv_heads, head_dim = self._heads, self.kv_heads, self.head_dim
        num_rows = self.add("Shape", [INPUT_IDS], start=1, end=2)
        self._capacity = self.add("Shape", ["k_0"], start=2, end=3)
        self._columns = self.add("Add", [num_rows, self._capacity])
        self._grouped = self.ints("grouped", [1, kv_heads, -1, head_dim])
        self._ungrouped = self.ints("ungrouped", [1, heads, -1, head_dim])
        self._by_head = self.add("Concat", [self.ints("heads", [1, heads, -1]), self._columns], axis=0)
        self._by_kv_head = self.add("Concat", [self.ints("kv_heads", [1, kv_heads, -1]), self._columns], axis=0)
        self._lowest = self.constant("lowest", self.dtype.type(_LOWEST))
        zero, one = self.constant("zero_scalar", np.int64(0)), self.constant("one_scalar", np.int64(1))
        column = self.add("Range", [zero, self.add("Squeeze", [self._capacity]), one])
        committed = self.add("Less", [column, CACHE_LEN])  # [S]
        committed = self.add("Expand", [committed, self.add("Concat", [num_rows, self._capacity], axis=0)])
        tree = TREE_MASK
        for axis in (1, 2):
            tree = self.slice(tree, self.ints("zero", [0]), num_rows, axis)
        tree = self.add("Squeeze", [self.add("Gather", [tree, STATE], axis=0), self.ints("zero", [0])])  # [N, N]
        mask = self.add("Concat", [committed, tree], axis=1)
        self._mask = self.add("Unsqueeze", [mask, self.ints("first_two", [0, 1])])

    def _replace_outputs(self) -> None:
        for output in self.graph.output:
            if output.name in self._written:
                name = f"{output.name.removesuffix('_out')}_new"
                self.add("Identity", [self._written[output.name][1]], name)
                shape = [1, self.kv_heads, "rows", self.head_dim]
                output.CopyFrom(helper.make_tensor_value_info(name, self.type, shape))


def _has_blocks(graph: onnx.GraphProto) -> bool:
    four_bits = {onnx.TensorProto.INT4, onnx.TensorProto.UINT4}
    return any(tensor.data_type in four_bits for tensor in graph.initializer) or any(
        node.op_type == "DequantizeLinear" and attribute(node, "block_size", 0) for node in graph.node
    )


def _check(model: onnx.ModelProto) -> None:
    """Every node is an operator of the opset that the model declares."""
    version = model.opset_import[0].version
    context = onnx.checker.C.CheckerContext()
    context.ir_version, context.opset_imports = model.ir_version, {"": version}
    for node in model.graph.node:
        try:
            onnx.checker.check_node(node, context)
            since = onnx.defs.get_schema(node.op_type, version).since_version
        except (onnx.checker.ValidationError, onnx.defs.SchemaError) as error:
            raise ExportError(f"{node.op_type} {node.name} is not an operator of opset {version} ({error})") from error
        assert since <= version
