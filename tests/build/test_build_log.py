"""What TensorRT said: in the bundle beside the engine, and of a build that fails, beside the timings."""

from pathlib import Path
from typing import Any

import pytest

from ppd.build import engine as building
from ppd.build.engine import build
from ppd.build.log import BuildLog
from ppd.build.serialize import SerializedEngine
from ppd.bundle import open_bundle
from ppd.errors import EngineError
from ppd.runtime.engines.tensorrt.built import log_role
from tests.copies import link_bundle
from tests.fakes.gpu import FakeGpu, install

trt = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed")


@pytest.fixture
def folder(tinypy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = link_bundle(tinypy_bundle, tmp_path / "own")
    install(monkeypatch, FakeGpu(open_bundle(folder, verify=False)))
    return folder


def builds(monkeypatch: pytest.MonkeyPatch, *, fails: bool = False) -> None:
    def serialize(*_: Any, log: BuildLog, **__: Any) -> SerializedEngine:
        log.note("WARNING: a kernel was skipped")
        if fails:
            raise EngineError("TensorRT cannot build it")
        return SerializedEngine(content=memoryview(b"x"), layers={})

    monkeypatch.setattr(building, "serialize_engine", serialize)


def test_a_log_keeps_what_matters_and_the_errors_of_the_last_attempt() -> None:
    log = BuildLog()
    logger = log.logger(trt)
    severities = trt.ILogger
    logger.log(severities.ERROR, "of the first attempt")
    log.begin("the second attempt")
    logger.log(severities.VERBOSE, "a detail")
    logger.log(severities.WARNING, "a kernel was skipped")
    logger.log(severities.INTERNAL_ERROR, "no tactic")

    lines = [line[10:] for line in str(log).splitlines()]
    expected = ["ERROR: of the first attempt", "the second attempt", "WARNING: a kernel was skipped"]
    assert lines == [*expected, "INTERNAL ERROR: no tactic"]
    assert log.reason() == "no tactic"


def test_the_log_lies_beside_the_engine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builds(monkeypatch)

    info = build(folder, "tensorrt")

    text = open_bundle(folder).read_bytes(log_role(info.key)).decode()
    assert "WARNING: a kernel was skipped" in text
    assert info.key in text
    build(folder, "tensorrt", force=True)
    assert len(list((folder / "engines").glob("*.log"))) == 1


def test_the_log_of_a_build_that_fails_is_kept_and_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    builds(monkeypatch, fails=True)

    with pytest.raises(EngineError, match=r"cannot build it; all that TensorRT said is in .*/build-\w{16}\.log"):
        build(folder, "tensorrt")

    (log,) = (tmp_path / "cache" / "ppd").glob("build-*.log")
    assert "WARNING: a kernel was skipped" in log.read_text("utf-8")
    assert not (folder / "engines").exists()
