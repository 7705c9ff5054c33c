"""Prompt rows: what prompt layers add to queries, keys and values is computed for the prompt rows alone.

The graph multiplies every row, those of text by zero, so that its shapes follow from its inputs' as TensorRT and CUDA
graphs ask. Where shapes may depend on values, the prompt rows are gathered, and a step without any multiplies nothing:
`Mul(x, gate) → MatMul → MatMul → Add(rows, …)` becomes `Gather(x) → MatMul → MatMul → ScatterND(rows, …)`. A row of
text stays the same to the bit.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from ppd.build.rewrite import Rewriter

_WEIGHTS = 2
"""Of a layer's product: down and up."""


class PromptRowsOnly:
    """The rewriting of all layers' products; nothing where a graph has none.

    Args:
        nodes: The graph's, in order.
    """

    def __init__(self, rewriter: Rewriter, nodes: Sequence[onnx.NodeProto]) -> None:
        self._rewriter = rewriter
        self._makers = {output: node for node in nodes for output in node.output}
        readers = {name: node for node in nodes for name in node.input}
        self._gates: dict[str, str] = {}  # output of a gated Mul → bool [1, N], whether a row is a prompt row
        self._sums = set[str]()  # outputs of the Adds behind them
        if rewriter.type != onnx.TensorProto.FLOAT:
            return  # ONNX Runtime's CPU scatters sums in 32 bits only
        for node in nodes:
            is_prompt = self._gate_of(node)
            total = _behind(node, readers)
            if is_prompt and total is not None:
                self._gates[node.output[0]] = is_prompt
                self._sums.add(total.output[0])
        self._index = self._places = ""

    @property
    def applies(self) -> bool:
        """Whether the graph has such products."""
        return bool(self._gates)

    def rewrite(self, node: onnx.NodeProto) -> bool:
        """Add what takes the place of a node to the new graph, if something does."""
        add, output = self._rewriter.add, node.output[0]
        if output in self._gates:
            if not self._index:
                self._find_rows(self._gates[output])
            add("Gather", [node.input[0], self._index], output, axis=1)
        elif output in self._sums:
            add("ScatterND", [node.input[0], self._places, node.input[1]], output, reduction="add")
        else:
            return False
        return True

    def _find_rows(self, is_prompt: str) -> None:
        """Which P rows are prompt rows, [P], and their places among [1, N] rows, [1, P, 2]."""
        add = self._rewriter.add
        coordinates = add("NonZero", [is_prompt])  # [2, P]
        self._index = add("Gather", [coordinates, self._rewriter.constant("row", np.array(1, np.int64))], axis=0)
        places = add("Transpose", [coordinates], perm=[1, 0])
        self._places = add("Unsqueeze", [places, self._rewriter.ints("first", [0])])

    def _gate_of(self, node: onnx.NodeProto) -> str:
        """The condition by whose 0 and 1 a node multiplies rows; "" if it does something else."""
        name = node.input[1] if node.op_type == "Mul" else ""
        for kind in ("Unsqueeze", "Cast"):
            maker = self._makers.get(name)
            if maker is None or maker.op_type != kind:
                return ""
            name = maker.input[0]
        return name if name in self._makers and self._makers[name].op_type == "Greater" else ""


def _behind(node: onnx.NodeProto, readers: Mapping[str, onnx.NodeProto]) -> onnx.NodeProto | None:
    """The sum that a layer's two products lead to."""
    for _ in range(_WEIGHTS):
        node = readers.get(node.output[0], node)
        if node.op_type != "MatMul":
            return None
    total = readers.get(node.output[0])
    return total if total is not None and total.op_type == "Add" and total.input[1] == node.output[0] else None
