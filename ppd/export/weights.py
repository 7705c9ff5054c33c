"""Weights on their way into a graph: read from the checkpoint one by one, never all in memory.

The graph is traced from a decoder whose weights take no memory. Then each initializer becomes a promise to read,
convert and write one weight. The same weights run the PyTorch reference, layer by layer: those that were quantised are
read back from the graph's file, so that nothing is quantised twice.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import onnx_ir as ir
import torch
from torch import Tensor, nn

from ppd.errors import ExportError
from ppd.export.quantise import HEAD, bits_of, numpy_dtype, quantise_graph, require_stored, stored
from ppd.models.config import ModelConfig
from ppd.models.decoder import Decoder
from ppd.precision import PRECISIONS
from ppd.signature import PARAMETER_PREFIX


class ReadableWeights(Protocol):
    """Weights by the decoder's parameter names."""

    def read(self, name: str) -> Tensor:
        """One weight; projections are [in, out]."""


class CutWeights:
    """Weights of a model with a smaller vocabulary: the first words of the embedding and of the LM head.

    Args:
        weights: The whole ones.
        vocab_size: Words that are left.
    """

    def __init__(self, weights: ReadableWeights, vocab_size: int) -> None:
        self._weights, self._vocab_size = weights, vocab_size

    def read(self, name: str) -> Tensor:
        """As `ReadableWeights.read`."""
        weight = self._weights.read(name)
        if name == "embedding.weight":
            return weight[: self._vocab_size]
        return weight[:, : self._vocab_size] if name == HEAD else weight


class ExportedWeights:
    """The weights of a checkpoint, and what they become.

    Args:
        weights: The opened checkpoint.
        precision: Of the export.
        dtype: The graph's type for what is not quantised.
    """

    def __init__(self, weights: ReadableWeights, precision: str, dtype: torch.dtype) -> None:
        self._weights, self.precision, self.dtype = weights, precision, dtype
        self._graph: ir.Model | None = None
        self._verified = set[str]()

    def original(self, name: str) -> Tensor:
        """As the checkpoint has it, float32."""
        return self._weights.read(name).float()

    def exported(self, name: str) -> Tensor:
        """As the graph computes with it, float32; `put_into` comes first.

        Raises:
            ExportError: A quantised weight does not stand in the graph's file as it was written.
        """
        weight = self._weights.read(name)
        if bits_of(name, tuple(weight.shape), self.precision) is None:
            return weight.to(self.dtype).float()
        assert self._graph is not None, "quantised weights are read from the graph"
        found = stored(self._graph, f"{PARAMETER_PREFIX}{name}")
        if name not in self._verified:
            require_stored(found, weight, name, self.dtype)
            self._verified.add(name)
        return found.dequantise()

    def put_into(self, model: ir.Model, config: ModelConfig) -> None:
        """Replace the placeholders of a traced graph by promises to read the weights.

        Args:
            model: The graph.
            config: Of the decoder that was traced; it may have fewer layers than the checkpoint.

        Raises:
            ExportError: A weight is not an initializer of the graph: the tracer changed it.
        """
        with torch.device("meta"):
            names = {f"{PARAMETER_PREFIX}{name}": name for name in Decoder(config, 2).state_dict()}
        if missing := sorted(names.keys() - model.graph.initializers.keys()):
            raise ExportError(f"the traced graph lacks {missing[0]}; use the torch version of constraints.txt")
        kind = ir.DataType.from_numpy(numpy_dtype(self.dtype))
        for key, name in names.items():
            value = model.graph.initializers[key]
            assert value.shape is not None
            value.const_value = ir.LazyTensor(self._reader(name, key), kind, ir.Shape(value.shape), name=key)
        if PRECISIONS[self.precision].is_quantised:
            quantise_graph(model, self._weights.read, names, self.precision)
        self._graph = model

    def _reader(self, name: str, key: str) -> Callable[[], ir.TensorProtocol]:
        def read() -> ir.TensorProtocol:
            weight = self._weights.read(name).to(self.dtype).contiguous()
            return ir.Tensor(weight.numpy(), name=key)

        return read


def placeholder_decoder(config: ModelConfig, context: int, dtype: torch.dtype) -> Decoder:
    """A decoder whose weights have shape and type, and share one number of memory each."""
    with torch.device("meta"):
        decoder = Decoder(config, context)
    # Different numbers, so that nothing takes two weights for equal.
    state = {
        name: torch.full((1,), 1e-3 * i, dtype=dtype).expand(weight.shape)
        for i, (name, weight) in enumerate(decoder.state_dict().items(), 1)
    }
    decoder.load_state_dict(state, assign=True)
    decoder.cos, decoder.sin = decoder.cos.to(dtype), decoder.sin.to(dtype)
    return decoder.requires_grad_(False).eval()


@contextlib.contextmanager
def streamed(decoder: Decoder, read: Callable[[str], Tensor]) -> Iterator[Decoder]:
    """Run a placeholder decoder on real weights: each module has its own while it runs, and no longer.

    Args:
        decoder: From `placeholder_decoder`, float32.
        read: Parameter name → float32 tensor.
    """
    hooks: list[Any] = []
    if decoder.head is None:  # tied: the table is used outside its module as well
        decoder.embedding.weight = nn.Parameter(read("embedding.weight"), requires_grad=False)
    for path, module in decoder.named_modules():
        own = [name for name, _ in module.named_parameters(recurse=False)]
        if own and not (decoder.head is None and module is decoder.embedding):
            hooks += _stream_module(module, path, own, read)
    try:
        yield decoder
    finally:
        for hook in hooks:
            hook.remove()


def _stream_module(module: nn.Module, path: str, own: list[str], read: Callable[[str], Tensor]) -> list[Any]:
    placeholders = {name: getattr(module, name) for name in own}

    def fill(_module: nn.Module, _inputs: Any) -> None:
        for name in own:
            setattr(module, name, nn.Parameter(read(f"{path}.{name}"), requires_grad=False))

    def empty(_module: nn.Module, _inputs: Any, _output: Any) -> None:
        for name in own:
            setattr(module, name, placeholders[name])

    return [module.register_forward_pre_hook(fill), module.register_forward_hook(empty)]
