"""What a bundle drafts from, by the argument `draft` and by what the bundle has."""

import dataclasses
import shutil
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest

from ppd.bundle import NGRAMS_FILE, file_entry, open_bundle
from ppd.decision import CALIBRATED, CALIBRATED_ELSEWHERE, GIVEN, UNKNOWN, Decision
from ppd.errors import ArgumentError, BundleError, PromptTokensError
from ppd.export.exporter import export
from ppd.models.registry import load_registry
from ppd.ngrams import build_table
from ppd.runtime import Model, load
from ppd.runtime.options import Draft
from ppd.tree import Tree
from tests.infos import RECORD
from tests.runtime.fake_engine import WIDE, fake_model

ALL = {"ppd", "lookup", "table"}
PROMPT = "def fibonacci(n):\n"


def model_with(decision: Decision, tree: Tree = WIDE, *, table_in: Path | None = None) -> Model:
    """A model whose bundle has this decision and, if there is a folder for it, a table."""
    files = {}
    if table_in is not None:
        (table_in / NGRAMS_FILE).write_bytes(build_table([np.array([1, 2, 3])], 40))
        files = {NGRAMS_FILE: file_entry(table_in, NGRAMS_FILE)}
    model = fake_model(tree, folder=table_in or Path(), files=files)
    manifest = dataclasses.replace(model.bundle.manifest, decision=decision)
    return Model(dataclasses.replace(model.bundle, manifest=manifest), model.engine)


def measured(draft: bool) -> Decision:
    return Decision(draft=draft, basis=CALIBRATED, record=RECORD)


def given(draft: bool | None) -> Decision:
    return Decision(draft=draft, basis=GIVEN, record=None)


UNMEASURED = Decision(draft=None, basis=UNKNOWN, record=None)
ELSEWHERE = Decision(draft=False, basis=CALIBRATED_ELSEWHERE, record=RECORD)
NONE = Tree.none(2)


@pytest.mark.parametrize(
    ("decision", "tree", "has_table", "expected"),
    [
        (measured(True), WIDE, True, ALL),
        (measured(True), WIDE, False, {"ppd", "lookup"}),
        (measured(False), WIDE, True, {"lookup", "table"}),
        (ELSEWHERE, WIDE, False, {"lookup"}),
        (UNMEASURED, WIDE, True, ALL),
        (UNMEASURED, NONE, True, {"lookup", "table"}),
        (given(None), WIDE, True, {"ppd"}),
        (given(True), WIDE, False, {"ppd"}),
        (given(False), WIDE, False, {"lookup"}),
        (given(None), NONE, False, {"lookup"}),
    ],
)
def test_auto_is_all_that_the_bundle_has_unless_its_tree_was_given(
    decision: Decision, tree: Tree, has_table: bool, expected: set[str], tmp_path: Path
) -> None:
    assert model_with(decision, tree, table_in=tmp_path if has_table else None).sources() == expected


@pytest.mark.parametrize("decision", [measured(True), measured(False), UNMEASURED, given(None)])
def test_what_is_asked_for_is_what_is_drafted_from(decision: Decision, tmp_path: Path) -> None:
    model = model_with(decision, table_in=tmp_path)

    assert model.sources(False) == frozenset()
    assert model.sources(True) == {"ppd"}
    for source in ("ppd", "lookup", "table"):
        assert model.sources(source) == model.sources([source]) == {source}
    assert model.sources(("table", "ppd")) == {"ppd", "table"}
    assert model.sources({"ppd", "lookup", "table"}) == ALL


@pytest.mark.parametrize("draft", [True, "ppd", ("lookup", "ppd")])
def test_prompt_tokens_that_are_not_there_are_refused(draft: bool | Collection[str]) -> None:
    model = model_with(UNMEASURED, NONE)
    for ask in (model.sources, lambda draft: model.generate([1], draft=draft)):
        with pytest.raises(ArgumentError, match="no prompt rows; re-fold a tree with ppd refold"):
            ask(draft)  # type: ignore[arg-type]


@pytest.mark.parametrize("draft", ["table", ("lookup", "table")])
def test_a_table_that_is_not_there_is_refused(draft: Collection[str]) -> None:
    model = model_with(UNMEASURED)
    for ask in (model.sources, lambda draft: model.generate([1], draft=draft)):
        with pytest.raises(ArgumentError, match="no table of n-grams; export with --prompt-tokens"):
            ask(draft)  # type: ignore[arg-type]


@pytest.mark.parametrize("draft", ["none", "", (), [], ("ppd", "magic"), None, 1, 0.5, {"lookup": 1, "x": 2}])
def test_what_is_no_source_is_refused(draft: object) -> None:
    with pytest.raises(ArgumentError, match=r"draft is .*; expected .*ppd, lookup, table"):
        fake_model(WIDE).generate([1], draft=draft)  # type: ignore[arg-type]


def test_drafting_in_any_case_and_a_given_tree_draft_at_every_step() -> None:
    cases: tuple[tuple[Model, Draft], ...]
    cases = ((model_with(measured(False)), True), (model_with(given(None)), "auto"))
    for model, draft in cases:
        assert set(model.generate([1, 2, 3], max_new_tokens=9, draft=draft).stats.source_per_step) == {"ppd"}
    unknown = model_with(UNMEASURED).generate([1, 2, 3], max_new_tokens=9, draft="ppd")
    assert set(unknown.stats.source_per_step) == {"plain"}  # nobody knows what untrained prompt tokens are worth


def test_a_damaged_table_is_one_line_and_is_read_only_where_it_is_a_source(tmp_path: Path) -> None:
    model = model_with(UNMEASURED, table_in=tmp_path)
    (tmp_path / NGRAMS_FILE).unlink()
    (tmp_path / NGRAMS_FILE).write_bytes(b"PPDNGRM1")

    model.generate([1, 2, 3], max_new_tokens=3, draft="lookup")
    with pytest.raises(BundleError, match="is not a table of n-grams"):
        model.generate([1, 2, 3], max_new_tokens=3)


@pytest.fixture
def prompt_tokens(tmp_path: Path) -> Path:
    """The embedded model's prompt tokens, in a folder of its own."""
    folder = load_registry()["tinypy"].folder
    assert folder is not None
    return Path(shutil.copytree(folder / "prompt_tokens", tmp_path / "prompt_tokens"))


def test_a_table_beside_prompt_tokens_is_exported_and_drafted_from(
    prompt_tokens: Path, tinypy: Model, tmp_path: Path
) -> None:
    plain = tinypy.generate(PROMPT, max_new_tokens=32, draft=False)
    text = [*tinypy.encode(PROMPT), *plain.token_ids]
    content = build_table([np.array(text)] * 9, tinypy.bundle.manifest.model.vocab_size)
    (prompt_tokens / NGRAMS_FILE).write_bytes(content)

    export("tinypy", "cpu", prompt_tokens=str(prompt_tokens), precision="fp32", out=tmp_path / "bundle")
    model = load(tmp_path / "bundle", threads=1)

    assert (tmp_path / "bundle" / NGRAMS_FILE).read_bytes() == content
    assert open_bundle(tmp_path / "bundle").has(NGRAMS_FILE)
    assert not tinypy.bundle.has(NGRAMS_FILE)
    assert {"lookup", "table"} <= model.sources()
    drafted = model.generate(PROMPT, max_new_tokens=32, draft="table")
    assert drafted.token_ids == plain.token_ids
    steps, right = drafted.stats.by_source["table"]
    assert right > steps
    assert model.generate(PROMPT, max_new_tokens=32).token_ids == plain.token_ids


def test_a_table_that_does_not_belong_to_the_model_is_refused_in_one_line(prompt_tokens: Path, tmp_path: Path) -> None:
    for content, error, words in (
        (build_table([np.array([1, 2])], 40), PromptTokensError, "made for a vocabulary of 40 words; the model has"),
        (b"x" * 100, BundleError, "is not a table of n-grams"),
    ):
        (prompt_tokens / NGRAMS_FILE).write_bytes(content)
        with pytest.raises(error, match=words) as caught:
            export("tinypy", "cpu", prompt_tokens=str(prompt_tokens), out=tmp_path / "bundle")
        assert "\n" not in str(caught.value)
        (prompt_tokens / NGRAMS_FILE).unlink()
        assert not (tmp_path / "bundle").exists()
