"""Re-folding: it touches the tree only, and a crash leaves the old bundle."""

import dataclasses
from pathlib import Path

import pytest

import ppd.changes
from ppd import runtime
from ppd.bundle import open_bundle, tree_info
from ppd.changes import refold_tree, write_manifest
from ppd.decision import GIVEN, Decision
from ppd.errors import ArgumentError, BundleError, TreeError
from ppd.manifest import MANIFEST_FILE, Manifest
from ppd.tree import Node, Tree, json_from_tree
from ppd.tree_tables import tree_tables_bytes
from tests.damage import FILES, hashes, replace
from tests.trees import CHAIN


def test_refold_adds_two_files_and_replaces_the_manifest(own_bundle: Path, tinypy_bundle: Path) -> None:
    before = hashes(own_bundle)

    folded = refold_tree(own_bundle, CHAIN, source="chain.json")

    after = hashes(own_bundle)
    new = after.keys() - before.keys()
    assert sorted(Path(name).suffix for name in new) == [".bin", ".json"]
    assert {name for name in before if after[name] != before[name]} == {MANIFEST_FILE}
    assert hashes(tinypy_bundle) == before
    assert folded == dataclasses.replace(open_bundle(own_bundle), manifest=folded.manifest)
    assert {folded.manifest.files[role].path for role in ("tree.bin", "tree.json")} == new
    assert folded.path("tree.bin").read_bytes() == tree_tables_bytes(CHAIN)
    assert folded.path("tree.json").read_text("utf-8") == json_from_tree(CHAIN)


def test_refold_changes_what_the_manifest_says_of_the_tree_only(own_bundle: Path) -> None:
    before = open_bundle(own_bundle).manifest
    assert before.decision.draft is False

    refold_tree(own_bundle, CHAIN, source="chain.json")

    opened = open_bundle(own_bundle)
    assert json_from_tree(opened.tree) == json_from_tree(CHAIN)
    assert opened.manifest.tree == tree_info(CHAIN, "chain.json")
    assert opened.manifest.tree.num_rows == {"1": 8, "2": 12, "3": 16}
    assert opened.manifest.tree.num_candidates == {"1": 1, "2": 2, "3": 3}
    # what was measured with the old tree says nothing of this one
    assert opened.manifest.decision == Decision(draft=None, basis=GIVEN, record=None)
    same = {name: getattr(before, name) for name in ("digest", "tree", "decision", "files")}
    assert dataclasses.replace(opened.manifest, **same) == before


def tokens(bundle: Path, draft: bool) -> list[int]:
    return runtime.generate(bundle, "def add(a, b):", max_new_tokens=12, draft=draft).token_ids


def test_the_runtime_follows_the_folded_tree(own_bundle: Path) -> None:
    plain = tokens(own_bundle, draft=False)
    for name in ("tree.bin", "tree.json"):  # the old tables are not read again
        refold_tree(own_bundle, CHAIN, source="chain.json")
        (own_bundle / name).unlink()

    assert tokens(own_bundle, draft=False) == plain
    assert tokens(own_bundle, draft=True) == plain
    assert runtime.check_bundle(own_bundle).num_rows > 0


def test_a_tree_that_never_drafts_can_be_folded_and_replaced(own_bundle: Path) -> None:
    plain = tokens(own_bundle, draft=False)
    folded = refold_tree(own_bundle, Tree.none(3), source="none")

    assert not folded.manifest.tree.drafts
    assert runtime.generate(own_bundle, "def add(a, b):", max_new_tokens=12).stats.acceptance_length == 1
    with pytest.raises(ArgumentError, match="refold"):
        tokens(own_bundle, draft=True)
    refold_tree(own_bundle, CHAIN, source="chain.json")
    assert tokens(own_bundle, draft=True) == plain


def test_folding_the_same_tree_twice_adds_nothing(own_bundle: Path) -> None:
    refold_tree(own_bundle, CHAIN, source="chain.json")
    before = hashes(own_bundle)
    refold_tree(own_bundle, CHAIN, source="chain.json")

    assert hashes(own_bundle) == before


def test_a_crash_before_the_manifest_is_replaced_leaves_the_old_bundle(
    own_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, old, answer = hashes(own_bundle), open_bundle(own_bundle), tokens(own_bundle, draft=True)

    def crash(folder: Path, manifest: Manifest) -> None:
        assert {manifest.files[role].path for role in ("tree.bin", "tree.json")} < {p.name for p in folder.iterdir()}
        raise KeyboardInterrupt

    monkeypatch.setattr(ppd.changes, "write_manifest", crash)
    with pytest.raises(KeyboardInterrupt):
        refold_tree(own_bundle, CHAIN, source="chain.json")
    monkeypatch.undo()

    after = hashes(own_bundle)
    assert {name: after[name] for name in before} == before
    assert open_bundle(own_bundle) == old
    assert tokens(own_bundle, draft=True) == answer
    refold_tree(own_bundle, CHAIN, source="chain.json")  # and what was left over is no obstacle
    assert json_from_tree(open_bundle(own_bundle).tree) == json_from_tree(CHAIN)


@pytest.mark.parametrize(("at", "left"), [(1, 0), (2, 0), (3, 0), (4, 1), (5, 2)])
def test_a_crash_while_a_file_is_written_leaves_no_part_of_it(
    own_bundle: Path, monkeypatch: pytest.MonkeyPatch, at: int, left: int
) -> None:
    before, old, calls = hashes(own_bundle), open_bundle(own_bundle), list[Path]()
    rename = Path.replace

    def crash(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) == at:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        refold_tree(own_bundle, CHAIN, source="chain.json")
    monkeypatch.undo()

    after = hashes(own_bundle)
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) + left  # whole files, or nothing
    assert open_bundle(own_bundle) == old


def test_files_that_the_manifest_does_not_name_are_ignored(own_bundle: Path) -> None:
    old = open_bundle(own_bundle)
    (own_bundle / "chat_template.jinja").write_bytes(b"{{ broken")
    (own_bundle / "tree-0000000000000000.bin").write_bytes(b"half a fi")
    (own_bundle / "engines").mkdir()

    assert open_bundle(own_bundle) == old
    assert not old.has("chat_template.jinja")
    with pytest.raises(BundleError, match=r"has no chat_template\.jinja"):
        old.path("chat_template.jinja")


@pytest.mark.parametrize("tree", [Tree.none(2), Tree(2, {2: (Node((), 2), Node((0,), 2))}), Tree.none(4)])
def test_a_tree_for_another_number_of_prompt_tokens_changes_nothing(own_bundle: Path, tree: Tree) -> None:
    before = hashes(own_bundle)

    with pytest.raises(TreeError, match=f"the tree is for {tree.num_prompt_tokens} prompt tokens, the model has 3"):
        refold_tree(own_bundle, tree, source="mine.json")
    assert hashes(own_bundle) == before


def test_a_damaged_bundle_is_not_folded(own_bundle: Path) -> None:
    replace(own_bundle / "tokenizer.json", b"{}")
    before = hashes(own_bundle)

    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        refold_tree(own_bundle, CHAIN, source="mine.json")
    assert hashes(own_bundle) == before


def test_writing_a_manifest_leaves_no_other_file_and_follows_no_link(own_bundle: Path, tinypy_bundle: Path) -> None:
    manifest = open_bundle(own_bundle).manifest
    write_manifest(own_bundle, dataclasses.replace(manifest, target="elsewhere"))

    written = open_bundle(own_bundle).manifest
    assert written == dataclasses.replace(manifest, target="elsewhere", digest=written.digest)
    assert open_bundle(tinypy_bundle).manifest == manifest
    assert len(list(own_bundle.iterdir())) == len(FILES) + 1
