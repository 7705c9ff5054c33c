"""The embedded model for tests of tokens: prompts, a wide tree, and a bundle with another tree."""

from pathlib import Path

from ppd.bundle import Bundle
from ppd.runtime.engines.base import EngineOptions
from ppd.runtime.engines.onnxruntime.cpu import OnnxRuntimeEngine
from ppd.runtime.model import Model
from ppd.signature import TREE_TABLES_FILE
from ppd.tree import Tree
from ppd.tree_tables import tree_tables_bytes
from tests.conftest import FIXTURES

PROMPTS = [
    "def fibonacci(n):\n",
    "import os\nimport sys\n",
    "class Stack:\n    def __init__(self):\n",
    "def read_lines(path):\n    with open(path) as f:\n",
    "for i in range(10):\n",
    "try:\n    import json\nexcept ImportError:\n",
    "def test_add():\n    assert",
    "if __name__ == '__main__':\n",
    "x = np.zeros((3, 4))\n",
    "    def forward(self, x):\n        return",
    "# Copyright 2001 by the authors\n",
    "def quicksort(items):\n    if len(items) <",
    "@property\ndef name(self):\n",
    "raise ValueError(",
    "async def main():\n    await",
    "parser = argparse.ArgumentParser(",
    '"""Utilities for working with dates.\n',
    "result = [",
    "while True:\n    line =",
    "torch.nn.functional.",
    "return sorted(d.items(), key=lambda",
]
assert len(PROMPTS) >= 20
WIDE_TREE = FIXTURES / "reference_cases" / "case_0" / "run_a" / "tree_ppd.json"


def model_with_tree(bundle: Bundle, tree: Tree, tmp_path: Path, *, exact: bool = False) -> Model:
    """The bundle's model with another tree folded in, without writing a bundle."""
    tables = tmp_path / "tables.bin"
    tables.write_bytes(tree_tables_bytes(tree))

    class WithTables(Bundle):
        def read_bytes(self, role: str) -> bytes:
            return tables.read_bytes() if role == TREE_TABLES_FILE else super().read_bytes(role)

    changed = WithTables(bundle.folder, bundle.manifest, tree)
    return Model(changed, OnnxRuntimeEngine(changed, EngineOptions(threads=1, exact=exact)))
