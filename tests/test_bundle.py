"""Bundles: a damaged, missing or misplaced file is seen and named."""

import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from ppd import runtime
from ppd.bundle import open_bundle
from ppd.errors import BundleError
from ppd.manifest import MANIFEST_FILE
from tests.damage import FILES, WEIGHTS, flipped, refused, replace


def test_a_fresh_bundle_opens_and_names_every_file(tinypy_bundle: Path) -> None:
    opened = open_bundle(tinypy_bundle)

    assert tuple(sorted(opened.manifest.files)) == FILES
    assert {path.name for path in tinypy_bundle.iterdir()} == {*FILES, MANIFEST_FILE}
    assert all(opened.path(role) == tinypy_bundle / role for role in FILES)
    assert opened.has("tokenizer.json")
    assert not opened.has("chat_template.jinja")


def test_every_file_of_a_bundle_can_be_read_by_whoever_may_read_new_files(tinypy_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "new").touch()
    usual = stat.S_IMODE((tmp_path / "new").stat().st_mode)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tinypy_bundle.iterdir()}

    assert {name: oct(mode) for name, mode in modes.items() if mode & usual != usual} == {}


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "truncated by a byte": lambda content: content[:-1],
    "emptied": lambda content: content[:0],
    "first byte flipped": lambda content: flipped(content, 0),
    "middle byte flipped": lambda content: flipped(content, len(content) // 2),
    "last byte flipped": lambda content: flipped(content, len(content) - 1),
    "a byte longer": lambda content: content + b"\n",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
@pytest.mark.parametrize("name", [*FILES, MANIFEST_FILE])
def test_a_damaged_file_is_named(own_bundle: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
    replace(own_bundle / name, damage((own_bundle / name).read_bytes()))

    refused(own_bundle, name)
    with pytest.raises(BundleError):
        runtime.load(own_bundle)


@pytest.mark.parametrize("name", [*FILES, MANIFEST_FILE])
def test_a_missing_file_is_named(own_bundle: Path, name: str) -> None:
    (own_bundle / name).unlink()

    assert "missing" in refused(own_bundle, name) or name == MANIFEST_FILE


@pytest.mark.parametrize("name", [*FILES, MANIFEST_FILE])
def test_a_folder_in_a_files_place_is_refused(own_bundle: Path, name: str) -> None:
    (own_bundle / name).unlink()
    (own_bundle / name).mkdir()

    refused(own_bundle, name)


def test_files_that_changed_places_are_refused(own_bundle: Path) -> None:
    tables, tree = (own_bundle / "tree.bin").read_bytes(), (own_bundle / "tree.json").read_bytes()
    replace(own_bundle / "tree.bin", tree)
    replace(own_bundle / "tree.json", tables)

    refused(own_bundle, "tree.")


@pytest.mark.parametrize(
    ("name", "words"),
    [("", f"{MANIFEST_FILE} is not there"), ("nothing", "there is no folder"), ("bundle/model.onnx", "is a file")],
)
def test_what_is_no_bundle_is_refused(own_bundle: Path, name: str, words: str) -> None:
    folder = own_bundle.parent / name

    assert words in (message := refused(folder, str(folder)))
    assert "expected a bundle" in message


@pytest.mark.parametrize("name", FILES)
def test_without_verify_only_the_hash_of_the_weights_is_skipped(own_bundle: Path, name: str) -> None:
    content = (own_bundle / name).read_bytes()
    replace(own_bundle / name, flipped(content, len(content) // 2))

    if name == WEIGHTS:
        assert open_bundle(own_bundle, verify=False).manifest.files[WEIGHTS].size_bytes == len(content)
    else:
        refused(own_bundle, name, verify=False)


@pytest.mark.parametrize("name", FILES)
def test_without_verify_a_truncated_file_is_still_seen(own_bundle: Path, name: str) -> None:
    replace(own_bundle / name, (own_bundle / name).read_bytes()[:-1])

    assert "bytes" in refused(own_bundle, name, verify=False)
