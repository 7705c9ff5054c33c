"""Bundles: damage is seen and named, re-folding touches the tree only, and a crash leaves nothing half done."""

import dataclasses
import hashlib
import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ppd.bundle
from ppd import runtime
from ppd.bundle import open_bundle, refold_tree, staged_folder, tree_info, write_manifest
from ppd.errors import ArgumentError, BundleError, ExportError, TreeError
from ppd.manifest import MANIFEST_FILE, Manifest, bytes_from_manifest, manifest_from_bytes
from ppd.tree import Node, Tree, json_from_tree, tree_tables_bytes
from tests.copies import link_bundle
from tests.strategies import MANY, manifests

REMEDY = "export the bundle again|upgrade|the folder that ppd-export writes"
FILES = (
    "model.onnx",
    "model.onnx.data",
    "prompt_tokens.safetensors",
    "reference.npz",
    "tokenizer.json",
    "tree.bin",
    "tree.json",
)
WEIGHTS = "model.onnx.data"
CHAIN = Tree(3, {s: tuple(Node((0,) * depth, 3) for depth in range(s + 1)) for s in range(1, 4)})
"""In every state the best guess of each distance, unlike the tree that export folds."""


@pytest.fixture
def bundle(tinypy_bundle: Path, tmp_path: Path) -> Path:
    """A bundle of its own, whose files are links: `replace` them, never write into them."""
    return link_bundle(tinypy_bundle, tmp_path / "bundle")


def replace(path: Path, content: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def flipped(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


def sealed(data: Any) -> bytes:
    """A manifest with a digest that is right, whatever else is wrong."""
    text = json.dumps({**data, "digest": "0" * 64})
    return text.replace("0" * 64, hashlib.sha256(text.encode()).hexdigest(), 1).encode()


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def refused(folder: Path, name: str, *, verify: bool = True) -> str:
    """Opening the bundle fails with a message that names the file and a remedy."""
    with pytest.raises(BundleError, match=REMEDY) as caught:
        open_bundle(folder, verify=verify)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- damaged files


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
def test_a_damaged_file_is_named(bundle: Path, name: str, damage: Callable[[bytes], bytes]) -> None:
    replace(bundle / name, damage((bundle / name).read_bytes()))

    refused(bundle, name)
    with pytest.raises(BundleError):
        runtime.load(bundle)


@pytest.mark.parametrize("name", [*FILES, MANIFEST_FILE])
def test_a_missing_file_is_named(bundle: Path, name: str) -> None:
    (bundle / name).unlink()

    assert "missing" in refused(bundle, name) or name == MANIFEST_FILE


@pytest.mark.parametrize("name", [*FILES, MANIFEST_FILE])
def test_a_folder_in_a_files_place_is_refused(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    (bundle / name).mkdir()

    refused(bundle, name)


def test_files_that_changed_places_are_refused(bundle: Path) -> None:
    tables, tree = (bundle / "tree.bin").read_bytes(), (bundle / "tree.json").read_bytes()
    replace(bundle / "tree.bin", tree)
    replace(bundle / "tree.json", tables)

    refused(bundle, "tree.")


@pytest.mark.parametrize("name", ["", "nothing", "model.onnx"])
def test_what_is_no_bundle_is_refused(bundle: Path, name: str, tmp_path: Path) -> None:
    folder = {"": tmp_path, "nothing": tmp_path / "nothing", "model.onnx": bundle / "model.onnx"}[name]

    assert "expected a bundle" in refused(folder, MANIFEST_FILE)


@pytest.mark.parametrize("name", FILES)
def test_without_verify_only_the_hash_of_the_weights_is_skipped(bundle: Path, name: str) -> None:
    content = (bundle / name).read_bytes()
    replace(bundle / name, flipped(content, len(content) // 2))

    if name == WEIGHTS:
        assert open_bundle(bundle, verify=False).manifest.files[WEIGHTS].size_bytes == len(content)
    else:
        refused(bundle, name, verify=False)


@pytest.mark.parametrize("name", FILES)
def test_without_verify_a_truncated_file_is_still_seen(bundle: Path, name: str) -> None:
    replace(bundle / name, (bundle / name).read_bytes()[:-1])

    assert "bytes" in refused(bundle, name, verify=False)


# ---- the manifest


@MANY
@given(manifests())
def test_manifest_round_trip(manifest: Manifest) -> None:
    content = bytes_from_manifest(manifest)
    back = manifest_from_bytes(content)

    assert dataclasses.replace(back, digest=manifest.digest) == manifest
    assert bytes_from_manifest(back) == content
    assert back.digest == hashlib.sha256(content.replace(back.digest.encode(), b"0" * 64, 1)).hexdigest()


@MANY
@given(manifests(), st.data())
def test_any_changed_byte_of_a_manifest_is_refused(manifest: Manifest, data: st.DataObject) -> None:
    content = bytes_from_manifest(manifest)
    position = data.draw(st.integers(0, len(content) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != content[position]))

    with pytest.raises(BundleError, match=rf"{MANIFEST_FILE}.*({REMEDY})"):
        manifest_from_bytes(content[:position] + bytes([byte]) + content[position + 1 :])


@MANY
@given(manifests(), st.data())
def test_a_manifest_cut_short_or_lengthened_is_refused(manifest: Manifest, data: st.DataObject) -> None:
    content = bytes_from_manifest(manifest)
    cut = data.draw(st.integers(0, len(content) - 1))
    more = data.draw(st.sampled_from([b" ", b"\n", b"\0", b"}", b"\xff", b"\xef\xbb\xbf"]))

    for changed in (content[:cut], content + more, more + content, content[:cut] + more + content[cut:]):
        with pytest.raises(BundleError, match=rf"{MANIFEST_FILE}.*({REMEDY})"):
            manifest_from_bytes(changed)


EDITS: dict[str, tuple[bytes, bytes]] = {
    "a space becomes a tab": (b" ", b"\t"),
    "a newline becomes a space": (b"\n", b" "),
    "a newline goes": (b"\n", b""),
    "a carriage return comes": (b"\n", b"\r\n"),
    "context grows": (b'"context": 512', b'"context": 513'),
    "a size changes": (b'"size_bytes": 4', b'"size_bytes": 5'),
    "a hash changes": (b'"sha256": "', b'"sha256": "0'),
    "the name of the digest changes": (b'"digest"', b'"Digest"'),
    "the digest gets capitals": (b'"digest": "', b'"digest": "A'),
    "the model gets another name": (b'"tinypy"', b'"tinyqy"'),
    "a number is written otherwise": (b'"num_layers": 8', b'"num_layers": 8.0'),
    "a character is escaped": (b'"tinypy"', b'"tin\\u0079py"'),
    "a key stands twice": (b'"precision": "fp32"', b'"precision": "fp32", "precision": "fp32"'),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
def test_an_edited_manifest_is_refused(bundle: Path, edit: tuple[bytes, bytes]) -> None:
    content = (bundle / MANIFEST_FILE).read_bytes()
    assert edit[0] in content
    replace(bundle / MANIFEST_FILE, content.replace(*edit, 1))

    assert "digest" in refused(bundle, MANIFEST_FILE)


def test_every_character_of_the_digest_counts(tinypy_bundle: Path) -> None:
    content = (tinypy_bundle / MANIFEST_FILE).read_bytes()
    start = content.index(b'"digest": "') + len(b'"digest": "')

    for position in range(start, start + 64):
        other = b"0" if content[position : position + 1] != b"0" else b"1"
        with pytest.raises(BundleError, match="does not match its own digest"):
            manifest_from_bytes(content[:position] + other + content[position + 1 :])


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"not json", b"\xff\xfe{}", '{"model": "é"}'.encode("latin-1"), b"\0" * 10, b"[" * 100_000],
    ids=["empty", "open", "words", "not UTF-8", "Latin-1", "zeros", "nested"],
)
def test_a_manifest_that_is_not_json_is_refused(bundle: Path, content: bytes) -> None:
    replace(bundle / MANIFEST_FILE, content)

    assert "not JSON" in refused(bundle, MANIFEST_FILE)


@pytest.mark.parametrize("content", [b"[]", b"null", b"1", b'"text"', b"{}"])
def test_a_manifest_that_is_json_of_another_shape_is_refused(bundle: Path, content: bytes) -> None:
    replace(bundle / MANIFEST_FILE, content)

    refused(bundle, MANIFEST_FILE)


def change(bundle: Path, place: tuple[str, ...], value: Any) -> None:
    """Change the manifest at a place, its digest made right again; `...` removes the key."""
    data = json.loads((bundle / MANIFEST_FILE).read_bytes())
    target = data
    for key in place[:-1]:
        target = target[key]
    if value is ...:
        del target[place[-1]]
    else:
        target[place[-1]] = value
    replace(bundle / MANIFEST_FILE, sealed(data))


def test_a_manifest_with_its_digest_made_right_opens(bundle: Path) -> None:
    change(bundle, ("provenance", "note"), "sealed again")

    assert open_bundle(bundle).manifest.provenance["note"] == "sealed again"


@pytest.mark.parametrize(
    "place", [("surprise",), ("model", "surprise"), ("tree", "surprise"), ("files", "tree.bin", "x")]
)
def test_an_unknown_key_is_named(bundle: Path, place: tuple[str, ...]) -> None:
    change(bundle, place, 1)

    message = refused(bundle, MANIFEST_FILE)
    assert f"unknown key {place[-1]!r}" in message
    assert "upgrade" in message


MISSING = [
    *((field.name,) for field in dataclasses.fields(Manifest) if field.name != "digest"),
    ("model", "vocab_size"),
    ("prompt_tokens", "count"),
    ("tree", "drafts"),
    ("check", "tolerance"),
    ("files", "tree.json", "sha256"),
]


@pytest.mark.parametrize("place", MISSING, ids=".".join)
def test_a_missing_key_is_named(bundle: Path, place: tuple[str, ...]) -> None:
    change(bundle, place, ...)

    assert place[-1] in refused(bundle, MANIFEST_FILE)


@pytest.mark.parametrize("schema", [2, 1000])
def test_a_newer_schema_asks_for_an_upgrade(bundle: Path, schema: int) -> None:
    change(bundle, ("schema",), schema)
    change(bundle, ("news",), "what a later version may add")

    message = refused(bundle, MANIFEST_FILE)
    assert f"schema {schema}" in message
    assert "upgrade" in message


@pytest.mark.parametrize("schema", [0, -1])
def test_a_schema_that_never_was_is_refused(bundle: Path, schema: int) -> None:
    change(bundle, ("schema",), schema)

    refused(bundle, MANIFEST_FILE)


WRONG_TYPES: list[tuple[tuple[str, ...], Any]] = [
    (("schema",), True),
    (("schema",), 1.0),
    (("schema",), "1"),
    (("model",), None),
    (("model",), []),
    (("model", "num_layers"), 8.0),
    (("model", "num_layers"), True),
    (("model", "revision"), 1),
    (("context",), "512"),
    (("context",), None),
    (("eos_ids",), 1),
    (("eos_ids",), [1.0]),
    (("eos_ids",), [True]),
    (("special_tokens",), [["bos_token", "<s>"]]),
    (("special_tokens",), {"bos_token": None}),
    (("prompt_tokens", "count"), "3"),
    (("tree", "drafts"), 1),
    (("tree", "num_rows"), {"3": "10"}),
    (("draft",), "auto"),
    (("draft",), 0),
    (("check", "tolerance"), "0.1"),
    (("check", "tolerance"), False),
    (("provenance",), None),
    (("provenance", "torch"), 2),
    (("files",), []),
    (("files", "tree.bin"), "tree.bin"),
    (("files", "tree.bin", "path"), None),
    (("files", "tree.bin", "size_bytes"), "1331200"),
    (("files", "tree.bin", "sha256"), 0),
]


@pytest.mark.parametrize(("place", "value"), WRONG_TYPES, ids=lambda part: str(part)[:30])
def test_a_value_of_another_type_is_refused(bundle: Path, place: tuple[str, ...], value: Any) -> None:
    change(bundle, place, value)

    assert place[-1] in refused(bundle, MANIFEST_FILE)


def test_a_number_that_no_float_can_hold_is_refused(bundle: Path) -> None:
    change(bundle, ("check", "tolerance"), 10**400)

    assert "tolerance" in refused(bundle, MANIFEST_FILE)


LEAVING = ["../x", "..", "a/../../x", "a/..", "/etc/passwd", "//x", "a\\b", "..\\x", "C:x", "C:/x", ""]


@pytest.mark.parametrize("path", LEAVING)
@pytest.mark.parametrize("role", ["tree.json", "something else"])
def test_a_path_that_leaves_the_folder_is_refused(bundle: Path, role: str, path: str) -> None:
    size, digest = 1, hashlib.sha256(b"x").hexdigest()
    (bundle.parent / "x").write_bytes(b"x")  # it would be found, and its hash would be right
    change(bundle, ("files", role), {"path": path, "size_bytes": size, "sha256": digest})

    assert "leaves the bundle" in refused(bundle, MANIFEST_FILE)


@pytest.mark.parametrize("path", ["a\0b", "a\ud800b", "a" * 5000, "."], ids=["NUL", "surrogate", "long", "the folder"])
def test_a_path_that_no_file_can_have_is_refused(bundle: Path, path: str) -> None:
    change(bundle, ("files", "tree.json", "path"), path)

    with pytest.raises(BundleError, match=REMEDY):
        open_bundle(bundle)


def test_a_manifest_that_names_no_tree_is_refused(bundle: Path) -> None:
    change(bundle, ("files", "tree.json"), ...)

    assert "tree.json" in refused(bundle, MANIFEST_FILE)


@pytest.mark.parametrize("role", ["model.onnx", "tree.bin", "reference.npz"])
def test_a_role_that_the_manifest_lacks_is_named_when_it_is_needed(bundle: Path, role: str) -> None:
    change(bundle, ("files", role), ...)

    with pytest.raises(BundleError, match=rf"{role}.*({REMEDY})"):
        runtime.check_bundle(bundle)


def test_a_tree_that_does_not_fit_the_manifest_is_refused(bundle: Path) -> None:
    change(bundle, ("prompt_tokens", "count"), 2)

    assert "3 prompt tokens" in refused(bundle, "")


# ---- folding another tree


def test_refold_adds_two_files_and_replaces_the_manifest(bundle: Path, tinypy_bundle: Path) -> None:
    before = hashes(bundle)

    folded = refold_tree(bundle, CHAIN, source="chain.json")

    after = hashes(bundle)
    new = after.keys() - before.keys()
    assert sorted(Path(name).suffix for name in new) == [".bin", ".json"]
    assert {name for name in before if after[name] != before[name]} == {MANIFEST_FILE}
    assert hashes(tinypy_bundle) == before
    assert folded == dataclasses.replace(open_bundle(bundle), manifest=folded.manifest)
    assert {folded.manifest.files[role].path for role in ("tree.bin", "tree.json")} == new
    assert folded.path("tree.bin").read_bytes() == tree_tables_bytes(CHAIN)
    assert folded.path("tree.json").read_text("utf-8") == json_from_tree(CHAIN)


def test_refold_changes_what_the_manifest_says_of_the_tree_only(bundle: Path) -> None:
    change(bundle, ("draft",), False)
    before = open_bundle(bundle).manifest

    refold_tree(bundle, CHAIN, source="chain.json")

    opened = open_bundle(bundle)
    assert json_from_tree(opened.tree) == json_from_tree(CHAIN)
    assert opened.manifest.tree == tree_info(CHAIN, "chain.json")
    assert opened.manifest.tree.num_rows == {"1": 8, "2": 12, "3": 16}
    assert opened.manifest.tree.num_candidates == {"1": 1, "2": 2, "3": 3}
    assert opened.manifest.draft is None  # what was measured with the old tree says nothing of this one
    same = {"digest": before.digest, "tree": before.tree, "draft": before.draft, "files": before.files}
    assert dataclasses.replace(opened.manifest, **same) == before


def tokens(bundle: Path, draft: bool) -> list[int]:
    return runtime.generate(bundle, "def add(a, b):", max_new_tokens=12, draft=draft).token_ids


def test_the_runtime_follows_the_folded_tree(bundle: Path) -> None:
    plain = tokens(bundle, draft=False)
    for name in ("tree.bin", "tree.json"):  # the old tables are not read again
        refold_tree(bundle, CHAIN, source="chain.json")
        (bundle / name).unlink()

    assert tokens(bundle, draft=False) == plain
    assert tokens(bundle, draft=True) == plain
    assert runtime.check_bundle(bundle).num_rows > 0


def test_a_tree_that_never_drafts_can_be_folded_and_replaced(bundle: Path) -> None:
    plain = tokens(bundle, draft=False)
    folded = refold_tree(bundle, Tree.none(3), source="none")

    assert not folded.manifest.tree.drafts
    assert runtime.generate(bundle, "def add(a, b):", max_new_tokens=12).stats.acceptance_length == 1
    with pytest.raises(ArgumentError, match="refold"):
        tokens(bundle, draft=True)
    refold_tree(bundle, CHAIN, source="chain.json")
    assert tokens(bundle, draft=True) == plain


def test_folding_the_same_tree_twice_adds_nothing(bundle: Path) -> None:
    refold_tree(bundle, CHAIN, source="chain.json")
    before = hashes(bundle)
    refold_tree(bundle, CHAIN, source="chain.json")

    assert hashes(bundle) == before


def test_a_crash_before_the_manifest_is_replaced_leaves_the_old_bundle(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, old, answer = hashes(bundle), open_bundle(bundle), tokens(bundle, draft=True)

    def crash(folder: Path, manifest: Manifest) -> None:
        assert {manifest.files[role].path for role in ("tree.bin", "tree.json")} < {p.name for p in folder.iterdir()}
        raise KeyboardInterrupt

    monkeypatch.setattr(ppd.bundle, "write_manifest", crash)
    with pytest.raises(KeyboardInterrupt):
        refold_tree(bundle, CHAIN, source="chain.json")
    monkeypatch.undo()

    after = hashes(bundle)
    assert {name: after[name] for name in before} == before
    assert open_bundle(bundle) == old
    assert tokens(bundle, draft=True) == answer
    refold_tree(bundle, CHAIN, source="chain.json")  # and what was left over is no obstacle
    assert json_from_tree(open_bundle(bundle).tree) == json_from_tree(CHAIN)


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_crash_while_a_file_is_written_leaves_no_part_of_it(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    before, old, calls = hashes(bundle), open_bundle(bundle), list[Path]()
    rename = Path.replace

    def crash(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) == at:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        refold_tree(bundle, CHAIN, source="chain.json")
    monkeypatch.undo()

    after = hashes(bundle)
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) + at - 1  # whole files, or nothing
    assert open_bundle(bundle) == old


def test_files_that_the_manifest_does_not_name_are_ignored(bundle: Path) -> None:
    old = open_bundle(bundle)
    (bundle / "chat_template.jinja").write_bytes(b"{{ broken")
    (bundle / "tree-0000000000000000.bin").write_bytes(b"half a fi")
    (bundle / "engines").mkdir()

    assert open_bundle(bundle) == old
    assert not old.has("chat_template.jinja")
    with pytest.raises(BundleError, match=r"has no chat_template\.jinja"):
        old.path("chat_template.jinja")


@pytest.mark.parametrize("tree", [Tree.none(2), Tree(2, {2: (Node((), 2), Node((0,), 2))}), Tree.none(4)])
def test_a_tree_for_another_number_of_prompt_tokens_changes_nothing(bundle: Path, tree: Tree) -> None:
    before = hashes(bundle)

    with pytest.raises(TreeError, match=f"the tree is for {tree.num_prompt_tokens} prompt tokens, the model has 3"):
        refold_tree(bundle, tree, source="mine.json")
    assert hashes(bundle) == before


def test_a_damaged_bundle_is_not_folded(bundle: Path) -> None:
    replace(bundle / "tokenizer.json", b"{}")
    before = hashes(bundle)

    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        refold_tree(bundle, CHAIN, source="mine.json")
    assert hashes(bundle) == before


def test_writing_a_manifest_leaves_no_other_file_and_follows_no_link(bundle: Path, tinypy_bundle: Path) -> None:
    manifest = open_bundle(bundle).manifest
    write_manifest(bundle, dataclasses.replace(manifest, target="elsewhere"))

    written = open_bundle(bundle).manifest
    assert written == dataclasses.replace(manifest, target="elsewhere", digest=written.digest)
    assert open_bundle(tinypy_bundle).manifest == manifest
    assert len(list(bundle.iterdir())) == len(FILES) + 1


# ---- the output folder


def content(folder: Path) -> dict[str, str]:
    """Every file below a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_text("utf-8") for path in folder.rglob("*") if path.is_file()}


def make(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(text, "utf-8")
    return folder


def a_bundle(folder: Path) -> Path:
    make(folder, old="old")
    (folder / MANIFEST_FILE).write_text("old", "utf-8")
    return folder


@pytest.mark.parametrize("force", [False, True])
def test_the_staged_folder_becomes_the_output(tmp_path: Path, force: bool) -> None:
    out = tmp_path / "deep" / "out"
    with staged_folder(out, force=force) as staging:
        assert list(staging.iterdir()) == []
        assert staging.parent == out.parent  # the same disk, so that a rename is enough
        (staging / "a").write_text("new", "utf-8")
        assert not out.exists()

    assert content(tmp_path) == {"deep/out/a": "new"}
    assert list(out.parent.iterdir()) == [out]
    assert stat.S_IMODE(out.stat().st_mode) == 0o755


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_inside_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def fail() -> None:
        with staged_folder(tmp_path / "out", force=False) as staging:
            (staging / "a").write_text("half", "utf-8")
            raise error

    with pytest.raises(error):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_an_exception_inside_leaves_the_bundle_that_was_to_be_replaced(tmp_path: Path) -> None:
    out = a_bundle(tmp_path / "out")

    def fail() -> None:
        with staged_folder(out, force=True) as staging:
            (staging / "a").write_text("half", "utf-8")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert content(tmp_path) == {"out/old": "old", f"out/{MANIFEST_FILE}": "old"}
    assert list(tmp_path.iterdir()) == [out]


def test_force_replaces_a_bundle(tmp_path: Path) -> None:
    out = a_bundle(tmp_path / "out")
    with staged_folder(out, force=True) as staging:
        (staging / "a").write_text("new", "utf-8")
        assert content(out) == {"old": "old", MANIFEST_FILE: "old"}

    assert content(tmp_path) == {"out/a": "new"}
    assert list(tmp_path.iterdir()) == [out]


def test_force_replaces_an_empty_folder(tmp_path: Path) -> None:
    out = make(tmp_path / "out")
    with staged_folder(out, force=True) as staging:
        (staging / "a").write_text("new", "utf-8")

    assert content(tmp_path) == {"out/a": "new"}


def use(out: Path, *, force: bool) -> None:
    with staged_folder(out, force=force):
        pytest.fail("the block runs although the folder may not be written")


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_that_is_no_bundle_is_never_deleted(tmp_path: Path, force: bool) -> None:
    out = make(tmp_path / "out", thesis="years of work")

    with pytest.raises(ExportError, match=r"out exists and is not a bundle; choose another --out"):
        use(out, force=force)
    assert content(tmp_path) == {"out/thesis": "years of work"}
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("force", [False, True])
def test_a_file_in_the_outputs_place_is_never_deleted(tmp_path: Path, force: bool) -> None:
    (tmp_path / "out").write_text("years of work", "utf-8")

    with pytest.raises(ExportError, match=r"out exists and is not a bundle; choose another --out"):
        use(tmp_path / "out", force=force)
    assert content(tmp_path) == {"out": "years of work"}


def test_a_folder_that_appears_while_staging_is_never_deleted(tmp_path: Path) -> None:
    def race() -> None:
        with staged_folder(tmp_path / "out", force=True) as staging:
            (staging / "a").write_text("new", "utf-8")
            make(tmp_path / "out", thesis="years of work")

    with pytest.raises(ExportError, match="is not a bundle"):
        race()
    assert content(tmp_path) == {"out/thesis": "years of work"}


@pytest.mark.parametrize("kind", ["a bundle", "an empty folder"])
def test_what_may_be_replaced_is_kept_without_force(tmp_path: Path, kind: str) -> None:
    out = a_bundle(tmp_path / "out") if kind == "a bundle" else make(tmp_path / "out")
    before = content(tmp_path)

    with pytest.raises(ExportError, match=r"out exists; give --force to replace it, or choose another --out"):
        use(out, force=False)
    assert content(tmp_path) == before
    assert list(tmp_path.iterdir()) == [out]


def test_force_through_a_link_keeps_what_it_points_to(tmp_path: Path) -> None:
    elsewhere = a_bundle(tmp_path / "elsewhere")
    (tmp_path / "out").symlink_to(elsewhere)
    with staged_folder(tmp_path / "out", force=True) as staging:
        (staging / "a").write_text("new", "utf-8")

    assert content(elsewhere) == {"old": "old", MANIFEST_FILE: "old"}
    assert content(tmp_path / "out") == {"a": "new"}


def test_a_parent_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", "utf-8")

    with pytest.raises(ExportError, match=r"cannot write beside .* choose another --out"):
        use(tmp_path / "file" / "out", force=False)


def test_the_working_directory_itself_is_refused_as_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_bundle(tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    before = content(tmp_path)

    def replace_here() -> None:
        with staged_folder(Path(), force=True) as staging:
            (staging / "a").write_text("new", "utf-8")

    with pytest.raises(ExportError, match="--out"):
        replace_here()
    assert content(tmp_path) == before
