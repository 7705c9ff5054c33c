"""Which files a graph reads besides its own: the places of its external tensors, found without the package onnx."""

from collections.abc import Iterator

from ppd.bundle import Bundle
from ppd.codec import AGAIN
from ppd.errors import BundleError
from ppd.signature import TREE_DEPTH, TREE_MASK

_INSIDE = {
    "model": {7: "graph", 25: "function"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
"""onnx.proto: kind of message → number of a field → kind of the message in it, as far as there are tensors."""
_TENSOR_NAME, _TENSOR_EXTERNAL, _ENTRY_KEY, _ENTRY_VALUE = 8, 13, 1, 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_DEPTH = 20


def require_named_files(bundle: Bundle, role: str) -> None:
    """Require that every file which a graph of the bundle reads is named in the manifest, and so was verified.

    The folded tree's tables are given to the engine apart, from the file that the manifest names.

    Raises:
        BundleError: Another file is read, or the graph is damaged.
    """
    named = {entry.path for entry in bundle.manifest.files.values()}
    try:
        found = list(external_files(bundle.read_bytes(role)))
    except (ValueError, IndexError) as error:
        raise BundleError(f"{bundle.path(role)} is no ONNX graph; {AGAIN}") from error
    for tensor, location in found:
        if tensor not in (TREE_MASK, TREE_DEPTH) and location not in named:
            what = f"{bundle.path(role)} reads the file {location!r:.80}, which the manifest does not name"
            raise BundleError(f"{what}; {AGAIN}")


def external_files(content: bytes) -> Iterator[tuple[str, str]]:
    """Name and file of every external tensor of a model, those of sub-graphs and functions included.

    Raises:
        ValueError, IndexError: It is no model.
    """
    todo = [(memoryview(content), "model", 0)]
    while todo:
        message, kind, depth = todo.pop()
        if depth > _MAX_DEPTH:
            raise ValueError("graphs inside graphs")
        if kind == "tensor":
            yield from _external_file(message)
            continue
        inside = _INSIDE[kind]
        todo += [(value, inside[number], depth + 1) for number, value in _fields(message) if number in inside]


def _external_file(tensor: memoryview) -> Iterator[tuple[str, str]]:
    name, locations = "", []
    for number, value in _fields(tensor):
        if number == _TENSOR_NAME:
            name = bytes(value).decode()
        elif number == _TENSOR_EXTERNAL:
            entry = {key: bytes(text).decode() for key, text in _fields(value)}  # of a field twice, the last counts
            if entry.get(_ENTRY_KEY) == "location":
                locations.append(entry.get(_ENTRY_VALUE, ""))
    return ((name, location) for location in locations)


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and content of the fields that hold bytes; the others are passed over."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == _BYTES:
            size, at = _varint(message, at)
            if at + size > len(message):
                raise ValueError("cut off")
            yield tag >> 3, message[at : at + size]
            at += size
        elif kind == _VARINT:
            _, at = _varint(message, at)
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"a field of kind {kind}")


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = message[at] & 0x7F
    shift = 7
    while message[at] & 0x80:
        at += 1
        value |= (message[at] & 0x7F) << shift
        shift += 7
        if shift > 70:
            raise ValueError("a number of over ten bytes")
    return value, at + 1
