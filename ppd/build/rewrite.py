"""Rewrite: what passes over a graph share. A pass adds nodes and constants, and drops what nothing reads any more."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from ppd.errors import ExportError


class Rewriter:
    """A graph being rewritten: its nodes are given again, in order, in `nodes`.

    Args:
        graph: One that this package exports; it is changed.
        prefix: Of the names of new nodes and constants.

    Raises:
        ExportError: It has no cache.
    """

    def __init__(self, graph: onnx.GraphProto, prefix: str) -> None:
        cache = next((value for value in graph.input if value.name == "k_0"), None)
        if cache is None:
            raise ExportError("the graph has no input k_0; give one that ppd-export wrote")
        self.graph, self.prefix = graph, prefix
        shape = cache.type.tensor_type.shape.dim
        self.kv_heads, self.head_dim = shape[1].dim_value, shape[3].dim_value
        self.type = cache.type.tensor_type.elem_type
        self.dtype = helper.tensor_dtype_to_np_dtype(self.type)
        self.nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, str] = {}

    def finish(self) -> None:
        """Replace the graph's nodes, and remove nodes and constants that nothing reads."""
        del self.graph.node[:]
        self.graph.node.extend(self.nodes)
        del self.graph.value_info[:]
        _remove_unused(self.graph)

    def add(self, kind: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        """Add a node of one output, whose name is returned."""
        name = output or f"{self.prefix}_{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(kind, list(inputs), [name], f"{self.prefix}_{len(self.nodes)}", **attributes)
        )
        return name

    def slice(self, x: str, start: str, end: str, axis: int) -> str:
        """Part of one axis."""
        return self.add("Slice", [x, start, end, self.ints(f"int_{axis}", [axis])])

    def ints(self, name: str, values: list[int]) -> str:
        """A constant, int64 [len(values)]."""
        return self.constant(name, np.array(values, np.int64))

    def constant(self, name: str, value: np.generic | npt.NDArray[np.generic]) -> str:
        """A constant, made once for each name."""
        if name not in self._constants:
            self._constants[name] = f"{self.prefix}_constant_{name}"
            self.graph.initializer.append(numpy_helper.from_array(np.asarray(value), self._constants[name]))
        return self._constants[name]


def attribute(node: onnx.NodeProto, name: str, default: float) -> float:
    """A number among a node's attributes."""
    return next((helper.get_attribute_value(item) for item in node.attribute if item.name == name), default)


def _remove_unused(graph: onnx.GraphProto) -> None:
    needed, kept = {value.name for value in graph.output}, []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    used = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(used)
