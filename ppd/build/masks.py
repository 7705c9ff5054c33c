"""One pass: the boolean mask of attention becomes a number that is added to its scores."""

import numpy as np
import onnx
from onnx import helper, numpy_helper

_UNSEEN = -6e4
"""What is added where a row may not see: near the least number of fp16."""


def add_masks(model: onnx.ModelProto) -> None:
    """Make the mask a number that is added: TensorRT-RTX 1.7 does not fuse attention whose layers share a boolean."""
    graph, kind = model.graph, cache_type(model)
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    attention = [node for node in graph.node if node.op_type == "Attention"]
    for name, number in (("mask_seen", 0), ("mask_unseen", _UNSEEN)):
        graph.initializer.append(numpy_helper.from_array(np.array(number, dtype), name))
    first = list(graph.node).index(attention[0])
    mask = helper.make_node("Where", [attention[0].input[3], "mask_seen", "mask_unseen"], ["mask_added"], "mask_added")
    graph.node.insert(first, mask)
    for node in graph.node:
        if node.op_type == "Attention":
            node.input[3] = "mask_added"


def cache_type(model: onnx.ModelProto) -> int:
    """ONNX's number for the type of the KV cache, which is that of the whole graph."""
    return next(value.type.tensor_type.elem_type for value in model.graph.input if value.name == "k_0")
