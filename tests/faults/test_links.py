"""Bundles of others: links, pipes and devices are refused, and nothing outside of a bundle is read or deleted."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ppd.bundle import looks_like_bundle, open_bundle
from ppd.changes import refold_tree
from ppd.errors import BundleError, ExportError
from ppd.manifest import MANIFEST_FILE
from tests.copies import link_bundle
from tests.damage import change, refused
from tests.faults.operations import build
from tests.trees import CHAIN

PLACES: dict[str, Callable[[Path, Path], object]] = {
    "a link": lambda place, outside: place.symlink_to(outside),
    "a link to a device": lambda place, _: place.symlink_to("/dev/zero"),
    "a link to itself": lambda place, _: place.symlink_to(place),
    "a pipe": lambda place, _: os.mkfifo(place),
    "a folder": lambda place, _: place.mkdir(),
}


@pytest.fixture
def own(small_bundle: Path, tmp_path: Path) -> Path:
    return link_bundle(small_bundle, tmp_path / "own")


@pytest.mark.parametrize("kind", PLACES)
@pytest.mark.parametrize("name", [MANIFEST_FILE, "tokenizer.json", "model.onnx.data"])
def test_what_is_no_file_of_its_own_is_refused(own: Path, tmp_path: Path, name: str, kind: str) -> None:
    outside = tmp_path / "outside"
    (own / name).rename(outside)  # right bytes, in the wrong place
    PLACES[kind](own / name, outside)
    if name != MANIFEST_FILE:
        change(own, ("files", name, "size_bytes"), (own / name).lstat().st_size if kind == "a pipe" else len(name))

    message = refused(own, name, verify=False)
    assert "link" in message or kind in ("a pipe", "a folder")


def test_a_path_through_a_link_is_refused(own: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (own / "tokenizer.json").rename(outside / "tokenizer.json")
    (own / "sub").symlink_to(outside)
    change(own, ("files", "tokenizer.json", "path"), "sub/tokenizer.json")

    refused(own, "a link, not a file of its own")


@pytest.mark.parametrize("path", ["sub/thesis.txt", "engines/aaaaaaaaaaaaaaaa.engine"])
def test_no_command_deletes_what_a_manifest_leads_to_outside(own: Path, tmp_path: Path, path: str) -> None:
    home, role = tmp_path / "home", "engines/aaaaaaaaaaaaaaaa.engine"
    home.mkdir()
    (home / Path(path).name).write_text("years of work\n", "utf-8")
    (own / Path(path).parent).symlink_to(home)
    data = json.loads((own / MANIFEST_FILE).read_bytes())["files"]["model.onnx"]
    change(own, ("files", role), data | {"path": path})

    for command in (lambda: build(own), lambda: refold_tree(own, CHAIN, source="mine")):
        with pytest.raises(BundleError, match="a link"):
            command()
    assert [file.read_text("utf-8") for file in home.iterdir()] == ["years of work\n"]


def test_no_engine_is_written_through_a_link(own: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "0123456789abcdef.engine").touch()
    (own / "engines").symlink_to(home)

    with pytest.raises(ExportError, match="engines is a link"):
        build(own)
    refold_tree(own, CHAIN, source="mine")  # which cleans up
    assert [path.name for path in home.iterdir()] == ["0123456789abcdef.engine"]
    assert open_bundle(own).manifest.engines == []


def test_only_files_that_changes_make_are_removed(own: Path) -> None:
    kept = {"notes.txt", "tree.bak", ".hidden", "engines/mine.engine", ".x.tmp"}
    gone = {"tree-0123456789abcdef.bin", ".manifest.json.abcd1234.tmp", "engines/0123456789abcdef.engine"}
    (own / "engines").mkdir()
    for name in kept | gone:
        (own / name).write_text("", "utf-8")

    refold_tree(own, CHAIN, source="mine")

    assert {name for name in kept | gone if (own / name).exists()} == kept


def test_a_pipe_in_the_manifests_place_is_no_bundle_that_may_be_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / MANIFEST_FILE)
    assert not looks_like_bundle(tmp_path)
