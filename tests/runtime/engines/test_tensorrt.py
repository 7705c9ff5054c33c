"""The TensorRT engine's own logic, on a GPU that is not there: binding, cache, graphs, errors."""

from pathlib import Path

import numpy as np
import pytest

from ppd.bundle import Bundle, open_bundle
from ppd.errors import EngineError
from ppd.runtime import Model
from ppd.runtime.check import check_engine
from ppd.runtime.engines import open_engine
from ppd.runtime.engines.shapes import shapes_of
from ppd.runtime.engines.tensorrt.engine import TensorRTEngine, _float32_from
from ppd.runtime.recording import load_recording
from ppd.signature import causal_state, max_capacity
from tests.fakes.driver import NAME
from tests.fakes.gpu import FakeGpu, install, with_engine
from tests.fakes.tensorrt import VERSION

PROMPT = list(range(5, 25))


@pytest.fixture
def bundle(tinypy_bundle: Path) -> Bundle:
    return open_bundle(tinypy_bundle, verify=False)


@pytest.fixture(params=[False, True], ids=["aliased", "lowered"])
def lowered(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def test_every_phase_agrees_with_the_reference(monkeypatch: pytest.MonkeyPatch, bundle: Bundle, lowered: bool) -> None:
    gpu = FakeGpu(bundle, lowered=lowered)
    install(monkeypatch, gpu)
    engine = open_engine(with_engine(bundle, lowered=lowered), "tensorrt")

    info = check_engine(engine, bundle, load_recording(bundle))

    print(f"max difference {info.max_difference:.2g}")
    assert info.engine == f"tensorrt {VERSION} ({NAME})"
    assert gpu.calls["execute profile 0"] > 0
    assert gpu.calls["cuGraphLaunch"] > 0


def test_a_16_bit_engine_moves_rows_of_its_own_size_and_gives_logits_as_float32(
    monkeypatch: pytest.MonkeyPatch, bundle: Bundle, tinypy: Model, lowered: bool
) -> None:
    install(monkeypatch, FakeGpu(bundle, lowered=lowered, half=True))
    engine = open_engine(with_engine(bundle, lowered=lowered), "tensorrt")

    got = Model(bundle, engine).generate(PROMPT, max_new_tokens=24, draft=True)

    assert got.token_ids == tinypy.generate(PROMPT, max_new_tokens=24).token_ids
    logits = engine.logits(0)
    assert logits.dtype == np.float32
    assert np.array_equal(logits, logits.astype(np.float16))
    assert not np.array_equal(logits, np.zeros_like(logits))


def test_logits_of_each_type_are_read_as_what_they_are() -> None:
    values = np.array([1.0, -2.5, 0.0], np.float32)

    for name, stored in (
        ("FLOAT", values),
        ("HALF", values.astype(np.float16)),
        ("BF16", (values.view(np.uint32) >> 16).astype(np.uint16)),
    ):
        assert np.array_equal(_float32_from(stored.view(np.uint8), name), values)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_tokens_equal_the_cpu_engines(
    monkeypatch: pytest.MonkeyPatch, bundle: Bundle, tinypy: Model, lowered: bool, temperature: float
) -> None:
    install(monkeypatch, FakeGpu(bundle, lowered=lowered))
    opened = with_engine(bundle, lowered=lowered)
    model = Model(opened, open_engine(opened, "auto"))

    for draft in (False, True):
        got = model.generate(PROMPT, max_new_tokens=24, temperature=temperature, seed=3, draft=draft)
        expected = tinypy.generate(PROMPT, max_new_tokens=24, temperature=temperature, seed=3, draft=draft)
        assert got.token_ids == expected.token_ids


def test_a_step_allocates_nothing_and_is_one_graph(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> None:
    gpu = FakeGpu(bundle)
    install(monkeypatch, gpu)
    engine = open_engine(with_engine(bundle), "tensorrt")
    state = causal_state(bundle.manifest.prompt_tokens.count)
    for position in range(2):
        engine.run(np.array([5]), state, position, np.array([0]))
    before = gpu.calls.copy()

    engine.run(np.array([5]), state, 2, np.array([0]))

    assert dict(gpu.calls - before) == {"cuGraphLaunch": 1, "cuStreamSynchronize": 1}


@pytest.mark.parametrize("integrated", [True, False])
def test_inputs_and_ids_are_copied_where_the_gpu_has_memory_of_its_own(
    monkeypatch: pytest.MonkeyPatch, bundle: Bundle, tinypy: Model, integrated: bool
) -> None:
    gpu = FakeGpu(bundle, integrated=integrated)
    install(monkeypatch, gpu)
    engine = open_engine(with_engine(bundle), "tensorrt")

    got = Model(bundle, engine).generate(PROMPT, max_new_tokens=24, draft=True)

    assert got.token_ids == tinypy.generate(PROMPT, max_new_tokens=24).token_ids
    assert (gpu.calls["cuMemcpyHtoDAsync"] == 0) == integrated
    assert gpu.calls["cuMemcpyDtoHAsync"] > 0  # logits, on both


def test_a_step_that_cannot_be_captured_is_launched_plainly(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> None:
    gpu = FakeGpu(bundle)
    gpu.can_capture = False
    install(monkeypatch, gpu)
    engine = open_engine(with_engine(bundle), "tensorrt")

    for position in range(4):
        top_ids = engine.run(np.array([5]), causal_state(bundle.manifest.prompt_tokens.count), position, np.array([0]))

    assert np.all(top_ids >= 0)
    assert gpu.calls["cuStreamBeginCapture"] == 1
    assert gpu.calls["cuGraphLaunch"] == 0
    assert gpu.calls["execute profile 1"] == 4


def test_contexts_of_old_shapes_and_their_graphs_are_dropped(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> None:
    gpu = FakeGpu(bundle)
    install(monkeypatch, gpu)
    engine = open_engine(with_engine(bundle, max_decode_rows=40, best_decode_rows=40), "tensorrt")
    state = causal_state(bundle.manifest.prompt_tokens.count)

    for num_rows in range(17, 29):
        for _ in range(2):
            engine.run(np.full(num_rows, 5), state, 0, np.arange(num_rows))

    spare = [rows for rows in range(17, 29) if (rows, rows) not in shapes_of(bundle)]
    assert gpu.calls["cuGraphExecDestroy"] == len(spare) - 4 > 0


def test_an_engine_for_measuring_keeps_the_graphs_of_every_shape(
    monkeypatch: pytest.MonkeyPatch, bundle: Bundle
) -> None:
    gpu = FakeGpu(bundle)
    install(monkeypatch, gpu)
    engine = open_engine(with_engine(bundle, max_decode_rows=40), "tensorrt")
    state = causal_state(bundle.manifest.prompt_tokens.count)

    for _ in range(3):
        for num_rows in range(1, 29):
            engine.run(np.full(num_rows, 5), state, 0, np.arange(num_rows))

    assert gpu.calls["cuGraphExecDestroy"] == 0
    assert gpu.calls["cuGraphLaunch"] == 2 * 28


def test_commit_equals_a_naive_cache(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> None:
    gpu = FakeGpu(bundle)
    install(monkeypatch, gpu)
    engine = open_engine(with_engine(bundle), "tensorrt")
    assert isinstance(engine, TensorRTEngine)
    shape = (1, gpu.model.num_kv_heads, gpu.capacity, gpu.model.head_dim)
    arrays = [gpu.array(address, shape, np.float32) for address in engine.cache.addresses]
    generator = np.random.default_rng(0)
    for array in arrays:
        array[:] = generator.random(shape)
    expected = [array.copy() for array in arrays]
    for array in expected:
        array[:, :, 10:13] = array[:, :, [10, 12, 15]]
    gpu.calls.clear()

    engine.commit(10, [0, 2, 5])

    for got, naive in zip(arrays, expected, strict=True):
        np.testing.assert_array_equal(got, naive)
    assert gpu.calls["cuMemcpy2DAsync"] == 2  # one per moved row


def test_memory_is_given_back(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> None:
    gpu = FakeGpu(bundle)
    install(monkeypatch, gpu)
    engine = open_engine(with_engine(bundle), "tensorrt")
    assert gpu.memory

    del engine

    assert not gpu.memory


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compute_capability": "8.9"}, "compute capability 8.9"),
        ({"version": "9.0"}, "version 9.0"),
        ({"tree_sha256": "0"}, "another tree"),
        ({"capacity": 64}, "room for 64 rows"),
        ({"max_prefill_rows": 64, "capacity": 512 + 63}, "room for 575 rows, the context of 512 tokens needs 576"),
        ({"flavour": "tensorrt-rtx"}, "holds no tensorrt engine"),
    ],
)
def test_an_engine_that_does_not_fit_is_refused(
    monkeypatch: pytest.MonkeyPatch, bundle: Bundle, changes: dict[str, object], message: str
) -> None:
    install(monkeypatch, FakeGpu(bundle))

    with pytest.raises(EngineError, match=message) as error:
        open_engine(with_engine(bundle, **changes), "tensorrt")  # type: ignore[arg-type]

    assert "ppd build" in str(error.value)


def test_failures_of_the_device_are_one_line(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> None:
    gpu, opened = FakeGpu(bundle), with_engine(bundle)
    install(monkeypatch, gpu)
    gpu.limit = 1 << 16
    with pytest.raises(EngineError, match=r"MiB left for a KV cache of \d+ rows"):
        open_engine(opened, "tensorrt")
    gpu.has_driver = False
    with pytest.raises(EngineError, match=r"no GPU answers \(Failed to dlopen libcuda.so.1\)"):
        open_engine(opened, "tensorrt")
    gpu.has_driver, gpu.limit, gpu.aliased = True, 1 << 40, False
    with pytest.raises(EngineError, match="does not write k_0 in place"):
        open_engine(opened, "tensorrt")


def test_a_prompt_beyond_the_capacity_is_refused(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> None:
    install(monkeypatch, FakeGpu(bundle))
    engine = open_engine(with_engine(bundle), "tensorrt")

    with pytest.raises(EngineError, match="do not fit"):
        engine.restart(max_capacity(bundle.manifest.context) + 1)
