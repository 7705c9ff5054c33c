"""kill -9 before every file operation of a command: a whole bundle is left, and the next command removes the rest."""

import functools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ppd import staging
from ppd.bundle import open_bundle
from ppd.calibrate import calibrate as calibration
from ppd.calibrate.confirm import Confirmed, Predicted
from ppd.calibrate.latency import Latency
from ppd.calibrate.record import Measured
from ppd.calibrate.replay import Replayed
from ppd.changes import add_file, refold_tree
from ppd.manifest import MANIFEST_FILE
from ppd.measures import Marginals
from ppd.runtime.drafters.chances import NUM_KINDS
from ppd.signature import LOWERED_GRAPH_FILE
from tests.calibrate.test_calibrate import REPORT
from tests.copies import link_bundle
from tests.faults.killing import run_and_kill
from tests.faults.operations import build, export
from tests.trees import CHAIN

_MOST = 300


def calibrate(folder: Path) -> None:
    calibration.calibrate(folder)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calibration as it is, but what it measures with an engine is known."""
    latency = Latency(
        np.array([1, 2]), np.array([32]), np.ones((1, 2)), 0.0, np.zeros(2), np.zeros(2), rounds=8, stable=True
    )
    marginals = Marginals(probabilities=[[0.5, 0.1], [0.2, 0.1], [0.1, 0.1]], source="text", trials=[9, 9, 9])
    known = Measured(marginals=marginals, chances=[0.5] * NUM_KINDS, latency=latency)
    model = type("Model", (), {"engine": type("Engine", (), {"name": "made up"})})
    played = Replayed(tokens=3, steps=2, time=1.0, plain_time=1.0)
    monkeypatch.setattr(calibration, "_measure", lambda *_: ([[1]], known, [[1]]))
    monkeypatch.setattr(calibration, "_load", lambda *_: model)
    monkeypatch.setattr(calibration, "confirm", lambda *_, **__: Confirmed(REPORT, REPORT, REPORT))
    monkeypatch.setattr(calibration, "predict", lambda *_: Predicted(played, played, played))
    monkeypatch.setattr("ppd.calibrate.calibrate.datetime.datetime", type("Never", (), {"now": lambda _: Never()}))


class Never:
    """A time that does not pass."""

    def isoformat(self, **_: Any) -> str:
        return "2001-02-03T04:05:06+00:00"


CHANGES: dict[str, Callable[[Path], object]] = {
    "refold": lambda folder: refold_tree(folder, CHAIN, source="chain"),
    "add a file": lambda folder: add_file(open_bundle(folder), LOWERED_GRAPH_FILE, b"lowered"),
    "add it again": lambda folder: add_file(open_bundle(folder), "model.json", b"another"),
    "calibrate": calibrate,
    "build": build,
    "build again": lambda folder: build(folder, b"better"),
}


def litter(folder: Path) -> set[str]:
    """Files of a bundle that its manifest does not name, but for those of the export."""
    named = {entry.path for entry in open_bundle(folder).manifest.files.values()} | {MANIFEST_FILE}
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}
    return files - named - {"tree.bin", "tree.json", "model.json"}


@pytest.mark.usefixtures("measured")
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_that_is_killed_leaves_the_old_bundle_or_the_new_one(
    small_bundle: Path, tmp_path: Path, name: str
) -> None:
    base = link_bundle(small_bundle, tmp_path / "base")
    if name == "build again":
        build(base)
    done = shutil.copytree(base, tmp_path / "done", copy_function=os.link)
    CHANGES[name](done)
    old, new = ((folder / MANIFEST_FILE).read_bytes() for folder in (base, done))
    seen = set()
    for at in range(1, _MOST):
        folder = shutil.copytree(base, tmp_path / str(at), copy_function=os.link)
        killed = run_and_kill(functools.partial(CHANGES[name], folder), at)
        open_bundle(folder)
        seen.add((folder / MANIFEST_FILE).read_bytes())
        if killed:
            refold_tree(folder, CHAIN, source="the next command")
        assert litter(folder) == set()
        assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []
        shutil.rmtree(folder)
        if not killed:
            break
    assert at > 10
    assert seen == {old, new}


@pytest.mark.parametrize(("force", "in_one_step"), [(False, True), (True, True), (True, False)])
def test_an_export_that_is_killed_leaves_the_old_bundle_or_the_new_one(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, force: bool, in_one_step: bool
) -> None:
    if not in_one_step:
        monkeypatch.setattr(staging, "exchange", lambda _one, _other: False)
    new = link_bundle(small_bundle, tmp_path / "new")
    refold_tree(new, CHAIN, source="new")
    allowed = {"calibrated", "new"} if force else {None, "new"}
    seen = set()
    for at in range(1, _MOST):
        place = tmp_path / str(at)
        place.mkdir()
        out = place / "out"
        if force:
            link_bundle(small_bundle, out)
        killed = run_and_kill(functools.partial(export, out, new, force=force), at)
        source = open_bundle(out).manifest.tree.source if force or out.exists() else None
        seen.add(source)
        if killed:
            export(out, new, force=True)  # the next command
        assert [path.name for path in place.iterdir()] == ["out"]
        assert open_bundle(out).manifest.tree.source == "new"
        shutil.rmtree(place)
        if not killed:
            break
    assert at > 10
    assert seen == allowed
