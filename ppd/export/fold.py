"""Fold: prompt tokens and tree become constants of the graph, and the graph becomes files."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir import external_data

from ppd.errors import ExportError
from ppd.signature import (
    GRAPH_FILE,
    MAX_ROWS,
    PROMPT_TOKENS,
    TREE_DEPTH,
    TREE_MASK,
    TREE_TABLES_FILE,
    WEIGHTS_FILE,
    num_states,
)
from ppd.tree import Tree
from ppd.tree_tables import tree_tables_bytes

_MIN_EXTERNAL_BYTES = 1024


def fold(model: ir.Model, prompt_tokens: npt.NDArray[np.floating] | None, tree: Tree, folder: Path) -> None:
    """Fold prompt tokens and tree into a traced graph, and write it.

    Args:
        model: Its initializers become external.
        prompt_tokens: [m, hidden], in the graph's precision; None where the graph has guess heads.
        folder: Where `model.onnx`, `model.onnx.data` and `tree.bin` go.

    Raises:
        ExportError: The graph has no table of the expected shape: the tracer changed it.
    """
    states = num_states(tree.num_prompt_tokens)
    mask = _table(model, TREE_MASK, (states, MAX_ROWS, MAX_ROWS))
    depth = _table(model, TREE_DEPTH, (states, MAX_ROWS))
    if prompt_tokens is not None:
        _table(model, PROMPT_TOKENS, prompt_tokens.shape).const_value = ir.tensor(prompt_tokens, name=PROMPT_TOKENS)
    (folder / TREE_TABLES_FILE).write_bytes(tree_tables_bytes(tree))
    mask_bytes = states * MAX_ROWS * MAX_ROWS
    for value, offset, dtype in ((mask, 0, ir.DataType.BOOL), (depth, mask_bytes, ir.DataType.INT64)):
        value.const_value = _tree_table(value, offset, dtype, folder)
    large = [
        value
        for value in model.graph.initializers.values()
        if value.const_value is not None
        and value.const_value.nbytes >= _MIN_EXTERNAL_BYTES
        and value not in (mask, depth)
    ]
    tensors = [value.const_value for value in large if value.const_value is not None]
    written = external_data.convert_tensors_to_external(tensors, folder, WEIGHTS_FILE)
    for value, tensor in zip(large, written, strict=True):
        value.const_value = tensor
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.LazyTensor):  # a small one: computed now, and not again when it is read
            value.const_value = ir.Tensor(value.const_value.numpy(), name=value.name)
    ir.save(model, folder / GRAPH_FILE)


def stored_bytes(folder: Path, prefix: str) -> int:
    """What the weights take whose names begin with `prefix`, of the graph in a folder."""
    weights = ir.load(folder / GRAPH_FILE).graph.initializers.values()
    named = (value.const_value for value in weights if (value.name or "").startswith(prefix))
    return sum(tensor.nbytes for tensor in named if tensor is not None)


def _table(model: ir.Model, name: str, shape: tuple[int, ...]) -> ir.Value:
    value = model.graph.initializers.get(name)
    if value is None or value.const_value is None or tuple(value.const_value.shape.numpy()) != shape:
        raise ExportError(
            f"the traced graph has no table {name} {list(shape)}; use the torch version of constraints.txt"
        )
    return value


def _tree_table(value: ir.Value, offset: int, dtype: ir.DataType, folder: Path) -> ir.ExternalTensor:
    assert value.const_value is not None
    shape = value.const_value.shape
    assert isinstance(shape, ir.Shape)
    return ir.ExternalTensor(
        location=TREE_TABLES_FILE,
        offset=offset,
        length=value.const_value.nbytes,
        dtype=dtype,
        shape=shape,
        name=value.name or "",
        base_dir=folder,
    )
