"""CUDA's driver: who starts it, in which threads, and what a user is told where it does not start."""

import sys
import threading
from pathlib import Path

import pytest

from ppd.bundle import open_bundle
from ppd.errors import EngineError
from ppd.runtime.engines.cuda import driver as drivers
from ppd.runtime.engines.cuda.calls import Cuda
from ppd.runtime.engines.cuda.device import current_gpu
from ppd.runtime.engines.cuda.driver import pin
from tests.fakes.driver import NAME, Status
from tests.fakes.gpu import FakeGpu, install


@pytest.fixture
def gpu(tinypy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    made = FakeGpu(open_bundle(tinypy_bundle, verify=False))
    install(monkeypatch, made)
    return made


@pytest.mark.usefixtures("gpu")
def test_the_gpu_is_described_by_the_driver_alone() -> None:
    assert "cuda.bindings.runtime" not in sys.modules  # its cudart refuses a Jetson's driver

    found = current_gpu()

    assert (found.name, found.compute_capability, found.num_multiprocessors, found.integrated, found.cuda) == (
        NAME,
        "8.7",
        16,
        True,
        "12.6",
    )


@pytest.mark.parametrize(
    ("here", "advice"),
    [
        (
            "13.4.4",
            r"cuda-python 13.4.4 is newer than the driver's CUDA 12.6: .*cuda-python>=12.6.*,<13",
        ),
        ("12.8.0", r"cuda-python 12.8.0, the driver's CUDA 12.6: check the driver"),
    ],
)
def test_a_gpu_that_does_not_answer_names_both_versions_and_the_pin(
    gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch, here: str, advice: str
) -> None:
    monkeypatch.setattr(drivers, "installed_cuda_python", lambda: here)
    monkeypatch.setitem(vars(sys.modules["cuda.bindings.driver"]), "cuDeviceGet", lambda _i: (Status(100), None))

    with pytest.raises(EngineError, match=r"no GPU answers \(cuDeviceGet: CUDA_ERROR_NO_DEVICE, 100\); " + advice):
        current_gpu()
    assert gpu.calls["cuMemAlloc"] == 0


def test_without_a_driver_its_library_is_what_is_missing(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drivers, "installed_cuda_python", lambda: "13.4.4")
    gpu.has_driver = False

    with pytest.raises(EngineError, match=r"Failed to dlopen libcuda.so.1.*13.4.4 is installed, no driver is"):
        Cuda()


def test_a_cuda_python_without_its_bindings_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drivers, "installed_cuda_python", lambda: "12.6.0")
    for name in ("cuda", "cuda.bindings", "cuda.bindings.driver"):
        monkeypatch.setitem(sys.modules, name, None)

    with pytest.raises(EngineError, match=r"cuda-python 12.6.0 cannot be used .*on JetPack 6 .*12.6.2.post1"):
        current_gpu()


@pytest.mark.parametrize(
    ("driver", "expected"),
    [
        ("12.6", "cuda-python>=12.6.2.post1,<13"),
        ("13.2", "cuda-python>=13,<14"),
        ("", "cuda-python>=12.6.2.post1"),
    ],
)
def test_the_pin_follows_the_driver(driver: str, expected: str) -> None:
    assert pin(driver) == expected


def test_every_thread_makes_the_context_current_and_so_does_closing(gpu: FakeGpu) -> None:
    cuda = Cuda()
    failed: list[BaseException] = []

    def use() -> None:
        try:
            cuda.free(cuda.allocate(64, "a test"))
        except BaseException as error:
            failed.append(error)

    for target in (use, cuda.close):
        thread = threading.Thread(target=target)
        thread.start()
        thread.join()

    assert not failed
    assert not gpu.memory
