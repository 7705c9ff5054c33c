"""Loading a bundle while its tree is replaced: wholly one of the two, or one line that says to try again."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ppd.bundle
import ppd.runtime.check
import ppd.runtime.model
from ppd.bundle import open_bundle
from ppd.changes import changing, commit_calibration, refold_tree
from ppd.decision import GIVEN, CalibrationInfo
from ppd.errors import BundleError
from ppd.runtime import check_bundle, load
from ppd.runtime.engines import open_engine
from ppd.runtime.engines.base import EngineOptions
from ppd.runtime.engines.onnxruntime.cpu import OnnxRuntimeEngine
from ppd.tree import Node, Tree, json_from_tree
from ppd.tree_tables import tree_tables_bytes, tree_tables_from_bytes
from tests.faults.operations import export, with_other_weights
from tests.infos import RECORD
from tests.trees import CHAIN

SMALL = Tree(3, dict.fromkeys((1, 3), (Node((), 1), Node((0,), 1))))
TREES = {"chain": CHAIN, "small": SMALL}


def calibrate_to(folder: Path, name: str) -> None:
    """What calibration does to a bundle: a tree and its record, in one step."""
    record = dataclasses.replace(RECORD, remark=name)
    with changing(open_bundle(folder, verify=False)) as change:
        change.fold(TREES[name], name)
        commit_calibration(change, record, draft=True, files={"latency.json": name})


@pytest.fixture
def folder(own_bundle: Path) -> Path:
    """A bundle whose present tree has files that a re-fold removes."""
    calibrate_to(own_bundle, "chain")
    return own_bundle


class ChangeBefore:
    """Calls a function as it is, but the bundle is changed before its call number `at`, counted from 0."""

    def __init__(self, call: Callable[..., Any], at: int, change: Callable[[], None]) -> None:
        self.call, self.at, self.change, self.calls = call, at, change, 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.calls - 1 == self.at:
            self.change()
        return self.call(*args, **kwargs)


def tables_read(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What engines read as tree tables from now on."""
    import ppd.runtime.engines.onnxruntime.cpu as module

    read, parse = list[bytes](), tree_tables_from_bytes

    def record(content: bytes, count: int) -> Any:
        read.append(content)
        return parse(content, count)

    monkeypatch.setattr(module, "tree_tables_from_bytes", record)
    return read


@pytest.mark.parametrize("at", range(12))
def test_whichever_file_is_being_verified_the_bundle_that_opens_is_one_of_the_two(
    folder: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    def change() -> None:
        with monkeypatch.context() as own:
            own.setattr(ppd.bundle, "_verify_file", verify)
            calibrate_to(folder, "small")

    verify = ppd.bundle._verify_file
    changing = ChangeBefore(verify, at, change)
    monkeypatch.setattr(ppd.bundle, "_verify_file", changing)

    opened = open_bundle(folder)

    name = opened.manifest.tree.source
    assert changing.calls > at or at >= len(opened.manifest.files)
    assert json_from_tree(opened.tree) == json_from_tree(TREES[name])
    record = opened.manifest.decision.record
    assert isinstance(record, CalibrationInfo)
    assert record.remark == name
    assert opened.path("tree.bin").read_bytes() == tree_tables_bytes(TREES[name])


def test_tables_that_went_after_the_bundle_was_opened_are_one_line(folder: Path) -> None:
    opened = open_bundle(folder)
    calibrate_to(folder, "small")

    for read in (
        lambda: OnnxRuntimeEngine(opened, EngineOptions(threads=1)),
        lambda: opened.read_bytes("latency.json"),
    ):
        with pytest.raises(BundleError, match="the bundle was changed while it was loaded: try again") as caught:
            read()
        assert "\n" not in str(caught.value)


def test_a_load_between_any_two_steps_of_a_re_fold_is_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables, sources = tables_read(monkeypatch), list[str]()

    def look() -> None:
        with monkeypatch.context() as own:
            own.setattr(Path, "replace", replace)
            own.setattr(Path, "unlink", unlink)
            model = load(folder, threads=1)
        sources.append(model.bundle.manifest.tree.source)
        expected = TREES[sources[-1]]
        assert json_from_tree(model.bundle.tree) == json_from_tree(expected)
        assert tables.pop() == tree_tables_bytes(expected)

    replace, unlink = Path.replace, Path.unlink

    def looked_replace(self: Path, target: Path) -> Path:
        look()
        return replace(self, target)

    def looked_unlink(self: Path, *, missing_ok: bool = False) -> None:
        look()
        unlink(self, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "replace", looked_replace)
    monkeypatch.setattr(Path, "unlink", looked_unlink)
    calibrate_to(folder, "small")

    assert sources == sorted(sources)  # the old one, and from some step on the new one
    assert {"chain", "small"} == set(sources)
    assert len(sources) >= 8


@pytest.fixture
def replaced(own_bundle: Path, tmp_path: Path) -> Callable[[], None]:
    """Lets another bundle, of the same shape and with other weights, take the place of `own_bundle`."""
    other = with_other_weights(own_bundle, tmp_path / "other")
    return lambda: export(own_bundle, other, force=True)


@pytest.mark.parametrize("verify", [True, False])
def test_a_bundle_that_is_replaced_before_its_engine_opens_is_not_mixed(
    own_bundle: Path, replaced: Callable[[], None], monkeypatch: pytest.MonkeyPatch, verify: bool
) -> None:
    changing = ChangeBefore(open_engine, 0, replaced)
    monkeypatch.setattr(ppd.runtime.model, "open_engine", changing)

    with pytest.raises(BundleError, match="the bundle was changed while it was loaded: try again"):
        load(own_bundle, threads=1, verify=verify)
    assert load(own_bundle, threads=1).generate([5], max_new_tokens=2).token_ids


def test_a_check_of_a_bundle_that_is_replaced_meanwhile_says_so(
    own_bundle: Path, replaced: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ppd.runtime.check, "open_engine", ChangeBefore(open_engine, 0, replaced))

    with pytest.raises(BundleError, match="try again"):
        check_bundle(own_bundle, threads=1)


def test_what_was_loaded_goes_on_when_its_bundle_is_replaced(own_bundle: Path, replaced: Callable[[], None]) -> None:
    calibrate_to(own_bundle, "chain")
    before, model = load(own_bundle, threads=1), load(own_bundle, threads=1)
    expected = before.generate("def f(", max_new_tokens=6).token_ids
    replaced()

    assert model.generate("def f(", max_new_tokens=6).token_ids == expected


def test_a_damaged_file_is_still_an_error_of_its_own(folder: Path) -> None:
    open_bundle(folder).path("tree.bin").unlink()

    with pytest.raises(BundleError, match=r"tree-.*\.bin is missing"):
        open_bundle(folder)


def test_a_record_is_not_kept_with_another_tree(folder: Path) -> None:
    with changing(open_bundle(folder)) as change:
        change.fold(CHAIN, "calibrated")
        refold_tree(folder, SMALL, source="mine.json")
        with pytest.raises(BundleError, match="another tree was folded in"):
            commit_calibration(change, RECORD, draft=True, files={})
    assert open_bundle(folder).manifest.decision.basis == GIVEN
