"""A graph that is no graph, its hash right: one line, wherever a build reads it."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from ppd.build.engine import lowered_graph
from ppd.build.network import read_graph
from ppd.bundle import Bundle, open_bundle
from ppd.errors import EngineError
from ppd.signature import GRAPH_FILE
from tests.damage import change, replace

SPOILT: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda _: b"", "has no input cache_len"),
    "text": (lambda _: b"not a graph at all", "is damaged"),
    "cut off": (lambda content: content[: len(content) // 2], "is damaged"),
    "zeros": (lambda content: bytes(len(content)), "is damaged"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_it_is_refused_in_one_line(name: str, own_bundle: Path) -> None:
    spoil, reason = SPOILT[name]
    replace(own_bundle / GRAPH_FILE, spoil((own_bundle / GRAPH_FILE).read_bytes()))
    bundle = sealed(own_bundle)

    for read in (lambda: read_graph(bundle, None, lowered=False), lambda: lowered_graph(bundle)):
        with pytest.raises(EngineError, match=rf"model\.onnx {reason}.*; export the bundle again") as error:
            read()
        assert "\n" not in str(error.value)


def sealed(folder: Path) -> Bundle:
    """The bundle with the hash and the size that its graph has now."""
    content = (folder / GRAPH_FILE).read_bytes()
    change(folder, ("files", GRAPH_FILE, "sha256"), hashlib.sha256(content).hexdigest())
    change(folder, ("files", GRAPH_FILE, "size_bytes"), len(content))
    return open_bundle(folder)
