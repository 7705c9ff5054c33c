"""ONNX Runtime on a GPU: what needs none, and its steps on imitated CUDA, computed by the CPU provider."""

import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest

from ppd.bundle import Bundle, open_bundle
from ppd.errors import EngineError
from ppd.runtime import Model
from ppd.runtime.check import check_engine
from ppd.runtime.engines.onnxruntime import cuda as onnxruntime_cuda
from ppd.runtime.engines.onnxruntime.cpu import session_with_tree
from ppd.runtime.engines.onnxruntime.cuda import OnnxRuntimeCudaEngine
from ppd.runtime.engines.shapes import shapes_of
from ppd.runtime.recording import load_recording
from ppd.signature import GRAPH_FILE
from tests.fakes.gpu import FakeGpu, install
from tests.same_tokens import require_same_tokens

PROMPT = list(range(5, 25))


@pytest.mark.skipif("CUDAExecutionProvider" in ort.get_available_providers(), reason="the provider may load")
def test_a_provider_that_does_not_load_is_not_taken_for_a_graph_that_does_not(tinypy_bundle: Path) -> None:
    with pytest.raises(EngineError, match=r"^the CUDAExecutionProvider .* does not load; .*\"ppd-edge\[cuda\]\""):
        onnxruntime_cuda._open_session(open_bundle(tinypy_bundle, verify=False), 0)


class _Recording:
    """A session of the CPU provider that counts the steps of each CUDA graph, and fails on some."""

    def __init__(self, session: ort.InferenceSession, fails: Callable[[str], bool]) -> None:
        self._session, self._fails = session, fails
        self.graphs: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def get_provider_graph_assignment_info(self) -> list[Any]:
        return []

    def run_with_iobinding(self, io: Any, options: ort.RunOptions) -> None:
        graph = options.get_run_config_entry("gpu_graph_id")
        if self._fails(graph):
            raise RuntimeError("operation not permitted when stream is capturing")
        self.graphs[graph] += 1
        self._session.run_with_iobinding(io)


class _Provider:
    """ONNX Runtime's CUDA provider; `cannot_open` and `cannot_record` say what it refuses."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> None:
        self.cannot_open: Callable[[bool], bool] = lambda _records: False
        self.cannot_record: Callable[[str], bool] = lambda _graph: False
        self.sessions: list[_Recording] = []
        install(monkeypatch, FakeGpu(bundle))
        monkeypatch.setattr(onnxruntime_cuda, "PROVIDER", "CPUExecutionProvider")
        monkeypatch.setattr(onnxruntime_cuda, "_DEVICE", ("cpu", 0))
        monkeypatch.setattr(onnxruntime_cuda, "_session", self.open)

    def open(self, bundle: Bundle, _stream: int, *, records: bool) -> _Recording:
        if self.cannot_open(records):
            raise RuntimeError("This session cannot use the graph capture feature")
        session = session_with_tree(bundle, GRAPH_FILE, ort.SessionOptions(), ["CPUExecutionProvider"])
        self.sessions.append(_Recording(session, lambda graph: records and self.cannot_record(graph)))
        return self.sessions[-1]


@pytest.fixture
def bundle(tinypy_bundle: Path) -> Bundle:
    return open_bundle(tinypy_bundle, verify=False)


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> _Provider:
    return _Provider(monkeypatch, bundle)


@pytest.mark.parametrize("refused", ["nothing", "opening", "recording"])
def test_it_answers_as_the_cpu_does_whether_or_not_steps_are_recorded(
    refused: str, provider: _Provider, bundle: Bundle, tinypy: Model, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    if refused == "opening":
        provider.cannot_open = lambda records: records
    elif refused == "recording":
        provider.cannot_record = lambda _graph: True

    engine = OnnxRuntimeCudaEngine(bundle)
    check_engine(engine, bundle, load_recording(bundle))

    assert engine.records_graphs == (refused == "nothing")
    assert ("record" in caplog.text) == (refused != "nothing")
    require_same_tokens(Model(bundle, engine), tinypy, PROMPT, 40)


def test_a_shape_of_decoding_has_a_graph_in_each_bucket_and_prefill_has_none(
    provider: _Provider, bundle: Bundle
) -> None:
    engine = OnnxRuntimeCudaEngine(bundle)
    graphs = provider.sessions[-1].graphs
    model = Model(bundle, engine)
    graphs.clear()
    model.generate(PROMPT, max_new_tokens=8, draft=False)
    first = dict(graphs)
    model.generate(PROMPT, max_new_tokens=200, draft=False)  # into the next bucket

    assert first["-1"] == 1
    (number,) = set(first) - {"-1"}
    assert graphs[number] > first[number]  # the same graph again, after the cache was larger in between
    assert len(graphs) == 3

    graphs.clear()
    model.generate(PROMPT, max_new_tokens=20, draft=False)
    assert set(graphs) == {"-1", number}
    assert (1, 1) in shapes_of(bundle)


def test_a_graph_without_a_kernel_is_refused_by_the_operators_name(
    provider: _Provider, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime_cuda, "operators_on_cpu", lambda _: {"Shape", "TopK"})

    with pytest.raises(EngineError, match=r"no CUDA kernel for TopK in .*model\.onnx; upgrade it"):
        OnnxRuntimeCudaEngine(bundle)
