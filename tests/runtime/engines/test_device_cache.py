"""The cache that grows on a GPU, in an imitation's memory."""

from pathlib import Path

import numpy as np
import pytest

from ppd.bundle import open_bundle
from ppd.errors import EngineError
from ppd.runtime.engines.cuda.cache import GrowingDeviceCache
from ppd.runtime.engines.cuda.calls import Cuda
from ppd.signature import MIN_CAPACITY
from tests.fakes.gpu import FakeGpu, install

HEADS, DIM = 2, 8


@pytest.fixture
def gpu(tinypy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    made = FakeGpu(open_bundle(tinypy_bundle, verify=False))
    install(monkeypatch, made)
    return made


@pytest.fixture
def cache(gpu: FakeGpu) -> GrowingDeviceCache:
    made = GrowingDeviceCache(Cuda(), 4, HEADS, DIM * 4, context=1000)
    made.restart(300)
    for i, array in enumerate(arrays(gpu, made)):
        array[:] = np.random.default_rng(i).random(array.shape, np.float32)
    return made


def arrays(gpu: FakeGpu, cache: GrowingDeviceCache) -> list[np.ndarray]:
    return [gpu.array(address, (HEADS, cache.capacity, DIM), np.float32) for address in cache.addresses]


@pytest.mark.parametrize("num_rows", [60, 300, 900])
def test_restart_keeps_the_first_rows_in_any_bucket(gpu: FakeGpu, cache: GrowingDeviceCache, num_rows: int) -> None:
    before, addresses = [array.copy() for array in arrays(gpu, cache)], cache.addresses
    cache.restart(num_rows, 50)

    assert cache.capacity == {60: MIN_CAPACITY, 300: 512, 900: 1024}[num_rows]
    assert (cache.addresses is addresses) == (num_rows == 300)  # what an engine looks at to bind again
    for now, old in zip(arrays(gpu, cache), before, strict=True):
        assert np.array_equal(now[:, :50], old[:, :50])
    assert len(gpu.memory) == 1


def test_a_growth_that_failed_keeps_the_rows_and_is_done_again(gpu: FakeGpu, cache: GrowingDeviceCache) -> None:
    before, limit = [array.copy() for array in arrays(gpu, cache)], gpu.limit
    gpu.limit = 0
    with pytest.raises(EngineError, match="a KV cache of 1024 rows"):
        cache.reserve(500, 40)
    gpu.limit = limit
    cache.reserve(500, 40)

    assert cache.capacity == 1024
    for now, old in zip(arrays(gpu, cache), before, strict=True):
        assert np.array_equal(now[:, :500], old[:, :500])
