"""The codec of a bundle's JSON: dataclasses, read strictly.

An unknown key, a missing key or a value of another type is an error, because everything else trusts what was read.
"""

import dataclasses
import json
import math
import types
import typing
from typing import Any, TypeVar

from ppd.errors import BundleError
from ppd.json_files import parse

AGAIN = "export the bundle again, or copy it again from where it was made"
"""What to do about a damaged bundle."""

T = TypeVar("T")


def json_from(record: Any) -> str:
    """A dataclass as JSON; tuples become lists."""
    return json.dumps(dataclasses.asdict(record), indent=1)


def parse_json(content: bytes, where: str) -> Any:
    """Parse a file's content.

    Raises:
        BundleError: The content is not JSON.
    """
    try:
        return parse(content)
    except ValueError as error:
        raise BundleError(f"{where} is not JSON ({error}): it is damaged; {AGAIN}") from error


def decode(kind: type[T], data: Any, where: str) -> T:
    """Build a dataclass from parsed JSON.

    Args:
        kind: A dataclass of numbers, strings, lists, tuples, dictionaries and dataclasses, any of them optional.
        where: How messages name the data.

    Raises:
        BundleError: A key is unknown or missing, or a value has another type; the message names it.
    """
    if not isinstance(data, dict):
        raise BundleError(f"{where} is not an object; {AGAIN}")
    hints = typing.get_type_hints(kind)
    if unknown := sorted(data.keys() - hints.keys()):
        raise BundleError(f"{where} has the unknown key {unknown[0]!r}; upgrade ppd-edge, or {AGAIN}")
    if missing := sorted(hints.keys() - data.keys()):
        raise BundleError(f"{where} lacks the key {missing[0]!r}; {AGAIN}")
    return kind(**{key: _value(hints[key], data[key], f"{where}: {key}") for key in hints})


def _value(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return decode(typing.cast("type[Any]", kind), value, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (list, tuple) and isinstance(value, list):
        return origin(_value(arguments[0], item, where) for item in value)
    if origin is dict and isinstance(value, dict):
        return {key: _value(arguments[1], item, f"{where}[{key!r}]") for key, item in value.items()}
    if origin is types.UnionType and type(value) in arguments and not _is_odd(value):
        return value
    if origin is types.UnionType and isinstance(value, dict):
        records = [kind for kind in arguments if isinstance(kind, type) and dataclasses.is_dataclass(kind)]
        if records:  # the one that it looks most like: what differs is then named
            return decode(max(records, key=lambda kind: len(value.keys() & typing.get_type_hints(kind))), value, where)
    if kind is float and type(value) is int and abs(value) < 2**53:
        return float(value)
    if origin is None and type(value) is kind and not _is_odd(value):
        return value
    raise BundleError(f"{where} is {value!r:.60}, expected {getattr(kind, '__name__', kind)}; {AGAIN}")


def _is_odd(value: Any) -> bool:
    """Whether it is NaN or infinite, which JSON can spell and nothing here can use."""
    return type(value) is float and not math.isfinite(value)
