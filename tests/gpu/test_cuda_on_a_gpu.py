"""Memory, copies, graphs and the cache on a real GPU, and the TensorRT engine on them with TensorRT imitated.

What needs no TensorRT is shown here for any NVIDIA GPU with cuda-python, and PyTorch for the imitation's products.
"""

import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ppd.bundle import Bundle, open_bundle
from ppd.errors import EngineError
from ppd.runtime import Model
from ppd.runtime.check import check_engine
from ppd.runtime.engines import open_engine
from ppd.runtime.engines.cuda.cache import DeviceCache
from ppd.runtime.engines.cuda.calls import Cuda
from ppd.runtime.engines.cuda.device import current_gpu
from ppd.runtime.recording import load_recording
from tests.fakes.driver import Status
from tests.fakes.gpu import FakeGpu, with_engine

pytestmark = pytest.mark.gpu
PROMPT = list(range(5, 25))


@pytest.fixture
def cuda() -> Iterator[Cuda]:
    try:
        current_gpu()
    except EngineError as error:
        pytest.skip(str(error))
    found = Cuda()
    yield found
    found.close()


def read(cuda: Cuda, address: int, size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    host = cuda.allocate_pinned(size)
    cuda.copy_to_host(host, address)
    cuda.synchronize()
    return host


def test_memory_is_zeroed_and_comes_back_as_it_was_copied(cuda: Cuda) -> None:
    address = cuda.allocate(1000, "a test")
    assert not read(cuda, address, 1000).any()

    source = cuda.allocate_pinned(1000)
    source[:] = np.random.default_rng(0).integers(0, 255, 1000, np.uint8)
    cuda.copy_to_device(address, source)

    assert np.array_equal(read(cuda, address, 1000), source)


def test_shared_memory_is_the_same_for_host_and_gpu(cuda: Cuda) -> None:
    buffer, address = cuda.allocate_shared(1000)
    assert not buffer.any()

    cuda.fill_zero(address, 1000)
    buffer[:] = np.random.default_rng(0).integers(0, 255, 1000, np.uint8)
    assert np.array_equal(read(cuda, address, 1000), buffer)
    cuda.copy_strided(address, 500, address + 500, 500, 500, 1)
    cuda.synchronize()

    assert np.array_equal(buffer[:500], buffer[500:])


def test_too_much_memory_is_refused_and_nothing_is_broken_by_it(cuda: Cuda) -> None:
    with pytest.raises(EngineError, match=r"the GPU has no [\d,]+ MiB left for a giant; close other programs"):
        cuda.allocate(1 << 46, "a giant")

    assert not read(cuda, cuda.allocate(64, "a test"), 64).any()


def test_closing_gives_the_memory_back(cuda: Cuda) -> None:
    before = current_gpu().free_bytes
    other = Cuda()
    other.allocate(1 << 28, "a test")
    assert current_gpu().free_bytes <= before - (1 << 28)

    other.close()

    assert current_gpu().free_bytes > before - (1 << 27)


def test_a_graph_reads_what_is_in_pinned_memory_when_it_is_launched(cuda: Cuda) -> None:
    first, second = (cuda.allocate(256, "a test") for _ in range(2))
    source, result = cuda.allocate_pinned(256), cuda.allocate_pinned(256)
    cuda.begin_capture()
    cuda.copy_to_device(first, source)
    cuda.copy_strided(second, 16, first, 16, 8, 16)
    cuda.copy_to_host(result, second)
    graph = cuda.end_capture()

    assert graph is not None
    assert not result.any()
    for value in (3, 9):
        source[:] = value
        cuda.launch(graph)
        cuda.synchronize()
        assert (result.reshape(16, 16)[:, :8] == value).all()
        assert not result.reshape(16, 16)[:, 8:].any()
    cuda.drop_graph(graph)


def test_what_cannot_be_captured_gives_no_graph_and_the_stream_goes_on(cuda: Cuda) -> None:
    address, source = cuda.allocate(256, "a test"), cuda.allocate_pinned(256)
    cuda.begin_capture()
    with pytest.raises(EngineError, match="cuStreamSynchronize failed"):
        cuda.synchronize()

    assert cuda.end_capture() is None
    source[:] = 7
    cuda.copy_to_device(address, source)
    assert (read(cuda, address, 256) == 7).all()


@pytest.mark.parametrize("capacity", [64, 33], ids=["in one copy", "padded"])
def test_committed_rows_move_as_in_a_naive_cache(cuda: Cuda, capacity: int) -> None:
    num_tensors, num_heads, row_bytes = 4, 3, 8
    cache = DeviceCache(cuda, num_tensors, num_heads, capacity, row_bytes)
    rng = np.random.default_rng(0)
    naive = rng.integers(0, 255, (num_tensors, num_heads, capacity, row_bytes), np.uint8)
    for address, tensor in zip(cache.addresses, naive, strict=True):
        host = cuda.allocate_pinned(tensor.nbytes)
        host[:] = tensor.reshape(-1)
        cuda.copy_to_device(address, host)
    cuda.synchronize()

    cache.commit(10, [0, 2, 5, 9])

    for to, row in enumerate([0, 2, 5, 9]):
        naive[:, :, 10 + to] = naive[:, :, 10 + row]
    for address, tensor in zip(cache.addresses, naive, strict=True):
        assert np.array_equal(read(cuda, address, tensor.nbytes), tensor.reshape(-1))
    smaller = capacity // 2
    cache.resize(smaller, 14)
    for address, tensor in zip(cache.addresses, naive, strict=True):
        size = num_heads * smaller * row_bytes
        found = read(cuda, address, size).reshape(num_heads, smaller, row_bytes)
        assert np.array_equal(found[:, :14], tensor[:, :14])


class _OnTheGpu(FakeGpu):
    """TensorRT's imitation on device memory and the engine's own stream; CUDA is the real one."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle)
        self.stream = 0

    def require(self, address: int, size: int) -> None:
        """The driver watches over real memory."""

    def array(self, address: int, shape: tuple[int, ...], dtype: Any) -> Any:
        pointer = {"shape": shape, "typestr": np.dtype(dtype).str, "data": (address, False), "version": 3}
        return torch.as_tensor(type("Pointer", (), {"__cuda_array_interface__": pointer})(), device="cuda")

    def require_stream(self, stream: int) -> None:
        self.stream = stream

    def do(self, call: str, action: Callable[[], object]) -> tuple[Status]:
        self.calls[call] += 1
        try:
            with torch.cuda.stream(torch.cuda.ExternalStream(self.stream)), torch.device("cuda"):
                action()
        except RuntimeError:  # it reads from the GPU, which a capture does not allow
            return (Status.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED,)
        return (Status.CUDA_SUCCESS,)


def test_the_tensorrt_engine_on_real_memory_with_tensorrt_imitated(
    monkeypatch: pytest.MonkeyPatch, cuda: Cuda, tinypy_bundle: Path, tinypy: Model, caplog: pytest.LogCaptureFixture
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    gpu, bundle = _OnTheGpu(open_bundle(tinypy_bundle, verify=False)), open_bundle(tinypy_bundle, verify=False)
    monkeypatch.setitem(sys.modules, "tensorrt", gpu.tensorrt())
    real = current_gpu()
    bundle = with_engine(bundle, gpu=real.name, compute_capability=real.compute_capability)
    caplog.set_level(logging.INFO)

    engine = open_engine(bundle, "tensorrt")
    check_engine(engine, bundle, load_recording(bundle))

    on_gpu = Model(bundle, engine)
    for draft in (False, True):
        got, expected = (model.generate(PROMPT, max_new_tokens=40, draft=draft) for model in (on_gpu, tinypy))
        assert got.token_ids == expected.token_ids
    assert "and not as a CUDA graph" in caplog.text  # the imitation reads from the GPU while it computes
