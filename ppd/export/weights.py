"""Weights on their way into a graph: read from the checkpoint one by one, never all in memory.

The graph is traced from a decoder whose weights take no memory. Then each initializer becomes a promise to read,
convert and write one weight. The same weights run the PyTorch reference, layer by layer: those that were quantised are
read back from the graph's file, so that nothing is quantised twice.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import onnx_ir as ir
import torch
from torch import Tensor, nn

from ppd.errors import ExportError
from ppd.export.dequantise import Promise, dequantise_in_graph, stored
from ppd.export.forms import EMBEDDING, HEAD, Forms, is_head
from ppd.export.quantise import Form, Quantised, quantise, storable, taken_over
from ppd.models.config import ModelConfig
from ppd.models.decoder import Decoder
from ppd.models.packed import PackedWeight
from ppd.signature import PARAMETER_PREFIX

_MAX_FLOAT16 = torch.finfo(torch.float16).max


class ReadableWeights(Protocol):
    """Weights by the decoder's parameter names."""

    def read(self, name: str) -> Tensor:
        """One weight; projections are [in, out]."""

    def packed(self, name: str) -> PackedWeight:
        """One that the checkpoint has in 4 bits."""


class UntiedWeights:
    """Weights with an LM head of their own, where the checkpoint's is tied to the embedding."""

    def __init__(self, weights: ReadableWeights) -> None:
        self._weights = weights

    def read(self, name: str) -> Tensor:
        """As `ReadableWeights.read`."""
        return self._weights.read(EMBEDDING).T if name == HEAD else self._weights.read(name)

    def packed(self, name: str) -> PackedWeight:
        """As `ReadableWeights.packed`."""
        return self._weights.packed(name)


class WeightsWithGuesser:
    """Weights of a model with guess heads or prompt layers, which its checkpoint does not have.

    Args:
        guesser: These, by the decoder's names.
    """

    def __init__(self, weights: ReadableWeights, guesser: Mapping[str, Tensor]) -> None:
        self._weights, self._guesser = weights, guesser

    def read(self, name: str) -> Tensor:
        """As `ReadableWeights.read`."""
        return self._guesser[name] if name in self._guesser else self._weights.read(name)

    def packed(self, name: str) -> PackedWeight:
        """As `ReadableWeights.packed`."""
        return self._weights.packed(name)


class CutWeights:
    """Weights of a model with a smaller vocabulary: the first words of the embedding and of every head.

    Args:
        vocab_size: Number of words to keep.
    """

    def __init__(self, weights: ReadableWeights, vocab_size: int) -> None:
        self._weights, self._vocab_size = weights, vocab_size

    def read(self, name: str) -> Tensor:
        """As `ReadableWeights.read`."""
        weight = self._weights.read(name)
        if name == EMBEDDING:
            return weight[: self._vocab_size]
        return weight[:, : self._vocab_size] if is_head(name) else weight

    def packed(self, name: str) -> PackedWeight:
        """As `ReadableWeights.packed`."""
        return self._weights.packed(name)


class ExportedWeights:
    """The weights of a checkpoint, and what they become.

    Args:
        config: That of the exported decoder, whose LM head may be untied where the checkpoint's is tied.
        dtype: The graph's type for what is not quantised.

    Attributes:
        inputs: Projection ("blocks.0.mlp.down") → rows [T, in] that it reads on a text; for 4 bits.
        kept: As from `Forms.kept`.
    """

    def __init__(
        self,
        weights: ReadableWeights,
        config: ModelConfig,
        forms: Forms,
        dtype: torch.dtype,
    ) -> None:
        self._weights, self.forms, self.dtype = weights, forms, dtype
        with torch.device("meta"):
            self._shapes = {name: tuple(weight.shape) for name, weight in Decoder(config, 2).state_dict().items()}
        self.kept = forms.kept(self._shapes)
        self.inputs: Mapping[str, Tensor] = {}
        self._graph: ir.Model | None = None
        self._promises: dict[str, Promise] = {}

    @property
    def need_inputs(self) -> bool:
        """Whether quantising needs to know what projections read on a text: 4 bits do, unless taken over."""
        forms = {name: self.forms.of(name, shape) for name, shape in self._shapes.items()}
        return any(form and form.bits == 4 and not self.forms.takes_over(name) for name, form in forms.items())

    def original(self, name: str) -> Tensor:
        """A weight as the checkpoint has it, float32."""
        return self._weights.read(name).float()

    def exported(self, name: str) -> Tensor:
        """A weight as the graph computes with it, float32; call `put_into` first.

        Raises:
            ExportError: The graph's file does not hold a quantised weight as it was written.
        """
        promise = self._promises.get(name)
        if promise is None:
            return self._converted(name).float()
        assert self._graph is not None
        found = stored(self._graph, promise).dequantise()
        return found.T if name == EMBEDDING else found

    def put_into(self, model: ir.Model) -> None:
        """Replace the placeholders of a traced graph by promises to read the weights.

        Raises:
            ExportError: A weight is not an initializer of the graph, or is read in another way: the tracer changed it.
        """
        names = {f"{PARAMETER_PREFIX}{name}": name for name in self._shapes}
        if missing := sorted(names.keys() - model.graph.initializers.keys()):
            raise ExportError(f"the traced graph lacks {missing[0]}; use the torch version of constraints.txt")
        kind = ir.DataType.from_numpy(torch.empty(0, dtype=self.dtype).numpy().dtype)
        for key, name in names.items():
            form = self.forms.of(name, self._shapes[name])
            if form is None:
                value = model.graph.initializers[key]
                value.const_value = ir.LazyTensor(self._reader(name, key), kind, ir.Shape(self._shapes[name]), name=key)
            else:
                self._promises[name] = Promise(key, form, self._quantiser(name, form))
                dequantise_in_graph(model, self._promises[name])
        self._graph = model

    def _converted(self, name: str) -> Tensor:
        """A weight in the graph's type.

        Raises:
            ExportError: It has numbers that 16 bits do not hold.
        """
        weight = self._weights.read(name)
        converted = weight.to(self.dtype)
        if self.dtype == torch.float16 and weight.dtype != torch.float16:
            largest = max(-float(weight.min()), float(weight.max()))
            if _MAX_FLOAT16 < largest < float("inf"):
                raise ExportError(
                    f"the weight {name} has numbers up to {largest:.3g}; fp16 ends at {_MAX_FLOAT16:.0f}: "
                    "export with --precision fp32"
                )
        return converted

    def _quantiser(self, name: str, form: Form) -> Callable[[], Quantised]:
        def compute() -> Quantised:
            if self.forms.takes_over(name):
                return storable(self._taken_over(name, form), self.dtype)
            weight = self._weights.read(name)
            inputs = self.inputs.get(name.removesuffix(".weight"))
            return storable(quantise(weight.T if name == EMBEDDING else weight, form, inputs), self.dtype)

        return compute

    def _taken_over(self, name: str, form: Form) -> Quantised:
        """The checkpoint's own numbers.

        Raises:
            ExportError: A scale is negative, which TensorRT refuses.
        """
        packed = self._weights.packed(name)
        if self.forms.for_tensorrt and bool((packed.scales < 0).any()):
            raise ExportError(
                f"the weight {name} has negative scales, which TensorRT does not take; export with --precision fp16"
            )
        return taken_over(packed.values, packed.all_zero_points(), packed.scales, form)

    def _reader(self, name: str, key: str) -> Callable[[], ir.TensorProtocol]:
        def read() -> ir.TensorProtocol:
            return ir.Tensor(self._converted(name).contiguous().numpy(), name=key)

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
