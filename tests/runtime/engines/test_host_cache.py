import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppd.errors import EngineError
from ppd.runtime.engines.host_cache import KVCache
from ppd.signature import MAX_ROWS, MIN_CAPACITY, capacity_for, max_capacity


def cache_with_rows(num_rows: int) -> KVCache:
    cache = KVCache(2, 3, 4, context=1000)
    cache.restart(num_rows)
    cache.array[:] = np.random.default_rng(0).normal(size=cache.array.shape)
    return cache


@given(cache_len=st.integers(0, 90), rows=st.sets(st.integers(1, 30), max_size=8))
def test_commit_equals_a_naive_copy(cache_len: int, rows: set[int]) -> None:
    accepted = [0, *sorted(rows)]
    cache = cache_with_rows(MIN_CAPACITY)
    before = cache.array.copy()
    cache.commit(cache_len, accepted)
    kept = cache_len + len(accepted)
    naive = np.concatenate([before[:, :, :, :cache_len], before[:, :, :, [cache_len + row for row in accepted]]], 3)
    assert np.array_equal(cache.array[:, :, :, :kept], naive)
    assert np.array_equal(cache.array[:, :, :, kept:], before[:, :, :, kept:])


def test_growth_doubles_and_keeps_committed_rows() -> None:
    cache = cache_with_rows(MIN_CAPACITY)
    before = cache.array.copy()
    cache.reserve(100, 28)
    assert cache.capacity == MIN_CAPACITY
    cache.reserve(100, 29)
    assert cache.capacity == 2 * MIN_CAPACITY
    assert np.array_equal(cache.array[:, :, :, :100], before[:, :, :, :100])
    assert not cache.array[:, :, :, 100:].any()


def test_a_full_step_fits_behind_a_full_context() -> None:
    cache = KVCache(1, 1, 2, context=300)
    cache.restart(300)
    cache.reserve(300, MAX_ROWS)
    assert cache.capacity == max_capacity(300) == 812


def test_restart_shrinks_to_the_smallest_bucket() -> None:
    cache = cache_with_rows(MIN_CAPACITY)
    cache.reserve(100, 900)
    assert cache.capacity == 1024
    cache.restart(10)
    assert cache.capacity == MIN_CAPACITY
    assert not cache.array.any()
    array = cache.array
    cache.restart(10)
    assert cache.array is array


@pytest.mark.parametrize("num_rows", [60, 200, 900])
def test_restart_keeps_the_first_rows_in_a_smaller_and_in_a_larger_bucket(num_rows: int) -> None:
    cache = cache_with_rows(300)
    before = cache.array.copy()
    cache.restart(num_rows, 50)
    assert cache.capacity == capacity_for(num_rows, 1000)
    assert np.array_equal(cache.array[:, :, :, :50], before[:, :, :, :50])
    assert not cache.array[:, :, :, 50:].any()


def test_a_growth_that_failed_is_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = cache_with_rows(MIN_CAPACITY)
    before = cache.array.copy()
    with monkeypatch.context() as short:
        short.setattr(np, "zeros", lambda *_: (_ for _ in ()).throw(MemoryError))
        with pytest.raises(EngineError, match="no memory for a KV cache of 256 rows"):
            cache.reserve(100, 29)
    cache.reserve(100, 1)
    assert cache.capacity == MIN_CAPACITY
    assert np.array_equal(cache.array[:, :, :, :100], before[:, :, :, :100])


@given(num_rows=st.integers(1, 5000), context=st.integers(2, 4000))
def test_buckets(num_rows: int, context: int) -> None:
    capacity = capacity_for(num_rows, context)
    assert capacity <= max_capacity(context)
    if num_rows <= max_capacity(context):
        assert capacity >= num_rows
