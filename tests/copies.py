"""Cheap copies of bundles."""

from pathlib import Path

from ppd.bundle import refold_tree
from ppd.tree import Tree

OLD_MANIFEST = '{"schema": 1, "digest": "wrong", "num_top_ids": 10, "prompt_tokens": {}}'
"""A manifest that was one of ours, and does not open any more."""


def link_bundle(bundle: Path, folder: Path) -> Path:
    """A bundle of its own, whose files are hard links: replace them, never write into them (refold replaces them)."""
    folder.mkdir()
    for path in bundle.iterdir():
        (folder / path.name).hardlink_to(path)
    return folder


def refolded_copy(bundle: Path, folder: Path, tree: Tree) -> Path:
    """A copy with another tree."""
    refold_tree(link_bundle(bundle, folder), tree, source="test")
    return folder
