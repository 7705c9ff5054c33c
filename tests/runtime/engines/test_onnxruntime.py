"""ONNX Runtime: the cache is written in place, buffers are bound once, and a step allocates nothing large."""

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ppd import runtime
from ppd.bundle import open_bundle
from ppd.errors import ArgumentError
from ppd.runtime.engines import open_engine
from ppd.runtime.engines.base import EngineOptions
from ppd.runtime.engines.host_cache import KVCache
from ppd.runtime.engines.onnxruntime import cpu
from ppd.runtime.engines.onnxruntime.cpu import OnnxRuntimeEngine
from ppd.signature import FUSED_GRAPH_FILE, MIN_CAPACITY
from ppd.tree import load_tree
from tests.copies import standard
from tests.runtime.real_models import WIDE_TREE, model_with_tree

WARNING = 2
"""A severity at which ONNX Runtime logs."""
STALE = 7.0
"""What rows of the cache hold that no step has written."""


@pytest.fixture
def wide(tinypy_bundle: Path, tmp_path: Path) -> runtime.Model:
    return model_with_tree(open_bundle(tinypy_bundle), load_tree(WIDE_TREE), tmp_path)


@pytest.fixture(params=["fused", "standard"])
def engine(request: pytest.FixtureRequest, tinypy_bundle: Path) -> OnnxRuntimeEngine:
    """On each of the graphs, with STALE in every row of the cache."""
    bundle = open_bundle(tinypy_bundle)
    assert bundle.has(FUSED_GRAPH_FILE)
    made = OnnxRuntimeEngine(bundle if request.param == "fused" else standard(bundle), EngineOptions(threads=1))
    made.restart(4)
    made.cache.array[:] = STALE
    return made


def test_a_step_writes_its_own_rows_of_the_cache_and_no_others(engine: OnnxRuntimeEngine) -> None:
    ids, state = np.array([5, 6, 7]), 4
    engine.run(ids, state, 0, np.zeros(1, np.int64))
    before = engine.cache.array.copy()
    engine.run(ids[:2], state, 3, np.zeros(1, np.int64))
    after = engine.cache.array
    assert np.all(before[:, :, :, 3:] == STALE)
    assert np.all(after[:, :, :, 5:] == STALE)  # a present that is a copy begins as zeros
    assert np.array_equal(after[:, :, :, :3], before[:, :, :, :3])
    assert np.all(np.any(after[:, :, :, 3:5] != STALE, axis=-1))


def test_inputs_and_outputs_of_a_step_are_the_cache_itself(engine: OnnxRuntimeEngine) -> None:
    engine.run(np.array([5]), 4, 0, np.zeros(1, np.int64))
    assert engine._last is not None
    layers = engine.cache.array.reshape(-1, *engine.cache.array.shape[2:])
    addresses = [layer.ctypes.data for layer in layers]
    assert [value.data_ptr() for value in engine._last.io.get_outputs()[2:]] == addresses


def test_a_present_that_is_not_the_past_is_a_copy_that_shows(tinypy_bundle: Path) -> None:
    engine = OnnxRuntimeEngine(open_bundle(tinypy_bundle), EngineOptions(threads=1))
    engine.restart(4)
    engine.cache.array[:] = STALE
    outputs = engine._session.run(None, feeds_of(engine))
    assert np.all(outputs[2][:, :, 2:] == 0)


def feeds_of(engine: OnnxRuntimeEngine) -> dict[str, np.ndarray]:
    """Inputs of a step of two rows, without a binding."""
    feeds = {
        "input_ids": np.zeros((1, 2), np.int64),
        "state": np.array([4]),
        "cache_len": np.array([0]),
        "head_rows": np.array([0]),
    }
    layers = engine.cache.array.reshape(-1, 1, *engine.cache.array.shape[2:])
    return feeds | dict(zip([f"{kind}_{i}" for i in range(8) for kind in "kv"], layers, strict=True))


def test_onnxruntime_does_not_complain_of_a_copied_cache(
    tinypy_bundle: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "FATAL", WARNING)
    bundle = standard(open_bundle(tinypy_bundle))
    model = runtime.Model(bundle, OnnxRuntimeEngine(bundle, EngineOptions(threads=1)))
    model.generate("def f(x):\n" * 20, max_new_tokens=160)  # grows the cache on the way
    output = capfd.readouterr()
    assert "in-place" not in output.err + output.out
    assert output.err == ""


def test_the_warning_that_is_looked_for_exists(
    tinypy_bundle: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "FATAL", WARNING)
    engine = OnnxRuntimeEngine(standard(open_bundle(tinypy_bundle)), EngineOptions(threads=1))
    engine.restart(4)
    engine._session.run(None, feeds_of(engine))
    assert "in-place optimization not activated" in capfd.readouterr().err


def test_a_step_allocates_nothing_large(tinypy_bundle: Path) -> None:
    model = runtime.load(tinypy_bundle, threads=1)
    model.generate("import os\n", max_new_tokens=60)
    stream = model.stream("import os\n", max_new_tokens=60)
    for _ in range(10):
        next(stream)
    tracemalloc.start()
    try:
        for _ in range(10):
            before = tracemalloc.get_traced_memory()[0]
            tracemalloc.reset_peak()
            next(stream)
            grown = tracemalloc.get_traced_memory()[1] - before
            # One layer's keys are 64 KiB and a row's logits 32 KiB.
            assert grown < 16 * 1024, f"a step allocated {grown} bytes"
    finally:
        tracemalloc.stop()
        stream.close()


def test_the_cache_stays_between_generations_until_it_is_too_small(tinypy_bundle: Path) -> None:
    model = runtime.load(tinypy_bundle, threads=1)
    engine = model.engine
    assert isinstance(engine, OnnxRuntimeEngine)
    model.generate([5, 6, 7], max_new_tokens=40)
    array = engine.cache.array
    model.generate([5, 6, 7], max_new_tokens=40)
    assert engine.cache.array is array
    model.generate([5] * (MIN_CAPACITY + 1), max_new_tokens=2)
    assert engine.cache.array is not array
    assert engine.cache.capacity == 2 * MIN_CAPACITY


@pytest.mark.parametrize("reuse", [False, True])
def test_a_cache_whose_growth_was_interrupted_is_bound_again(
    tinypy_bundle: Path, monkeypatch: pytest.MonkeyPatch, reuse: bool
) -> None:
    """Ctrl-C comes when the memory is replaced and not bound yet; the next generation wants the same capacity."""
    model, long = runtime.load(tinypy_bundle, threads=1), [5] * (MIN_CAPACITY - 4)
    expected = model.generate(long + [6] * 8, max_new_tokens=10).token_ids
    become = KVCache._become

    def interrupted(cache: KVCache, *args: int) -> None:
        become(cache, *args)
        if args[0] > MIN_CAPACITY:
            raise KeyboardInterrupt

    with monkeypatch.context() as own:
        own.setattr(KVCache, "_become", interrupted)
        with pytest.raises(KeyboardInterrupt):
            model.generate(long, max_new_tokens=40)

    got = model.generate(long + [6] * 8, max_new_tokens=10, reuse=reuse)
    assert got.token_ids == expected
    assert got.stats.reused_tokens == (len(long) if reuse else 0)


@pytest.mark.parametrize("lose", ["commit", "growth"])
def test_rows_that_are_not_kept_show_in_the_tokens(
    wide: runtime.Model, monkeypatch: pytest.MonkeyPatch, lose: str
) -> None:
    """The fixture has teeth: with this tree accepted rows move, and this answer makes the cache grow."""
    prompt = wide.encode("import os\n") * 20
    plain = wide.generate(prompt, max_new_tokens=60, draft=False).token_ids
    assert wide.generate(prompt, max_new_tokens=60, draft=True).token_ids == plain
    if lose == "commit":
        monkeypatch.setattr(KVCache, "_move", lambda *_: None)
    else:
        resize = KVCache._resize
        monkeypatch.setattr(KVCache, "_resize", lambda cache, capacity, _: resize(cache, capacity, 0))

    assert wide.generate(prompt, max_new_tokens=60, draft=True).token_ids != plain


def test_tokens_are_the_same_however_many_prompt_lengths_came_before(tinypy_bundle: Path) -> None:
    model = runtime.load(tinypy_bundle, threads=1)
    expected = model.generate([5, 6], max_new_tokens=10).token_ids
    for length in range(3, 40):
        model.generate([7] * length, max_new_tokens=2)
    assert model.generate([5, 6], max_new_tokens=10).token_ids == expected


def test_stale_rows_of_an_earlier_generation_do_not_show(tinypy_bundle: Path) -> None:
    model = runtime.load(tinypy_bundle, threads=1)
    fresh = model.generate("class A:\n", max_new_tokens=30).token_ids
    model.generate("x = 1\n" * 10, max_new_tokens=30)
    assert model.generate("class A:\n", max_new_tokens=30).token_ids == fresh


def test_engine_names_and_threads_are_checked(tinypy_bundle: Path) -> None:
    bundle = open_bundle(tinypy_bundle)
    with pytest.raises(ArgumentError, match=r"no engine is called 'onyx'.*onnxruntime"):
        open_engine(bundle, "onyx")
    wrong: tuple[Any, ...] = (0, -1, 1.5, True, 100_000)
    for threads in wrong:
        with pytest.raises(ArgumentError, match="threads"):
            open_engine(bundle, threads=threads)
    assert "onnxruntime" in open_engine(bundle, "onnxruntime", threads=2).name
