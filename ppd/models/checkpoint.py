"""Load a checkpoint's weights into the decoder: a Hugging Face folder's, memory-mapped, or a GGUF file's, one by one.

So the peak is near one copy of them.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ppd.errors import ModelError
from ppd.extras import needs
from ppd.json_files import read_json
from ppd.models.config import ModelConfig, read_hf_config
from ppd.models.decoder import Decoder
from ppd.models.packed import PackedTensors, PackedWeight, joined
from ppd.models.packing import packing_of
from ppd.models.pickled import load_pickled

# Ours → Hugging Face's, per layer. Projections are transposed on the way, and several become one, side by side.
_MODULES = {
    "attention_norm": ("input_layernorm",),
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.q_norm": ("self_attn.q_norm",),
    "attention.k_norm": ("self_attn.k_norm",),
    "attention.o": ("self_attn.o_proj",),
    "mlp_norm": ("post_attention_layernorm",),
    "mlp.gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down": ("mlp.down_proj",),
}
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_OUTSIDE_LAYERS = {"embedding.weight": _EMBEDDING, "norm.weight": "model.norm.weight", "head.weight": _HEAD}
_SHARD = re.compile(r"-\d+-of-\d+\.")
_ROWS_AT_ONCE = 4096
_IGNORED_SUFFIXES = ("rotary_emb.inv_freq",)  # tables that old checkpoints store and every loader recomputes


def load_decoder(path: Path, config: ModelConfig, context: int, dtype: torch.dtype) -> Decoder:
    """Build the decoder and fill it from a folder or file that `open_weights` takes.

    The module allocates no weights of its own; a tensor that already has `dtype` stays memory-mapped, unless it is made
    of several.

    Returns:
        The decoder, in evaluation mode.

    Raises:
        ModelError: A file or tensor is missing, unexpected, damaged, or of the wrong shape; the message names it.
    """
    with torch.device("meta"):
        decoder = Decoder(config, context)
    with open_weights(path, config) as weights:
        decoder.load_state_dict({name: weights.read(name).to(dtype) for name in weights.names}, assign=True)
    return decoder.requires_grad_(False).eval()


def stored_tensors(decoder: Decoder) -> dict[str, Tensor]:
    """The decoder's weights as a Hugging Face folder has them: named, cut and turned so."""
    tensors = {}
    for name, weight in decoder.state_dict().items():
        turned = weight.T if _is_projection(name, weight) else weight
        shapes = _stored_shapes(name, weight, decoder.config)
        pieces = turned.split([shape[0] for shape in shapes.values()])
        tensors.update({stored: piece.contiguous() for stored, piece in zip(shapes, pieces, strict=True)})
    return tensors


class Source(Protocol):
    """Tensors by the names of a Hugging Face folder, read when asked for."""

    def __getitem__(self, name: str, /) -> Tensor:
        """One tensor; memory-mapped where its type is one of torch's."""


class Weights:
    """An opened checkpoint, by the decoder's parameter names.

    Attributes:
        names: Every parameter of the decoder.
        num_parameters: Total number of elements.
        groups: Weights that the checkpoint has packed in 4 bits, in all their parts → inputs that share a scale.
    """

    def __init__(self, source: Source, config: ModelConfig) -> None:
        with torch.device("meta"):
            expected = Decoder(config, 2).state_dict()
        self._source = source
        self._shapes = {name: _stored_shapes(name, like, config) for name, like in expected.items()}
        self.names = list(expected)
        self.num_parameters = sum(weight.numel() for weight in expected.values())
        self.groups: dict[str, int] = {}
        if isinstance(source, PackedTensors):
            self.groups = {
                name: source.packing.group for name in self.names if all(map(source.is_packed, self._shapes[name]))
            }

    def read(self, name: str) -> Tensor:
        """One weight in the checkpoint's own type, or float32 where torch has no such type; projections are [in, out].

        Memory-mapped if the checkpoint has it in one piece, else joined from its pieces.

        Raises:
            ModelError: It is not floating point, or its shape is not the one that the configuration asks for.
        """
        parts = self.parts(name)
        weight = parts[0] if len(parts) == 1 else torch.cat(parts)
        return weight.T if _is_projection(name, weight) else weight

    def parts(self, name: str) -> list[Tensor]:
        """The tensors that a weight is made of, as the checkpoint has them, memory-mapped.

        Raises:
            ModelError: As for `read`.
        """
        return [_read(self._source, stored, shape) for stored, shape in self._shapes[name].items()]

    def packed(self, name: str) -> PackedWeight:
        """A weight of `groups` as the checkpoint has it, its parts joined."""
        assert isinstance(self._source, PackedTensors)
        return joined([self._source.read(stored) for stored in self._shapes[name]])

    @property
    def asymmetric(self) -> str:
        """A packed projection of the checkpoint with zero points other than 8; "" if there is none."""
        return min(self._source.asymmetric, default="") if isinstance(self._source, PackedTensors) else ""

    @property
    def stored_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor that the checkpoint should have, by its name there."""
        return {name: shape for shapes in self._shapes.values() for name, shape in shapes.items()}


@contextmanager
def open_weights(path: Path, config: ModelConfig) -> Iterator[Weights]:
    """Open a folder's `*.safetensors`, single or sharded, or `pytorch_model*.bin` (tensors only), or a GGUF file.

    Every tensor's name and shape is checked.

    Raises:
        ModelError: A file or tensor is missing, unexpected, damaged, or of the wrong shape; the message names it.
    """
    if path.is_file():
        yield _open_gguf(path, config)
        return
    with ExitStack() as stack:
        source = _open_weights(path, stack)
        if (packing := packing_of(read_hf_config(path))) is not None:
            source = PackedTensors(source, packing)
        weights = Weights(source, config)
        _check_folder(path, source, weights.stored_shapes, config)
        yield weights


def _check_folder(
    folder: Path, source: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], config: ModelConfig
) -> None:
    """Check every name and shape; packed weights are not unpacked for it."""
    found, whole = set(source), dict(expected)
    if isinstance(source, PackedTensors):
        found -= source.idle_biases(expected)
        whole = {name: shape for name, shape in expected.items() if not source.is_packed(name)}
    _check_names(folder, set(expected), found, config)
    if isinstance(source, PackedTensors):
        source.check(expected)
    if config.tied:
        _check_tied(folder, source)
    for name, shape in whole.items():
        _read(source, name, shape)


def _open_gguf(path: Path, config: ModelConfig) -> Weights:
    with needs("export"):
        from ppd.models.gguf.file import read_gguf
        from ppd.models.gguf.tensors import Tensors
    source = Tensors(read_gguf(path), config)
    weights = Weights(source, config)
    try:
        source.check(weights.stored_shapes)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    return weights


def _is_projection(name: str, weight: Tensor) -> bool:
    """Whether a weight is stored transposed, [out, in]."""
    return weight.ndim == 2 and name != "embedding.weight"


def _stored_shapes(name: str, like: Tensor, config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The checkpoint's tensors that one weight is made of, in order, with their shapes.

    Args:
        like: The parameter, for its shape.
    """
    shape = tuple(reversed(like.shape)) if _is_projection(name, like) else tuple(like.shape)
    if name in _OUTSIDE_LAYERS:
        return {_OUTSIDE_LAYERS[name]: shape}
    _, layer, rest = name.split(".", 2)
    module, parameter = rest.rsplit(".", 1)
    parts = _MODULES[module]
    sizes = config.qkv_sizes if module == "attention.qkv" else [shape[0] // len(parts)] * len(parts)
    return {
        f"model.layers.{layer}.{part}.{parameter}": (size, *shape[1:]) for part, size in zip(parts, sizes, strict=True)
    }


def _read(source: Source, name: str, shape: tuple[int, ...]) -> Tensor:
    tensor = source[name]
    if not tensor.is_floating_point():
        raise ModelError(
            f"the tensor {name} is {tensor.dtype}; expected floating point, or in 4 bits the tensors and the "
            "quantization_config of gptq or awq"
        )
    if tensor.shape != shape:
        raise ModelError(f"the tensor {name} has shape {list(tensor.shape)}; config.json asks for {list(shape)}")
    return tensor


def _check_names(folder: Path, expected: set[str], found: set[str], config: ModelConfig) -> None:
    if missing := sorted(expected - found):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        if any(name.endswith(".qweight") for name in found):
            more += " but has packed ones, without their quantization_config"
        raise ModelError(f"{folder} lacks the tensor {missing[0]}{more}; its config.json asks for it")
    extra = {name for name in found - expected if not name.endswith(_IGNORED_SUFFIXES)}
    if config.tied:
        extra.discard(_HEAD)  # the embedding, stored twice, which `_check_tied` makes sure of
    if extra:
        raise ModelError(
            f"{folder} has the tensor {min(extra)}, which a {config.architecture} with this config.json does not have; "
            "check config.json"
        )


def _check_tied(folder: Path, source: Mapping[str, Tensor]) -> None:
    """Refuse a head that is not the embedding although the configuration says so: loaders differ in which they take."""
    if _HEAD not in source:
        return
    head, embedding = source[_HEAD], source[_EMBEDDING]
    same = head.shape == embedding.shape and all(
        torch.equal(some.float(), other.float())
        for some, other in zip(*(torch.split(table, _ROWS_AT_ONCE) for table in (head, embedding)), strict=True)
    )
    if not same:
        raise ModelError(
            f"{folder}: {_HEAD} is another table than {_EMBEDDING}, but config.json sets tie_word_embeddings; set it "
            "to false to compute with this head, or remove the tensor to compute with the embedding"
        )


class _SafetensorsSource(Mapping[str, Tensor]):
    """Tensors of one or several safetensors files, read when asked for."""

    def __init__(self, paths: list[Path], stack: ExitStack) -> None:
        self._files = {}
        for path in paths:
            try:
                file = stack.enter_context(safe_open(path, framework="pt"))
            except (OSError, SafetensorError) as error:
                raise ModelError(f"cannot read {path} ({error}); expected a safetensors file, whole") from error
            self._files.update(dict.fromkeys(file.keys(), file))

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._files[name].get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def _open_weights(folder: Path, stack: ExitStack) -> Mapping[str, Tensor]:
    for single in ("model.safetensors", *_files_of_gptq(folder), "pytorch_model.bin"):
        paths = [folder / single] if (folder / single).exists() else _shards(folder / f"{single}.index.json")
        if paths and single.endswith(".safetensors"):
            return _SafetensorsSource(paths, stack)
        if paths:
            return _load_bins(paths)
    raise ModelError(
        f"{folder} has no model.safetensors and no model.safetensors.index.json; expected the weights there"
    )


def _files_of_gptq(folder: Path) -> list[str]:
    """The file that AutoGPTQ calls by what is in it, such as gptq_model-4bit-128g.safetensors, whole or sharded.

    Raises:
        ModelError: There are several, and nothing says which is the model.
    """
    held = {path.name.removesuffix(".index.json") for path in folder.glob("gptq_model-*.safetensors*")}
    names = sorted(name for name in held if name.endswith(".safetensors") and not _SHARD.search(name))
    if len(names) > 1 and not list(folder.glob("model.safetensors*")):
        raise ModelError(f"{folder} has {' and '.join(names)}; leave the one that config.json belongs to")
    return names


def _shards(index: Path) -> list[Path]:
    if not index.exists():
        return []
    try:
        names = sorted(set(read_json(index)["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"cannot read {index} ({error!r:.200}); expected an object with weight_map") from error
    held = {path.name for path in index.parent.iterdir() if path.is_file()}
    for name in names:
        if name not in held:
            raise ModelError(f"{index} names the shard {name!r:.80}, which is not in its folder; download it again")
    return [index.parent / name for name in names]


def _load_bins(paths: list[Path]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path in paths:
        try:
            tensors |= load_pickled(path)
        except ValueError as error:
            raise ModelError(f"cannot read {path} ({error}); convert the checkpoint to safetensors") from error
    return tensors
