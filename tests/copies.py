"""Cheap copies of bundles."""

import dataclasses
from pathlib import Path

from ppd.bundle import Bundle, open_bundle
from ppd.changes import changing, commit_calibration, refold_tree
from ppd.decision import CalibrationInfo
from ppd.signature import EXACT_GRAPH_FILE, FUSED_GRAPH_FILE
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


def calibrate_to(
    folder: Path, tree: Tree, record: CalibrationInfo, *, draft: bool = True, files: dict[str, str] | None = None
) -> Bundle:
    """What calibration does to a bundle: a tree and its record, in one step."""
    with changing(open_bundle(folder, verify=False)) as change:
        change.fold(tree, "calibrated")
        return commit_calibration(change, record, draft=draft, files=files or {})


def standard(bundle: Bundle) -> Bundle:
    """The same bundle as if it held the standard graph alone."""
    rewritten = (FUSED_GRAPH_FILE, EXACT_GRAPH_FILE)
    files = {role: entry for role, entry in bundle.manifest.files.items() if role not in rewritten}
    return dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, files=files))
