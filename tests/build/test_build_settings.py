"""How TensorRT is told to build, on TensorRT-RTX's own classes, and what becomes of a build that it refuses."""

import os
import signal
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ppd.build import engine as building
from ppd.build import serialize as serializing
from ppd.build.config import BuildSettings, configure, new_builder
from ppd.build.engine import Wish, add_lowered_graph, build
from ppd.build.log import BuildLog
from ppd.build.network import Profiles, open_caches, parse, profiles_for, read_graph
from ppd.build.serialize import Attempt, SerializedEngine, serialize_engine
from ppd.build.watch import CtrlC, monitor
from ppd.bundle import open_bundle
from ppd.errors import ArgumentError, EngineError
from ppd.targets import find_target
from tests.copies import link_bundle

trt = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed")

ADA = find_target("rtx-4090")
PROFILES = Profiles(capacity=640, max_prefill_rows=64, max_prefill_head_rows=8, max_decode_rows=16, best_decode_rows=16)


@pytest.fixture
def folder(tinypy_bundle: Path, tmp_path: Path) -> Path:
    return link_bundle(tinypy_bundle, tmp_path / "own")


def configured(settings: BuildSettings, profiles: Profiles = PROFILES) -> Any:
    builder = new_builder(trt, BuildLog().logger(trt))
    with CtrlC() as ctrl_c:
        return configure(trt, builder, profiles.ranges({}), settings, monitor(trt, lambda _phase, _share: None, ctrl_c))


def test_fp32_products_are_not_rounded_to_tf32() -> None:
    assert not configured(BuildSettings()).get_flag(trt.BuilderFlag.TF32)


def test_an_rtx_engine_allocates_nothing_while_it_runs() -> None:
    assert configured(BuildSettings()).get_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)


def test_workspace_and_optimisation_level_reach_tensorrt() -> None:
    config = configured(BuildSettings(workspace_bytes=64 * 2**20, opt_level=1))

    assert config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 64 * 2**20
    assert config.builder_optimization_level == 1


@pytest.mark.parametrize(("name", "value"), [("opt_level", 6), ("opt_level", -1), ("workspace", 0)])
def test_what_tensorrt_would_cut_to_its_range_is_refused(name: str, value: int) -> None:
    with pytest.raises(ArgumentError, match=f"{name} is {value}; expected"):
        Wish(**{name: value})  # type: ignore[arg-type]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Builds that are not made."""
    built = SerializedEngine(content=memoryview(b"x"), layers={})
    monkeypatch.setattr(building, "serialize_engine", lambda *_, **__: built)


@pytest.mark.usefixtures("quick")
def test_an_engine_is_built_again_where_another_level_is_asked_for(folder: Path) -> None:
    first = build(folder, "tensorrt-rtx", target=ADA)
    second = build(folder, "tensorrt-rtx", target=ADA, opt_level=1, workspace=100)

    assert build(folder, "tensorrt-rtx", target=ADA) == second
    assert open_bundle(folder).manifest.engines == [second]
    assert (second.key, second.opt_level, second.workspace) == (first.key, 1, 100)


@pytest.mark.usefixtures("quick")
def test_a_chunk_bounds_the_prefill_of_the_engine(folder: Path) -> None:
    info = build(folder, "tensorrt-rtx", target=ADA, chunk=64)
    assert info.max_prefill_rows == 64
    assert info.capacity == open_bundle(folder, verify=False).manifest.context + 64  # read in every step
    for chunk in (63, 513):
        with pytest.raises(ArgumentError, match=f"chunk is {chunk}; expected 64 to 512 rows"):
            build(folder, "tensorrt-rtx", target=ADA, chunk=chunk)


def test_a_builder_that_does_not_start_is_one_line() -> None:
    """As NVIDIA's module raises it (tests/nvidia)."""

    def refuse(*_: Any) -> None:
        raise TypeError("pybind11::init(): factory function returned nullptr")

    module = types.SimpleNamespace(__version__="10.3.0", Builder=refuse, OnnxParser=refuse)
    module.NetworkDefinitionCreationFlag = trt.NetworkDefinitionCreationFlag
    with pytest.raises(EngineError, match=r"TensorRT 10\.3\.0 does not start on this machine; check the driver"):
        new_builder(module, None)  # type: ignore[arg-type]
    builder = types.SimpleNamespace(create_network=lambda _flags: None)
    with pytest.raises(EngineError, match=r"TensorRT 10\.3\.0 has no parser for ONNX here; install all of it"):
        parse(module, None, builder, None, Path())  # type: ignore[arg-type]


def by_signal() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def by_exception() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("press", [by_signal, by_exception])
def test_ctrl_c_ends_a_build_as_ctrl_c_and_leaves_the_bundle_as_it_was(folder: Path, press: Callable[[], None]) -> None:
    before = open_bundle(folder).manifest
    phases: list[str] = []

    def progress(phase: str, _share: float) -> None:
        phases.append(phase)
        if len(phases) == 3:
            press()

    with pytest.raises(KeyboardInterrupt):
        build(folder, "tensorrt-rtx", target=ADA, progress=progress)

    assert open_bundle(folder).manifest == before
    assert not (folder / "engines").exists()
    assert signal.set_wakeup_fd(-1) == -1, "the signal's own way is as it was"


def test_a_native_build_that_fails_is_tried_again_with_attention_in_parts(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever TensorRT said: on some GPUs it cannot build the fused kernel."""
    monkeypatch.setattr(serializing, "has_fused_attention", lambda *_: True)
    tried = []

    def fail_first(self: Any, way: Attempt) -> SerializedEngine | None:
        tried.append(way.decomposable)
        self.log.logger(trt).log(trt.ILogger.ERROR, "MyelinCheckException")
        return SerializedEngine(content=memoryview(b"x"), layers={}, decomposable=True) if way.decomposable else None

    monkeypatch.setattr(serializing._Build, "attempt", fail_first)
    assert build(folder, "tensorrt-rtx", target=ADA).decomposable
    assert tried == [False, True]

    monkeypatch.setattr(serializing._Build, "attempt", lambda *_, **__: None)
    with pytest.raises(EngineError, match=r"cannot build .* \(no reason given\); free memory"):
        build(folder, "tensorrt-rtx", target=ADA, force=True)


def test_the_lowered_graph_is_built_for_any_capacity_and_where_that_fails_for_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = add_lowered_graph(open_bundle(folder))
    tried = []

    def fail_first(_: Any, way: Attempt) -> SerializedEngine | None:
        tried.append(way.capacity)
        return SerializedEngine(content=memoryview(b"x"), layers={}) if way.capacity else None

    monkeypatch.setattr(serializing._Build, "attempt", fail_first)
    profiles = profiles_for(bundle)
    serialize_engine(trt, bundle, profiles, BuildSettings(capability="8.6"), lowered=True)

    assert tried == [None, profiles.capacity]


def test_an_open_capacity_reaches_from_the_smallest_bucket_to_the_whole_context(folder: Path) -> None:
    bundle = add_lowered_graph(open_bundle(folder))
    profiles, caches = profiles_for(bundle), open_caches(read_graph(bundle, None, lowered=True))

    assert len(caches) == 2 * bundle.manifest.model.num_layers
    for ranges in profiles.ranges(caches):
        assert [shape[2] for shape in ranges["v_0"]] == [128, 512, profiles.capacity]
    assert open_caches(read_graph(bundle, 640, lowered=True)) == {}
