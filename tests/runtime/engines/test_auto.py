"""Which engine "auto" takes, and what an engine that cannot be opened says."""

import sys
from pathlib import Path

import onnxruntime as ort
import pytest

from ppd.bundle import open_bundle
from ppd.errors import EngineError
from ppd.precision import PRECISIONS
from ppd.runtime.engines import ENGINES, OPENERS, open_engine
from ppd.runtime.engines.onnxruntime.cuda import operators_on_cpu
from ppd.signature import GRAPH_FILE


def test_auto_without_gpu_engines_is_the_cpu(tinypy_bundle: Path) -> None:
    assert open_engine(open_bundle(tinypy_bundle, verify=False), threads=1).name.endswith("(CPU)")


def test_auto_goes_on_to_the_cpu_where_the_gpu_does_not_answer(
    tinypy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    bundle = open_bundle(tinypy_bundle, verify=False)

    assert open_engine(bundle, threads=1).name.endswith("(CPU)")
    with pytest.raises(EngineError, match="cuda-python cannot be imported"):
        open_engine(bundle, "onnxruntime-cuda")


def test_onnxruntime_cuda_without_the_provider_says_what_to_install(tinypy_bundle: Path) -> None:
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this onnxruntime has the CUDA provider")

    with pytest.raises(EngineError, match=r"has no CUDAExecutionProvider.*ppd-edge\[cuda\]"):
        open_engine(open_bundle(tinypy_bundle, verify=False), "onnxruntime-cuda")


def test_a_missing_torch_is_named(tinypy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "ppd.torch_engine.engine", raising=False)

    with pytest.raises(EngineError, match=r"PyTorch is not installed; run pip install \"ppd-edge\[export\]\""):
        open_engine(open_bundle(tinypy_bundle, verify=False), "torch")


def test_every_precision_says_what_every_engine_computes_in() -> None:
    assert all(tuple(precision.computes_in) == ENGINES == tuple(OPENERS) for precision in PRECISIONS.values())


def test_operators_on_the_cpu_are_found(tinypy_bundle: Path) -> None:
    options = ort.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = ort.InferenceSession(tinypy_bundle / GRAPH_FILE, options, providers=["CPUExecutionProvider"])

    assert {"Attention", "TensorScatter"} <= operators_on_cpu(session)
