"""The decoder, rebuilt from a bundle: its configuration from `model.json`, its weights from the graph."""

import functools
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from ppd.bundle import MODEL_FILE, Bundle
from ppd.codec import AGAIN, decode, parse_json
from ppd.errors import BundleError, EngineError
from ppd.manifest import GuessHeadsInfo
from ppd.models.config import GuessHeadsConfig, ModelConfig
from ppd.models.decoder import Decoder
from ppd.signature import (
    GRAPH_FILE,
    PARAMETER_PREFIX,
    PROMPT_TOKENS,
    QUANTISED_SUFFIX,
    SCALE_SUFFIX,
    WEIGHTS_FILE,
    ZERO_POINT_SUFFIX,
)

Array = np.ndarray[Any, Any]
_SHARED = ("vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim")
"""Sizes that manifest and decoder both know."""


def decoder_from_bundle(bundle: Bundle) -> tuple[Decoder, torch.Tensor | None]:
    """The decoder with the weights of the bundle's graph, in fp32, and the folded prompt tokens.

    Returns:
        The decoder, and the prompt tokens float32 [m, hidden]; None where guess heads are part of the decoder.

    Raises:
        BundleError: The configuration is missing or damaged.
        EngineError: The graph does not hold the decoder's weights.
    """
    config = decode(ModelConfig, parse_json(bundle.read_bytes(MODEL_FILE), MODEL_FILE), MODEL_FILE)
    for name in _SHARED:
        if getattr(config, name) != getattr(bundle.manifest.model, name):
            raise BundleError(f"{name} is {getattr(config, name)} in {MODEL_FILE}, and not in the manifest; {AGAIN}")
    if _described(config.guess_heads) != _described(bundle.manifest.guess_heads):
        raise BundleError(f"the guess heads in {MODEL_FILE} are not those of the manifest; {AGAIN}")
    with torch.device("meta"):
        decoder = Decoder(config, bundle.manifest.context)
    names = {f"{PARAMETER_PREFIX}{name}": name for name in decoder.state_dict()}
    try:
        weights = _weights(onnx.load(bundle.path(GRAPH_FILE), load_external_data=False).graph, bundle)
        decoder.load_state_dict({name: weights[key] for key, name in names.items()}, assign=True)
        return decoder, None if decoder.guess_heads is not None else weights[PROMPT_TOKENS]
    except Exception as error:  # what a damaged graph leads protobuf, onnx, NumPy and torch to raise has no bounds
        raise EngineError(
            f"{bundle.path(GRAPH_FILE)} does not hold the weights of the reference decoder "
            f"({' '.join(str(error).split())!s:.200}); {AGAIN}"
        ) from error


def _described(heads: GuessHeadsConfig | GuessHeadsInfo | None) -> tuple[str, int, str] | None:
    return None if heads is None else (heads.kind, heads.count, heads.projection)


def _weights(graph: onnx.GraphProto, bundle: Bundle) -> dict[str, torch.Tensor]:
    """The decoder's weights and the prompt tokens in fp32, the quantised ones dequantised, under their names."""
    content = np.memmap(bundle.path(WEIGHTS_FILE), np.uint8, "r")
    stored = {
        tensor.name: tensor
        for tensor in graph.initializer
        if tensor.name.startswith(PARAMETER_PREFIX) or tensor.name == PROMPT_TOKENS
    }
    axes = {node.input[0]: _axis(node) for node in graph.node if node.op_type == "DequantizeLinear"}
    turned = {node.input[0] for node in graph.node if node.op_type == "Transpose"}
    by_output = {node.input[0] for node in graph.node if turned.intersection(node.output)}

    def read(name: str) -> Array:
        return _read(stored[name], content).astype(np.float32)

    weights = {}
    for name in stored:
        if name.endswith(QUANTISED_SUFFIX):
            bare, values = name.removesuffix(QUANTISED_SUFFIX), read(name)
            spread = functools.partial(_spread, shape=values.shape, axis=axes.get(name, -1))
            if f"{bare}{ZERO_POINT_SUFFIX}" in stored:
                values = values - spread(read(f"{bare}{ZERO_POINT_SUFFIX}"))
            found = torch.from_numpy(values * spread(read(f"{bare}{SCALE_SUFFIX}")))
            weights[bare] = found.T if name in by_output else found
        elif not name.endswith((SCALE_SUFFIX, ZERO_POINT_SUFFIX)):
            weights[name] = torch.from_numpy(read(name))
    return weights


def _read(tensor: onnx.TensorProto, content: Array) -> Array:
    """An initializer, from the graph or from the file of weights."""
    if tensor.data_location == onnx.TensorProto.EXTERNAL:  # read here: onnx refuses files with hard links
        place = {entry.key: entry.value for entry in tensor.external_data}
        start, size = int(place.get("offset", 0)), int(place["length"])
        whole = onnx.TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        whole.raw_data = content[start : start + size].tobytes()
        return numpy_helper.to_array(whole)
    return numpy_helper.to_array(tensor)


def _axis(node: onnx.NodeProto) -> int:
    """The axis of a `DequantizeLinear` along which its scales lie, where they are of one dimension."""
    return next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)


def _spread(numbers: Array, shape: tuple[int, ...], axis: int) -> Array:
    """Repeat scales to the shape of the values: one for all, one per place of an axis, or one per block.

    Args:
        numbers: With no dimension, one, or as many as the values, each dividing theirs.
        axis: Where the numbers of one dimension lie.
    """
    if numbers.ndim == 1:
        numbers = numbers.reshape([-1 if i == axis % len(shape) else 1 for i in range(len(shape))])
    for i, (there, wanted) in enumerate(zip(numbers.shape, shape, strict=numbers.ndim > 0)):
        numbers = np.repeat(numbers, wanted // there, i)
    return numbers
