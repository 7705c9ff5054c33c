"""Whether a build fits, before it begins: on a board by what the system has available, not by what CUDA calls free."""

import dataclasses
from pathlib import Path

import pytest

from ppd.build import room
from ppd.build.network import profiles_for
from ppd.build.room import build_memory, engine_memory, require_room
from ppd.bundle import Bundle, open_bundle
from ppd.errors import EngineError
from ppd.host_memory import HostMemory, host_memory
from ppd.memory import kv_bytes_per_row
from ppd.runtime.engines.cuda.device import Gpu
from ppd.targets import find_target
from tests.fakes.gpu import with_engine

GIB = 2**30
BOARD = Gpu(
    name="Orin",
    compute_capability="8.7",
    num_multiprocessors=8,
    integrated=True,
    free_bytes=GIB // 2,
    total_bytes=8 * GIB,
    cuda="12.6",
)
CARD = dataclasses.replace(BOARD, name="RTX 4090", integrated=False, free_bytes=24 * GIB)


def weighing(bundle: Path, size: int, precision: str = "fp16") -> Bundle:
    """The bundle, as if its weights had this size and precision."""
    opened = open_bundle(bundle, verify=False)
    entry = dataclasses.replace(opened.manifest.files["model.onnx.data"], size_bytes=size)
    files = opened.manifest.files | {"model.onnx.data": entry}
    manifest = dataclasses.replace(opened.manifest, files=files, precision=precision, graph_type="float16")
    return dataclasses.replace(opened, manifest=manifest)


def asked(
    monkeypatch: pytest.MonkeyPatch, bundle: Bundle, gpu: Gpu | None, available: int, swap: int = 0
) -> int | None:
    monkeypatch.setattr(room, "host_memory", lambda: HostMemory(available, swap))
    target = find_target("rtx-4090") if gpu is None else None
    return require_room(bundle, profiles_for(bundle), gpu, target)


def test_a_board_whose_page_cache_is_full_may_build(tinypy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA's half GiB is what is left beside the page cache, which gives way."""
    bundle = weighing(tinypy_bundle, GIB)

    left = asked(monkeypatch, bundle, BOARD, 6 * GIB)

    assert left is not None
    assert GIB < left < 2 * GIB
    assert asked(monkeypatch, bundle, BOARD, 3 * GIB, 3 * GIB) == 256 * 2**20


@pytest.mark.parametrize(("precision", "copies"), [("fp16", 4.0), ("int4", 5.8)])
def test_a_board_needs_the_copies_that_were_measured(tinypy_bundle: Path, precision: str, copies: float) -> None:
    more = build_memory(weighing(tinypy_bundle, 2 * GIB, precision)) - build_memory(
        weighing(tinypy_bundle, GIB, precision)
    )

    assert more == pytest.approx(copies * GIB)


def test_what_a_board_lacks_is_said(tinypy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = weighing(tinypy_bundle, 2 * GIB)

    with pytest.raises(
        EngineError, match=r"the build needs about 8\.9 GB, Orin has 6\.4 GB available and 1\.1 GB of swap"
    ):
        asked(monkeypatch, bundle, BOARD, 6 * GIB, GIB)
    with pytest.raises(EngineError, match=r"the engine and its cache need about 2\.\d GB, Orin has 1\.1 GB available"):
        asked(monkeypatch, bundle, BOARD, GIB, 40 * GIB)  # swap is no memory for a GPU


def test_a_card_is_asked_for_its_own_memory_and_the_machine_for_its(
    tinypy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = weighing(tinypy_bundle, 10 * GIB)

    assert asked(monkeypatch, bundle, CARD, 64 * GIB) is None
    with pytest.raises(EngineError, match=r"the build needs about 32\.5 GB, this machine has 17\.2 GB available"):
        asked(monkeypatch, bundle, CARD, 16 * GIB)
    with pytest.raises(EngineError, match=r"the build needs about 21\.5 GB, RTX 4090 has 17\.2 GB free"):
        asked(monkeypatch, bundle, dataclasses.replace(CARD, free_bytes=16 * GIB), 64 * GIB)


def test_a_build_ahead_of_time_is_for_the_target(tinypy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked(monkeypatch, weighing(tinypy_bundle, 20 * GIB), None, 1) is None
    with pytest.raises(EngineError, match=r"the engine and its cache need about [\d.]+ GB, rtx-4090 has 24\.0 GB"):
        asked(monkeypatch, weighing(tinypy_bundle, 24 * GIB), None, 1)


def test_the_cache_is_part_of_the_engine(tinypy_bundle: Path) -> None:
    bundle = weighing(tinypy_bundle, GIB)

    assert engine_memory(bundle, profiles_for(bundle)).total > GIB


def test_new_rows_of_a_lowered_engine_are_part_of_it(tinypy_bundle: Path) -> None:
    plain = weighing(tinypy_bundle, GIB)
    lowered = with_engine(plain, lowered=True)
    rows, model = profiles_for(plain).max_prefill_rows, plain.manifest.model

    more = engine_memory(lowered, profiles_for(lowered)).total - engine_memory(plain, profiles_for(plain)).total

    assert more == rows * kv_bytes_per_row(model, 2)


def test_available_memory_is_read_as_the_system_counts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 100 kB\nMemFree: 10 kB\nMemAvailable: 60 kB\nHugePages_Total: 0\nSwapFree: 5 kB\n")
    monkeypatch.setattr("ppd.host_memory._MEMINFO", meminfo)

    assert host_memory() == HostMemory(60 * 1024, 5 * 1024)


@pytest.mark.parametrize(
    ("limit", "available"), [("max", 60 * 1024), ("900000", 60 * 1024), ("50000", 50_000 - 20_000 + 3_000), ("9000", 0)]
)
def test_a_container_gives_no_more_than_its_limit(
    limit: str, available: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meminfo").write_text("MemAvailable: 60 kB\nSwapFree: 5 kB\n", "utf-8")
    for name, content in {
        "memory.max": f"{limit}\n",
        "memory.current": "20000\n",
        "memory.stat": "anon 17000\nactive_file 1000\ninactive_file 2000\n",
    }.items():
        (tmp_path / name).write_text(content, "utf-8")
    monkeypatch.setattr("ppd.host_memory._MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr("ppd.host_memory._CONTAINER", tmp_path)

    assert host_memory() == HostMemory(available, 5 * 1024)
