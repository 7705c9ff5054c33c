"""The build on the device, on a GPU that is not there: what was built is checked, and kept only if it answers right."""

from pathlib import Path

import pytest
import torch

from ppd.board import Board
from ppd.build import engine as tensorrt
from ppd.build.engine import build
from ppd.build.serialize import SerializedEngine, is_lowered_for
from ppd.bundle import Bundle, open_bundle
from ppd.cli.describe import describe_engine
from ppd.errors import EngineError
from ppd.runtime.engines import Engine, open_engine
from ppd.runtime.engines.tensorrt.built import engine_role
from tests.copies import link_bundle
from tests.fakes.gpu import FakeGpu, install


@pytest.fixture
def folder(tinypy_bundle: Path, tmp_path: Path) -> Path:
    return link_bundle(tinypy_bundle, tmp_path / "own")


@pytest.fixture
def gpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    """The imitation, which builds nothing: its engine's content is a byte."""
    fake = FakeGpu(open_bundle(folder, verify=False))
    install(monkeypatch, fake)
    monkeypatch.setattr(
        tensorrt, "serialize_engine", lambda *_, **__: SerializedEngine(content=memoryview(b"x"), layers={})
    )
    return fake


def break_it(gpu: FakeGpu) -> None:
    with torch.no_grad():
        for parameter in gpu.graph.parameters():
            parameter.mul_(-1)


@pytest.mark.usefixtures("gpu")
def test_what_was_built_is_checked_and_kept(folder: Path) -> None:
    info = build(folder, "tensorrt")

    assert info.checked
    assert open_bundle(folder).manifest.engines == [info]


def test_an_engine_that_answers_wrongly_is_deleted(folder: Path, gpu: FakeGpu) -> None:
    break_it(gpu)

    with pytest.raises(EngineError, match="does not work and was deleted"):
        build(folder, "tensorrt")

    manifest = open_bundle(folder).manifest
    assert manifest.engines == []
    assert not [role for role in manifest.files if role.startswith("engines/")]
    assert not list((folder / "engines").glob("*.engine"))


def test_an_engine_that_is_built_again_takes_the_place_of_the_first(folder: Path, gpu: FakeGpu) -> None:
    first = build(folder, "tensorrt")
    assert build(folder, "tensorrt", force=True) == first

    assert open_bundle(folder).manifest.engines == [first]
    assert len(list((folder / "engines").glob("*.engine"))) == 1
    break_it(gpu)
    with pytest.raises(EngineError, match="was deleted"):
        build(folder, "tensorrt", force=True)
    assert open_bundle(folder).manifest.engines == [first]
    assert len(list((folder / "engines").glob("*.engine"))) == 1


def test_a_second_engine_is_checked_itself(folder: Path, gpu: FakeGpu) -> None:
    first = build(folder, "tensorrt")
    break_it(gpu)
    opened, find = list[list[str]](), open_engine

    def record(bundle: Bundle, flavour: str) -> Engine:
        opened.append([info.key for info in bundle.manifest.engines])
        return find(bundle, flavour)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensorrt, "open_engine", record)
        with pytest.raises(EngineError, match="was deleted"):
            build(folder, "tensorrt", max_rows=128)

    assert len(opened) == 1
    assert first.key not in opened[0]
    kept = open_bundle(folder).manifest
    assert kept.engines == [first]
    assert (folder / engine_role(first.key)).exists()


def test_the_power_mode_is_recorded_and_makes_no_other_engine(
    folder: Path, gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = build(folder, "tensorrt")
    monkeypatch.setattr(tensorrt, "read_board", lambda: Board(power_mode="15W", fastest_mode="MAXN", clocks={}))

    second = build(folder, "tensorrt", force=True)

    assert (first.power_mode, second.power_mode) == ("", "15W")
    assert second.key == first.key
    assert "in the power mode 15W for compute" in describe_engine(second)


@pytest.mark.parametrize(
    ("version", "lowered"),
    [
        ("10.3.0", True),  # JetPack 6
        ("10.13.3.9", True),  # JetPack 7.0 and 7.1
        ("10.14.1.48", True),  # attention, but neither rotary positions nor KV writes
        ("10.15.1.29", False),
        ("10.16.2.10", False),  # JetPack 7.2
        ("11.4.1", False),
    ],
)
def test_the_graph_is_lowered_below_the_version_that_has_all_its_layers(version: str, lowered: bool) -> None:
    assert is_lowered_for(version) is lowered
