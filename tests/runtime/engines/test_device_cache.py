"""The cache of a GPU in an imitation's memory: laid out anew for another capacity."""

from pathlib import Path

import numpy as np
import pytest

from ppd.bundle import open_bundle
from ppd.runtime.engines.cuda.cache import DeviceCache
from ppd.runtime.engines.cuda.calls import Cuda
from tests.fakes.gpu import FakeGpu, install

HEADS, DIM, CAPACITY = 2, 8, 1024


@pytest.fixture
def gpu(tinypy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    made = FakeGpu(open_bundle(tinypy_bundle, verify=False))
    install(monkeypatch, made)
    return made


@pytest.fixture
def cache(gpu: FakeGpu) -> DeviceCache:
    made = DeviceCache(Cuda(), 4, HEADS, CAPACITY, DIM * 4)
    made.resize(512, 0)
    for i, array in enumerate(arrays(gpu, made)):
        array[:] = np.random.default_rng(i).random(array.shape, np.float32)
    return made


def arrays(gpu: FakeGpu, cache: DeviceCache) -> list[np.ndarray]:
    return [gpu.array(address, (HEADS, cache.capacity, DIM), np.float32) for address in cache.addresses]


@pytest.mark.parametrize("capacity", [128, 512, 1024])
def test_the_first_rows_are_kept_in_any_bucket(gpu: FakeGpu, cache: DeviceCache, capacity: int) -> None:
    before, addresses = [array.copy() for array in arrays(gpu, cache)], cache.addresses
    cache.resize(capacity, 50)

    assert cache.capacity == capacity
    assert (cache.addresses is addresses) == (capacity == 512)
    for now, old in zip(arrays(gpu, cache), before, strict=True):
        assert np.array_equal(now[:, :50], old[:, :50])
    assert len(gpu.memory) == 1


def test_a_bucket_has_the_same_addresses_whenever_it_comes_back(cache: DeviceCache) -> None:
    addresses = list(cache.addresses)  # what a recorded step points to
    cache.resize(1024, 500)
    cache.resize(512, 0)

    assert cache.addresses == addresses
