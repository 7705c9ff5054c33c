"""Trace: the decoder's step as an ONNX graph of standard operators, weights still where they were."""

import contextlib
import copy
import dataclasses
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import TorchTensor
from onnxscript.optimizer import optimize_ir
from onnxscript.values import Opset

import ppd
from ppd.export.unroll import TRACED_LAYERS, unroll
from ppd.models.decoder import Decoder, StepGraph
from ppd.signature import (
    CACHE_LEN,
    HEAD_ROWS,
    INPUT_IDS,
    LOGITS,
    MAX_ROWS,
    MIN_CAPACITY,
    OPSET,
    PARAMETER_PREFIX,
    STATE,
    TOP_IDS,
    cache_names,
    max_capacity,
)


def trace(decoder: Decoder, num_distances: int, num_top_ids: int) -> ir.Model:
    """Trace one step. N, R and S stay dynamic; N = 1 runs too. Two layers are traced, the others copied.

    Returns:
        The graph; its tables of prompt tokens and trees are placeholders until they are folded.
    """
    model = _trace(_first_layers(decoder, TRACED_LAYERS), num_distances, num_top_ids)
    unroll(model, decoder.config.num_layers)
    for name, weight in decoder.named_parameters():
        model.graph.initializers[f"{PARAMETER_PREFIX}{name}"].const_value = TorchTensor(weight)
    model.producer_name, model.producer_version = "ppd-edge", ppd.__version__
    _strip_metadata(model)
    return model


def _first_layers(decoder: Decoder, count: int) -> Decoder:
    """The same decoder with fewer layers; the modules are shared."""
    short = copy.copy(decoder)
    short._modules = decoder._modules | {"blocks": decoder.blocks[:count]}
    short.config = dataclasses.replace(decoder.config, num_layers=min(count, decoder.config.num_layers))
    return short


def _trace(decoder: Decoder, num_distances: int, num_top_ids: int) -> ir.Model:
    config, names = decoder.config, cache_names(decoder.config.num_layers)
    graph = StepGraph(decoder, num_distances, num_top_ids).eval()
    dtype = decoder.embedding.weight.dtype
    kv = [torch.zeros(1, config.num_kv_heads, MIN_CAPACITY, config.head_dim, dtype=dtype) for _ in names]
    arguments = (torch.zeros(1, 4, dtype=torch.int64), torch.tensor([0]), torch.tensor([5]), torch.arange(3), kv)
    # `min=2`, because torch.export would make a constant of 1.
    rows, head_rows = (torch.export.Dim(name, min=2, max=MAX_ROWS) for name in ("rows", "rows_of_head"))
    capacity = torch.export.Dim("capacity", min=2, max=max_capacity(decoder.context))
    with _quiet():
        program = torch.onnx.export(
            graph,
            arguments,
            dynamo=True,
            opset_version=OPSET,
            optimize=False,
            verbose=False,
            dynamic_shapes=({1: rows}, None, None, {0: head_rows}, [{2: capacity} for _ in kv]),
            custom_translation_table={torch.ops.ppd.kv_write.default: _tensor_scatter},
            input_names=[INPUT_IDS, STATE, CACHE_LEN, HEAD_ROWS, *names],
            output_names=[TOP_IDS, LOGITS, *(f"{name}_out" for name in names)],
        )
    assert program is not None
    model: ir.Model = program.model
    with _quiet():
        optimize_ir(model, should_fold=_reads_no_parameter)
    return model


def _tensor_scatter(cache: Any, update: Any, index: Any) -> Any:
    return Opset("", OPSET).TensorScatter(cache, update, index, axis=-2)


def _reads_no_parameter(node: ir.Node) -> bool | None:
    """Keep nodes that read a parameter from being constant-folded: the result would hold the placeholder's numbers."""
    parameters = (value is not None and (value.name or "").startswith(PARAMETER_PREFIX) for value in node.inputs)
    return False if any(parameters) else None


def _strip_metadata(model: ir.Model) -> None:
    """Drop the tracer's notes: stack traces with the paths of the machine that exported."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence the tracer's remarks about itself; its errors are exceptions."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
