"""Fixtures: a bundle of a few kilobytes."""

import dataclasses
import os
from pathlib import Path

import pytest

from ppd.bundle import CHANGING, file_entry, open_bundle
from ppd.changes import write_manifest
from ppd.tree import Tree
from tests.copies import calibrate_to
from tests.infos import RECORD


@pytest.fixture(autouse=True)
def no_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill loses nothing that was written, flushed to the disk or not."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(scope="session")
def small_bundle(tinypy_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model's manifest with a re-folded tree, and files of a few bytes: it opens, and never runs."""
    folder, opened = tmp_path_factory.mktemp("small") / "bundle", open_bundle(tinypy_bundle)
    folder.mkdir()
    for role in opened.manifest.files:
        (folder / role).write_bytes(opened.read_bytes(role) if role in CHANGING else role.encode())
    files = {role: file_entry(folder, role) for role in opened.manifest.files}
    write_manifest(folder, dataclasses.replace(opened.manifest, files=files))
    calibrate_to(folder, Tree.none(3), RECORD, draft=False, files={"latency.json": "[]", "acceptance.json": "[]"})
    return folder
