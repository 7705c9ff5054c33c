"""Odd values, and ways to spoil a file that was whole: in one place, by one description for every format."""

import copy
import json
from typing import Any

from hypothesis import strategies as st

DEEP: Any = []
for _ in range(90):
    DEEP = [DEEP]

ODD: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    1,
    511,
    512,
    2**31,
    10**12,
    10**30,
    10**400,
    0.5,
    -0.0,
    1e308,
    float("nan"),
    float("inf"),
    "",
    "x",
    "x" * 5000,
    "\x00\x1b[31m\n",
    "\ud800",
    "../../etc/passwd",
    [],
    [[]],
    [None],
    [10**30] * 3,
    {},
    {"": {}},
    DEEP,
)
"""Values that a file may have where another was expected."""


@st.composite
def spoilt_json(draw: st.DrawFn, whole: Any) -> bytes:
    """JSON like `whole` with one to three values replaced, left out, repeated or added, or with spoilt bytes."""
    data = {"": copy.deepcopy(whole)}
    for _ in range(draw(st.integers(1, 3))):
        parent, key = draw(st.sampled_from(list(_places(data))))
        change = draw(st.sampled_from(["replace", "replace", "replace", "leave out", "add", "repeat"]))
        if change == "replace":
            parent[key] = copy.deepcopy(draw(st.sampled_from(ODD)))
        elif change == "leave out" and parent is not data:
            del parent[key]
        elif change == "repeat" and isinstance(parent, list):
            parent.append(copy.deepcopy(parent[key]))
        elif change == "add" and isinstance(parent, dict):
            parent[f"{key}?"] = copy.deepcopy(draw(st.sampled_from(ODD)))
    content = json.dumps(data[""]).encode()
    return draw(spoilt_bytes(content)) if draw(st.integers(0, 9)) == 0 else content


@st.composite
def spoilt_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """Content that is cut off, longer, or has other bytes somewhere."""
    at = draw(st.integers(0, len(content)))
    kind = draw(st.sampled_from(["cut", "insert", "overwrite", "zeros", "repeat"]))
    new = draw(st.binary(min_size=1, max_size=16))
    return {
        "cut": content[:at],
        "insert": content[:at] + new + content[at:],
        "overwrite": content[:at] + new + content[at + len(new) :],
        "zeros": content[:at] + bytes(64) + content[at + 64 :],
        "repeat": content[:at] + content[max(0, at - 40) :],
    }[kind]


def _places(data: Any) -> Any:
    """Every container in the data with a key or index of it."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in list(items):
        yield data, key
        yield from _places(value)
