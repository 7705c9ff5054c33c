"""What the two processes say to each other: JSON behind its length."""

import json
import struct
from collections.abc import Mapping
from typing import IO, Any

_LENGTH = struct.Struct("<Q")
TEXT, BROKEN, REFUSED, LIMIT = "text", "broken", "refused", "limit"
"""An answer's one key: its text; or the template is no template, it refuses the messages, or it takes too much."""


def frame_of(data: Any) -> bytes:
    """A value that JSON has, as it is sent."""
    content = json.dumps(data, default=_plain).encode()
    return _LENGTH.pack(len(content)) + content


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{value!r:.60} is a {type(value).__name__}")


def read_frame(stream: IO[bytes]) -> Any:
    """Receive a value.

    Raises:
        EOFError: The other side is gone.
    """
    head = stream.read(_LENGTH.size)
    content = stream.read(_LENGTH.unpack(head)[0]) if len(head) == _LENGTH.size else b""
    if not content:
        raise EOFError
    return json.loads(content)
