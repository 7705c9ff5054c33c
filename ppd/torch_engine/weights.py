"""The decoder, rebuilt from a bundle's graph: its initializers bear the decoder's parameter names."""

from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from ppd.bundle import Bundle
from ppd.errors import EngineError
from ppd.manifest import ModelInfo
from ppd.models.config import ModelConfig, Rope
from ppd.models.decoder import Decoder
from ppd.signature import GRAPH_FILE, PROMPT_TOKENS, TREE_DEPTH, TREE_MASK, WEIGHTS_FILE

_PREFIX = "decoder."
_QUANTISED = "_q"


def decoder_from_graph(bundle: Bundle) -> tuple[Decoder, torch.Tensor]:
    """The decoder with the weights of the bundle's graph, in fp32, and the folded prompt tokens.

    Args:
        bundle: The bundle; its checkpoint is not needed.

    Returns:
        The decoder, and the prompt tokens float32 [m, hidden].

    Raises:
        EngineError: The graph does not hold the decoder's weights.
    """
    graph = onnx.load(bundle.path(GRAPH_FILE), load_external_data=False).graph
    tensors = _tensors(graph, bundle)
    weights = {name.removeprefix(_PREFIX): t for name, t in tensors.items() if name.startswith(_PREFIX)}
    try:
        config = _config(bundle.manifest.model, bundle.manifest.context, weights, _epsilon(graph))
        with torch.device("meta"):
            decoder = Decoder(config, bundle.manifest.context)
        decoder.cos, decoder.sin = weights.pop("cos"), weights.pop("sin")
        decoder.load_state_dict(weights, assign=True)
        return decoder, tensors[PROMPT_TOKENS]
    except (KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise EngineError(
            f"{bundle.path(GRAPH_FILE)} does not hold the weights of the reference decoder ({reason}); "
            "export the bundle again"
        ) from error


def _tensors(graph: onnx.GraphProto, bundle: Bundle) -> dict[str, torch.Tensor]:
    """All weights in fp32, the quantised ones dequantised, under their names."""
    raw: dict[str, np.ndarray[Any, Any]] = {}
    content = np.memmap(bundle.path(WEIGHTS_FILE), np.uint8, "r")
    for tensor in graph.initializer:
        if tensor.name in (TREE_MASK, TREE_DEPTH):
            continue
        if tensor.data_location == onnx.TensorProto.EXTERNAL:  # read here: onnx refuses files with hard links
            place = {entry.key: entry.value for entry in tensor.external_data}
            start, size = int(place.get("offset", 0)), int(place["length"])
            tensor.raw_data = content[start : start + size].tobytes()
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]
        raw[tensor.name] = numpy_helper.to_array(tensor)
        tensor.ClearField("raw_data")
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in raw:
            raw[node.input[0].removesuffix(_QUANTISED)] = _dequantise(node, raw)
    floats = {name: array for name, array in raw.items() if name.startswith(_PREFIX) or name == PROMPT_TOKENS}
    dequantised = {n: a for n, a in floats.items() if not n.endswith((_QUANTISED, "_scale", "_zero_point"))}
    return {name: torch.tensor(array.astype(np.float32)) for name, array in dequantised.items()}


def _dequantise(node: onnx.NodeProto, raw: dict[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    """ONNX `DequantizeLinear`, block by block: (x - zero point) · scale."""
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    axis, block_size = attributes.get("axis", 1), attributes.get("block_size", 0)
    values = raw[node.input[0]].astype(np.float32)

    def spread(name: str) -> np.ndarray[Any, Any]:
        array = raw[name].astype(np.float32)
        if block_size:
            return np.repeat(array, block_size, axis).take(range(values.shape[axis]), axis)
        return array if array.ndim != 1 else np.expand_dims(array, [i for i in range(values.ndim) if i != axis])

    if len(node.input) > 2 and node.input[2]:
        values = values - spread(node.input[2])
    return values * spread(node.input[1])


def _epsilon(graph: onnx.GraphProto) -> float:
    """Epsilon of the RMS norms; they all have the config's."""
    node = next((node for node in graph.node if node.op_type == "RMSNormalization"), None)
    if node is None:
        raise KeyError("RMSNormalization")
    epsilon: float = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
    return epsilon


def _config(model: ModelInfo, context: int, weights: dict[str, torch.Tensor], epsilon: float) -> ModelConfig:
    """The decoder's shape, from the manifest and from which weights there are. Its rotary tables are replaced."""
    first = "blocks.0."
    return ModelConfig(
        architecture=model.architecture,
        vocab_size=model.vocab_size,
        hidden_size=model.hidden_size,
        ffn_size=weights[f"{first}mlp.gate_up.weight"].shape[1] // 2,
        num_layers=model.num_layers,
        num_heads=model.num_heads,
        num_kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        norm_eps=epsilon,
        rope=Rope(theta=10000.0),
        context=context,
        eos_ids=(),
        tied="head.weight" not in weights,
        qkv_bias=f"{first}attention.qkv.bias" in weights,
        output_bias=f"{first}attention.o.bias" in weights,
        mlp_bias=f"{first}mlp.gate_up.bias" in weights,
        qk_norm=f"{first}attention.q_norm.weight" in weights,
    )
