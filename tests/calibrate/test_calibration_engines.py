"""Calibration with a TensorRT engine, on a GPU that is not there: which engines are built, used and kept."""

import gc
from pathlib import Path
from typing import Any

import pytest

from ppd.build import engine as building
from ppd.build.engine import build
from ppd.build.network import Profiles
from ppd.build.serialize import SerializedEngine
from ppd.bundle import Bundle, open_bundle
from ppd.calibrate import calibrate as calibration
from ppd.calibrate import latency
from ppd.decision import CalibrationInfo
from ppd.errors import EngineError
from ppd.runtime.engines.tensorrt.built import flavour_in_use, stale
from tests.copies import refolded_copy
from tests.fakes.gpu import FakeGpu, install
from tests.trees import CHAIN


@pytest.fixture
def folder(tinypy_bundle: Path, tmp_path: Path) -> Path:
    """A bundle whose tree calibration will not choose."""
    return refolded_copy(tinypy_bundle, tmp_path / "own", CHAIN)


@pytest.fixture
def gpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    """The imitation, which builds engines of the tree that is folded then."""
    fake = FakeGpu(open_bundle(folder, verify=False))
    install(monkeypatch, fake)

    def plan(_trt: object, bundle: Bundle, profiles: Profiles, *_: object, **__: object) -> SerializedEngine:
        assert not fake.memory, "the engine that measured is still open"
        return SerializedEngine(content=memoryview(fake.build(bundle, profiles.max_decode_rows)), layers={})

    monkeypatch.setattr(building, "serialize_engine", plan)
    monkeypatch.setattr(latency, "_MIN_ROUNDS", 2)
    monkeypatch.setattr(latency, "_HOST_ROUNDS", 1)
    monkeypatch.setattr(calibration, "_NEW_TOKENS", 4)
    monkeypatch.setattr(calibration, "_CONFIRM_TURNS", 2)
    monkeypatch.setattr(calibration, "_CONFIRM_PROMPTS", 1)
    return fake


def rows_built(gpu: FakeGpu) -> list[int]:
    """The largest decode step of each engine that was built."""
    return [rows for _, rows in gpu.plans.values()]


def engines_kept(folder: Path) -> list[int]:
    """Rows of the engines in the bundle; every one is checked, fits, and no other file is left."""
    manifest = open_bundle(folder).manifest
    assert all(info.checked and not stale(manifest, info) for info in manifest.engines)
    assert len(list((folder / "engines").glob("*.engine"))) == len(manifest.engines)
    assert len(list((folder / "engines").iterdir())) == 2 * len(manifest.engines)  # each with its log
    return [info.max_decode_rows for info in manifest.engines]


def largest_step(folder: Path) -> int:
    return max(open_bundle(folder).tree.step_sizes)


def test_calibrate_measures_with_a_wide_engine_and_keeps_one_for_the_new_tree(folder: Path, gpu: FakeGpu) -> None:
    build(folder, "tensorrt")
    before, stages = largest_step(folder), list[str]()

    bundle = calibration.calibrate(folder, minutes=0.0001, progress=stages.append).bundle

    assert bundle.manifest.engines == open_bundle(folder).manifest.engines
    record = bundle.manifest.decision.record
    assert isinstance(record, CalibrationInfo)
    assert record.engine.startswith("tensorrt ")
    assert rows_built(gpu) == [before, 128, largest_step(folder)]
    assert gpu.calls["decode steps of 128 rows"] > 0
    assert engines_kept(folder) == [largest_step(folder)]
    assert bundle.manifest.tree.source == "calibrated"
    assert flavour_in_use(bundle, "auto") == "tensorrt"
    assert tuple(stages) == calibration.calibration_stages(folder, "auto")
    assert stages.count("build the engine") == 2

    gc.collect()  # the model that confirmed, and with it its engine
    calibration.calibrate(folder, minutes=0.0001)
    assert engines_kept(folder) == [largest_step(folder)]


def test_where_measuring_fails_the_bundle_has_the_engine_that_it_had(
    folder: Path, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build(folder, "tensorrt")

    def fail(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(calibration, "measure_latency", fail)
    with pytest.raises(KeyboardInterrupt):
        calibration.calibrate(folder, minutes=0.0001, engine="tensorrt")

    assert rows_built(gpu) == [first.max_decode_rows, 128]
    assert engines_kept(folder) == [first.max_decode_rows]
    assert open_bundle(folder).manifest.engines == [first]


def test_where_the_second_build_fails_the_bundle_is_the_old_one(
    folder: Path, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(folder, "tensorrt")
    before = open_bundle(folder).manifest
    plan: Any = vars(building)["serialize_engine"]  # the fake that the fixture put there

    def fail_second(trt: Any, bundle: Bundle, profiles: Profiles, *rest: Any, **more: Any) -> SerializedEngine:
        if profiles.max_decode_rows < 128:
            raise EngineError("no memory")
        return plan(trt, bundle, profiles, *rest, **more)

    monkeypatch.setattr(building, "serialize_engine", fail_second)
    with pytest.raises(EngineError, match="no memory"):
        calibration.calibrate(folder, minutes=0.0001, engine="tensorrt")

    assert engines_kept(folder) == [info.max_decode_rows for info in before.engines]
    assert open_bundle(folder).manifest == before
