"""Several commands in one bundle at once: each change stands, or is refused in a line, and the bundle is whole."""

import functools
import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from ppd.bundle import open_bundle
from ppd.changes import add_file, changing, refold_tree
from ppd.errors import BundleError
from ppd.locks import locked
from ppd.signature import LOWERED_GRAPH_FILE
from ppd.staging import own_folder
from ppd.tree import Node, Tree
from tests.copies import calibrate_to
from tests.faults.killing import run_at_once
from tests.faults.operations import build, export
from tests.infos import RECORD
from tests.trees import CHAIN

Operation = Callable[[Path], object]


def refold(number: int) -> Operation:
    """A re-fold to a tree of its own."""
    nodes = (Node((), 3), *(Node((rank,), 3) for rank in range(1 + number)))
    return lambda folder: refold_tree(folder, Tree(3, {3: nodes}), source=str(number))


def calibrate(folder: Path) -> None:
    calibrate_to(folder, CHAIN, RECORD)


def add(folder: Path) -> None:
    add_file(open_bundle(folder, verify=False), LOWERED_GRAPH_FILE, b"lowered")


def export_again(folder: Path) -> None:
    export(folder, folder.parents[1] / "source", force=True)


MIXES: dict[str, tuple[Operation, ...]] = {
    "two re-folds": (refold(0), refold(1)),
    "four re-folds": tuple(map(refold, range(4))),
    "a re-fold and a file": (refold(0), add),
    "a re-fold and a build": (refold(0), build),
    "a re-fold and a calibration": (refold(0), calibrate),
    "two builds and a calibration": (build, build, calibrate),
    "a re-fold and an export": (refold(0), export_again),
}


def copy(bundle: Path, folder: Path) -> Path:
    return shutil.copytree(bundle, folder, copy_function=os.link)


def race(bundle: Path, place: Path, operations: tuple[Operation, ...], rounds: int) -> Counter[str]:
    """Run operations at once on fresh bundles; every bundle is whole, nothing is left over, what is done stands.

    An export takes the place's `source`, whose files nothing else links or changes.
    """
    counts, bundles = Counter[str](), place / "bundles"
    shutil.copytree(bundle, place / "source")
    bundles.mkdir()
    for number in range(rounds):
        folder = copy(bundle, bundles / str(number))
        outcomes = run_at_once([functools.partial(operation, folder) for operation in operations])
        files = open_bundle(folder).manifest.files
        assert not [outcome for outcome in outcomes if outcome.startswith("FAILED")], outcomes
        assert not [path.name for path in bundles.iterdir() if path.name != str(number)]
        assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]
        for operation, outcome in zip(operations, outcomes, strict=True):
            assert outcome != "done" or operation is not add or LOWERED_GRAPH_FILE in files
            counts[outcome.split(":")[0]] += 1
        shutil.rmtree(folder)
    return counts


@pytest.mark.parametrize("mix", MIXES)
def test_whatever_is_done_at_once_the_bundle_is_whole(small_bundle: Path, tmp_path: Path, mix: str) -> None:
    counts = race(small_bundle, tmp_path, MIXES[mix], 3)
    assert counts["done"] >= 3
    if mix in ("two re-folds", "four re-folds", "a re-fold and a file"):
        assert counts["refused"] == 0


def test_an_engine_for_another_tree_is_refused(small_bundle: Path, tmp_path: Path) -> None:
    folder = copy(small_bundle, tmp_path / "own")
    with changing(open_bundle(folder)) as change:
        refold(0)(folder)
        change.put("engines/0123456789abcdef.engine", b"engine")
        with pytest.raises(BundleError, match="another tree was folded in meanwhile"):
            change.commit(same_tree=True)

    assert open_bundle(folder).manifest.tree.source == "0"
    assert not (folder / "engines").exists()


def test_a_change_of_a_bundle_that_was_replaced_is_refused(small_bundle: Path, tmp_path: Path) -> None:
    folder = copy(small_bundle, tmp_path / "own")
    opened = open_bundle(folder)
    other = copy(small_bundle, tmp_path / "other")
    add_file(open_bundle(other), "model.onnx", b"another graph")
    export(folder, other, force=True)

    with pytest.raises(BundleError, match="another bundle took its place"):
        add_file(opened, LOWERED_GRAPH_FILE, b"lowered")
    assert LOWERED_GRAPH_FILE not in open_bundle(folder).manifest.files


def test_the_next_change_removes_what_a_killed_export_left_and_not_what_a_living_one_makes(
    small_bundle: Path, tmp_path: Path
) -> None:
    folder = copy(small_bundle, tmp_path / "own")
    others = {".own.notes.tmp", ".other.abcd1234.tmp", ".own.abcd1234.tmp"}
    for name in (*others, ".own.00000000.tmp"):
        (tmp_path / name / "bundle").mkdir(parents=True)
    (tmp_path / ".own.abcd1234.tmp" / "thesis").touch()  # so that it is none of ours
    with own_folder(tmp_path, ".own.") as living:
        refold(0)(folder)
        assert {path.name for path in tmp_path.iterdir()} == {"own", living.name, *others}


def test_who_waits_says_so(small_bundle: Path, tmp_path: Path) -> None:
    folder, told = copy(small_bundle, tmp_path / "own"), list[str]()
    ready, go = os.pipe()
    child = os.fork()
    if not child:
        with locked(folder):
            os.write(go, b"!")
            while not (tmp_path / "told").exists():
                pass
        os._exit(0)
    os.read(ready, 1)

    def tell(line: str) -> None:
        told.append(line)
        (tmp_path / "told").touch()

    refold_tree(folder, CHAIN, source="chain", told=tell)

    os.waitpid(child, 0)
    assert told == ["waiting for another command in own"]
    assert open_bundle(folder).manifest.tree.source == "chain"


def test_threads_take_turns_too(small_bundle: Path, tmp_path: Path) -> None:
    folder = copy(small_bundle, tmp_path / "own")
    threads = [threading.Thread(target=refold(number), args=(folder,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert open_bundle(folder).manifest.tree.source in {"0", "1", "2", "3"}
