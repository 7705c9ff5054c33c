"""JSON that others wrote: whatever is wrong with it is a `ValueError`; nothing is parsed that is too large or deep."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

_MAX_BYTES = 64 << 20
_MAX_DEPTH = 64


def parse(content: bytes | str, object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """Parse JSON.

    Raises:
        ValueError: It is not UTF-8 or not JSON, is larger than 64 MiB, is nested deeper than 64, or has a number of
            thousands of digits.
    """
    if len(content) > _MAX_BYTES:
        raise ValueError(f"it has {len(content)} bytes, expected at most {_MAX_BYTES}")
    text = content if isinstance(content, str) else content.decode()
    try:
        data = json.loads(text, object_pairs_hook=object_pairs_hook)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if text.count("[") + text.count("{") > _MAX_DEPTH and _is_deeper(data, _MAX_DEPTH):
        raise ValueError("it is nested too deeply")
    return data


def read_json(path: Path) -> Any:
    """Parse a file.

    Raises:
        OSError: It cannot be read.
        ValueError: As for `parse`.
    """
    if (size := path.stat().st_size) > _MAX_BYTES:
        raise ValueError(f"it has {size} bytes, expected at most {_MAX_BYTES}")
    return parse(path.read_bytes())


def _is_deeper(data: Any, depth: int) -> bool:
    """Whether lists and objects are nested deeper; what is printed or compared later then has a bottom."""
    level = [data] if isinstance(data, dict | list) else []
    for _ in range(depth):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
    return bool(level)
