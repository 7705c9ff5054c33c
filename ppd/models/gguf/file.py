"""The head of a GGUF file: its metadata, and where its tensors lie.

`gguf.GGUFReader` takes seconds for the metadata of a large vocabulary and believes what a damaged file says of its own
sizes; here every count is held against the file before anything is read or allocated by it.
"""

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from ppd.errors import ModelError

T = TypeVar("T")

ROPE_FACTORS = "rope_freqs.weight"
"""A tensor that is part of the configuration: a factor for every wavelength of the rotary positions."""
_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_COUNT = 1 << 22
_MAX_TEXT = 1 << 24
_MAX_NAME = 256
_MAX_DIMENSIONS = 4
_DEFAULT_ALIGNMENT = 32
_SCALARS = {
    GGUFValueType.UINT8: "<B",
    GGUFValueType.INT8: "<b",
    GGUFValueType.UINT16: "<H",
    GGUFValueType.INT16: "<h",
    GGUFValueType.UINT32: "<I",
    GGUFValueType.INT32: "<i",
    GGUFValueType.UINT64: "<Q",
    GGUFValueType.INT64: "<q",
    GGUFValueType.FLOAT32: "<f",
    GGUFValueType.FLOAT64: "<d",
    GGUFValueType.BOOL: "<?",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """A tensor of the file.

    Attributes:
        kind: How its numbers are stored.
        shape: In elements, rows first.
        offset: Where it begins, in bytes from the beginning of the file.
        size_bytes: Its size in the file.
    """

    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GGUFFile:
    """What the head of a file says. Errors about it do not name the file; who reads it does.

    Attributes:
        metadata: Numbers, texts, and lists of either.
        tensors: By their names in the file, all of them inside it.
    """

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]

    def get(self, key: str, kind: type[T]) -> T | None:
        """A value of the metadata; None if there is none.

        Raises:
            ModelError: It is not of this type.
        """
        value = self.metadata.get(key)
        if value is None or type(value) is kind:
            return value
        raise ModelError(f"{key} is {value!r:.60}, expected a value of type {kind.__name__}")

    def get_list(self, key: str, kind: type[T], length: int) -> list[T]:
        """A list of the metadata; empty if there is none.

        Raises:
            ModelError: It has another length or type.
        """
        values = self.get(key, list)
        if values is None:
            return []
        if len(values) != length or (values and type(values[0]) is not kind):
            found = f"{len(values)} values of type {type(values[0]).__name__ if values else 'nothing'}"
            raise ModelError(f"{key} has {found}, expected {length} of type {kind.__name__}")
        return values


def read_gguf(path: Path) -> GGUFFile:
    """Read the head of a GGUF file, and of no other; the tensors' numbers are left where they are.

    Raises:
        ModelError: It is not a GGUF file, one of several parts, cut off, damaged, or of a kind that cannot be read.
    """
    try:
        with path.open("rb") as file:
            _check_start(path, file.read(8))
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Reader(path, data).read()
    except OSError as error:
        raise ModelError(f"cannot read {path} ({error.strerror}); expected a GGUF file") from error


def _check_start(path: Path, start: bytes) -> None:
    if start[:4] != _MAGIC:
        raise ModelError(f"{path} begins with {start[:4]!r}, expected {_MAGIC!r}: it is not a GGUF file")
    version = int.from_bytes(start[4:8], "little")
    if version in (int.from_bytes(known.to_bytes(4, "big"), "little") for known in _VERSIONS):
        raise ModelError(f"{path} is a big-endian GGUF file, expected a little-endian one; download that")
    if version not in _VERSIONS:
        known = " or ".join(map(str, _VERSIONS))
        raise ModelError(f"{path} has GGUF version {version}, expected {known}; download or convert it again")


class _Reader:
    """A position in the file that moves on; nothing is taken that is not there."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self._path, self._data, self._size = path, data, len(data)
        self._place = 8  # behind magic and version

    def read(self) -> GGUFFile:
        """The whole head."""
        num_tensors, num_values = self._count("tensors", 24), self._count("values", 13)
        metadata: dict[str, Any] = {}
        for _ in range(num_values):
            key = self._name()
            if key in metadata:
                raise self._damaged(f"it has {key} twice")
            metadata[key] = self._value(key)
        file = GGUFFile(path=self._path, metadata=metadata, tensors={})
        if (parts := metadata.get("split.count", 0)) not in (0, 1):
            raise ModelError(f"{self._path} is one of {parts!r:.20} parts; join them with llama-gguf-split --merge")
        alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise self._damaged(f"general.alignment is {alignment!r:.40}, expected a power of two")
        for _ in range(num_tensors):
            name = self._name()
            if name in file.tensors:
                raise self._damaged(f"it has the tensor {name} twice")
            file.tensors[name] = self._tensor(name)
        return self._placed(file, -(-self._place // alignment) * alignment, alignment)

    def _placed(self, file: GGUFFile, start: int, alignment: int) -> GGUFFile:
        """The file with its tensors' offsets counted from its beginning, behind which the numbers start."""
        placed = {}
        for name, info in file.tensors.items():
            if info.offset % alignment:
                raise self._damaged(f"the tensor {name} begins at {info.offset}, expected a multiple of {alignment}")
            offset = start + info.offset
            if offset + info.size_bytes > self._size:
                raise self._damaged(f"the tensor {name} ends at byte {offset + info.size_bytes} of {self._size}")
            placed[name] = TensorInfo(kind=info.kind, shape=info.shape, offset=offset, size_bytes=info.size_bytes)
        return GGUFFile(path=file.path, metadata=file.metadata, tensors=placed)

    def _damaged(self, reason: str) -> ModelError:
        return ModelError(f"{self._path} is damaged or cut off: {reason}; download or copy it again")

    def _take(self, size: int) -> bytes:
        if size > self._size - self._place:
            raise self._damaged(f"{size} bytes are expected at {self._place}, but it has {self._size}")
        self._place += size
        return self._data[self._place - size : self._place]

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _count(self, what: str, smallest: int) -> int:
        """The number of things that follow, each of `smallest` bytes at least."""
        count: int = self._number("<Q")
        if count > min((self._size - self._place) // smallest, _MAX_COUNT):
            raise self._damaged(f"it announces {count} {what}, more than it has room for")
        return count

    def _text(self) -> str:
        size = self._number("<Q")
        if size > _MAX_TEXT:
            raise self._damaged(f"it announces a text of {size} bytes")
        try:
            return self._take(size).decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._damaged(f"the text before byte {self._place} is not UTF-8") from error

    def _name(self) -> str:
        """A text that is fit for a message."""
        name = self._text()
        if len(name) > _MAX_NAME or not name.isprintable():
            raise self._damaged(f"the text before byte {self._place} is no name")
        return name

    def _value(self, key: str) -> Any:
        kind = self._kind(key)
        if kind == GGUFValueType.STRING:
            return self._text()
        if kind != GGUFValueType.ARRAY:
            return _plain(kind, self._number(_SCALARS[kind]))
        kind = self._kind(key)
        if kind == GGUFValueType.ARRAY:
            raise self._damaged(f"{key} is a list of lists")
        if kind == GGUFValueType.STRING:
            return [self._text() for _ in range(self._count(f"texts in {key}", 8))]
        form = np.dtype(_SCALARS[kind])
        count = self._count(f"numbers in {key}", form.itemsize)
        return np.frombuffer(self._take(count * form.itemsize), form).tolist()

    def _kind(self, key: str) -> GGUFValueType:
        number = self._number("<I")
        try:
            return GGUFValueType(number)
        except ValueError as error:
            raise self._damaged(f"{key} is of type {number}, which is unknown") from error

    def _tensor(self, name: str) -> TensorInfo:
        """Its offset is counted from the first tensor's place."""
        num_dimensions = self._number("<I")
        if not 1 <= num_dimensions <= _MAX_DIMENSIONS:
            raise self._damaged(f"the tensor {name} has {num_dimensions} dimensions")
        shape = tuple(reversed([self._number("<Q") for _ in range(num_dimensions)]))
        number, offset = self._number("<I"), self._number("<Q")
        try:
            kind = GGMLQuantizationType(number)
        except ValueError as error:
            raise ModelError(
                f"{self._path}: the tensor {name} is of type {number}, which is unknown; download the file "
                "in another precision, such as Q8_0"
            ) from error
        block, block_bytes = GGML_QUANT_SIZES[kind]
        if min(shape) < 1 or shape[-1] % block:
            raise self._damaged(f"the tensor {name} has shape {list(shape)}, expected rows of whole {block}s")
        size = math.prod(shape) // block * block_bytes
        return TensorInfo(kind=kind, shape=shape, offset=offset, size_bytes=size)


def _plain(kind: GGUFValueType, value: Any) -> Any:
    """A number as it was written: 1e-05, which 32 bits make 9.999999747378752e-06."""
    return float(str(np.float32(value))) if kind == GGUFValueType.FLOAT32 else value
