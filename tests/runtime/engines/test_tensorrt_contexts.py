"""Contexts of a TensorRT engine on a GPU that is not there: which steps share one, what is recorded, how it ends."""

import gc
import logging
import mmap
from pathlib import Path

import numpy as np
import pytest

from ppd.bundle import Bundle, open_bundle
from ppd.errors import EngineError
from ppd.runtime import Model
from ppd.runtime.check import check_engine
from ppd.runtime.engines import open_engine
from ppd.runtime.engines.cuda.buffers import LOGITS_AT_ONCE
from ppd.runtime.engines.tensorrt.engine import TensorRTEngine
from ppd.runtime.recording import load_recording
from ppd.signature import MIN_CAPACITY, causal_state
from tests.fakes.gpu import FakeGpu, install, with_engine

PROMPT = list(range(5, 25))


@pytest.fixture
def bundle(tinypy_bundle: Path) -> Bundle:
    return open_bundle(tinypy_bundle, verify=False)


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "ppd"


def opened(gpu: FakeGpu, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, **changes: object) -> TensorRTEngine:
    install(monkeypatch, gpu)
    flavour = "tensorrt-rtx" if gpu.rtx else "tensorrt"
    engine = open_engine(with_engine(bundle, lowered=gpu.lowered, flavour=flavour, **changes), flavour)
    assert isinstance(engine, TensorRTEngine)
    return engine


def run(engine: TensorRTEngine, bundle: Bundle, num_rows: int, at: int = 0, num_head_rows: int | None = None) -> None:
    state = causal_state(bundle.manifest.prompt_tokens.count)
    first = 0 if num_head_rows is None else num_rows - num_head_rows
    engine.run(np.full(num_rows, 5), state, at, np.arange(first, num_rows))


def test_short_prompts_share_one_context_and_leave_those_of_decoding(
    monkeypatch: pytest.MonkeyPatch, bundle: Bundle
) -> None:
    gpu = FakeGpu(bundle)
    engine = opened(gpu, bundle, monkeypatch, max_decode_rows=40, best_decode_rows=40)
    assert gpu.plan_type is mmap.mmap  # and no copy of it
    for _ in range(2):
        run(engine, bundle, 1)
    made = gpu.calls["create_execution_context"]

    for num_rows in range(8, 34):
        run(engine, bundle, num_rows, num_head_rows=4)
    run(engine, bundle, 1)

    assert gpu.calls["create_execution_context"] == made == 2
    assert gpu.calls["cuGraphExecDestroy"] == 0


def test_the_new_rows_of_a_lowered_engine_go_into_the_cache_in_one_copy(
    monkeypatch: pytest.MonkeyPatch, bundle: Bundle
) -> None:
    gpu = FakeGpu(bundle, lowered=True)
    engine = opened(gpu, bundle, monkeypatch)
    packed = 256 // (gpu.model.num_kv_heads * gpu.model.head_dim * 4) or 1

    for num_rows in (1, 4 * packed):
        gpu.calls.clear()
        run(engine, bundle, num_rows)
        assert gpu.calls["cuMemcpy2DAsync"] == 1


def test_an_engine_with_buckets_grows_and_shrinks_in_one_memory(
    monkeypatch: pytest.MonkeyPatch, bundle: Bundle, tinypy: Model
) -> None:
    gpu = FakeGpu(bundle, lowered=True, buckets=True)
    engine = opened(gpu, bundle, monkeypatch)
    model = Model(bundle, engine)
    allocated = gpu.calls["cuMemAlloc"]
    long = PROMPT * 12

    for prompt, num_new in ((PROMPT, 20), (long, 60), (long[:200], 20), (PROMPT, 130)):
        got = model.generate(prompt, max_new_tokens=num_new, draft=True, reuse=True)
        assert got.token_ids == tinypy.generate(prompt, max_new_tokens=num_new).token_ids

    assert engine.cache.capacity == 2 * MIN_CAPACITY
    assert gpu.calls["cuMemAlloc"] == allocated
    check_engine(engine, bundle, load_recording(bundle))


def test_ctrl_c_while_the_cache_is_laid_out_anew_loses_no_row(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> None:
    gpu = FakeGpu(bundle, lowered=True, buckets=True)
    engine = opened(gpu, bundle, monkeypatch)
    engine.restart(100)
    heads, dim = gpu.model.num_kv_heads, gpu.model.head_dim
    arrays = [gpu.array(at, (heads, MIN_CAPACITY, dim), np.float32) for at in engine.cache.addresses]
    for i, array in enumerate(arrays):
        array[:] = np.random.default_rng(i).random(array.shape, np.float32)
    before = [array[:, :100].copy() for array in arrays]
    copy, left = gpu.copy, [5]

    def interrupted(to: int, source: int, size: int) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        copy(to, source, size)

    monkeypatch.setattr(gpu, "copy", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.restart(200, 100)
    engine.restart(200, 100)

    assert engine.cache.capacity == 2 * MIN_CAPACITY
    for at, old in zip(engine.cache.addresses, before, strict=True):
        now = gpu.array(at, (heads, 2 * MIN_CAPACITY, dim), np.float32)
        assert np.array_equal(now[:, :100], old)


def test_logits_are_fetched_a_few_rows_at_once(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> None:
    gpu = FakeGpu(bundle)
    engine = opened(gpu, bundle, monkeypatch)
    run(engine, bundle, LOGITS_AT_ONCE + 2)
    gpu.calls.clear()

    rows = [engine.logits(index) for index in range(LOGITS_AT_ONCE + 2)]

    assert gpu.calls["cuMemcpyDtoHAsync"] == 2
    assert all(np.array_equal(row, engine.logits(index)) for index, row in enumerate(rows))
    run(engine, bundle, 1)
    assert not np.array_equal(engine.logits(0), rows[-1])


def test_rtx_compiles_before_it_runs_and_keeps_its_kernels(
    monkeypatch: pytest.MonkeyPatch, bundle: Bundle, cache_folder: Path
) -> None:
    gpu = FakeGpu(bundle, rtx=True)
    engine = opened(gpu, bundle, monkeypatch)
    for _ in range(3):
        run(engine, bundle, 1)
    assert gpu.calls["cuGraphLaunch"] == engine.contexts.num_graphs + 1 == 2

    engine.restart(20)
    (kept,) = cache_folder.glob("kernels-*.cache")
    written = kept.read_bytes()
    del engine
    gc.collect()
    opened(gpu, bundle, monkeypatch)

    assert gpu.kernels == written
    kept.write_bytes(b"of another driver")
    run(opened(gpu, bundle, monkeypatch), bundle, 1)
    assert kept.read_bytes() == written


def test_rtx_is_asked_before_a_step_is_recorded(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> None:
    gpu = FakeGpu(bundle, rtx=True)
    gpu.capturable = False
    engine = opened(gpu, bundle, monkeypatch)

    for _ in range(3):
        run(engine, bundle, 1)

    assert gpu.calls["cuStreamBeginCapture"] == engine.contexts.num_graphs == 0
    assert "not capturable" in engine.contexts.why_no_graph


def test_contexts_engine_and_runtime_go_before_the_memory_that_they_use(
    monkeypatch: pytest.MonkeyPatch, bundle: Bundle
) -> None:
    gpu = FakeGpu(bundle)
    engine = opened(gpu, bundle, monkeypatch)
    run(engine, bundle, 1)
    gpu.closed.clear()

    del engine

    assert gpu.closed == ["context", "context", "engine", "runtime", "stream"]


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        ("set_optimization_profile_async", "cannot switch to profile 0"),
        ("set_tensor_address", "does not take memory for"),
        ("set_input_shape", r"does not take \(1, 1\) for input_ids"),
        ("deserialize_cuda_engine", r"cannot load the engine \w+, out of memory or damaged \(the plan is damaged\)"),
    ],
)
def test_what_tensorrts_module_raises_is_one_line(
    monkeypatch: pytest.MonkeyPatch, bundle: Bundle, refused: str, message: str
) -> None:
    gpu = FakeGpu(bundle)
    gpu.refused.add(refused)

    with pytest.raises(EngineError, match=f"{message}.*run ppd build"):
        run(opened(gpu, bundle, monkeypatch), bundle, 1)


def test_a_runtime_that_does_not_start_is_one_line(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> None:
    gpu = FakeGpu(bundle)
    gpu.refused.add("Runtime")

    with pytest.raises(EngineError, match=r"tensorrt 10.99.0 does not start; check the driver"):
        opened(gpu, bundle, monkeypatch)
    assert not gpu.memory


def test_tensorrts_messages_are_logged_and_never_printed(
    monkeypatch: pytest.MonkeyPatch,
    bundle: Bundle,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    gpu = FakeGpu(bundle)
    opened(gpu, bundle, monkeypatch)
    with caplog.at_level(logging.INFO):
        for severity, message in enumerate(("worst", "bad", "odd", "chatter")):
            gpu.logger.log(severity, message)

    levels = [logging.ERROR, logging.ERROR, logging.WARNING]
    assert [
        (record.levelno, record.getMessage()) for record in caplog.records if "TensorRT:" in record.getMessage()
    ] == [(level, f"TensorRT: {text}") for level, text in zip(levels, ("worst", "bad", "odd"), strict=True)]
    assert capsys.readouterr().out == ""
