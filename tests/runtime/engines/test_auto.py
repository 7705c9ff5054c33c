"""Which engine "auto" takes, and what an engine that cannot be opened says."""

import dataclasses
import sys
from pathlib import Path

import onnxruntime as ort
import pytest

from ppd.bundle import open_bundle
from ppd.errors import EngineError
from ppd.runtime.engines import ENGINES, OPENERS, open_engine
from ppd.runtime.engines.onnxruntime.cuda import operators_on_cpu
from ppd.signature import GRAPH_FILE
from ppd.targets import ENGINE_PRECISIONS, PRECISIONS


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


def test_every_engine_has_its_precisions_and_none_is_unknown_to_the_export() -> None:
    assert tuple(ENGINE_PRECISIONS) == ENGINES == tuple(OPENERS)
    assert {precision for known in ENGINE_PRECISIONS.values() for precision in known} <= set(PRECISIONS)


@pytest.mark.parametrize("engine", ["auto", *ENGINES])
def test_a_precision_that_an_engine_cannot_run_is_refused_with_those_it_can(engine: str, tinypy_bundle: Path) -> None:
    bundle = open_bundle(tinypy_bundle, verify=False)
    bundle = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, precision="fp8"))
    name = "onnxruntime" if engine == "auto" else engine

    with pytest.raises(EngineError) as refused:
        open_engine(bundle, engine, threads=1)

    expected = f"the bundle is in fp8, the engine {name} runs {', '.join(ENGINE_PRECISIONS[name])}; "
    assert str(refused.value) == f"{expected}export with another --precision"


def test_the_refusal_names_the_engines_that_can(tinypy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINE_PRECISIONS, "torch", ("int8",))

    with pytest.raises(EngineError, match=r"is in fp32, the engine torch runs int8; .*, or use onnxruntime or "):
        open_engine(open_bundle(tinypy_bundle, verify=False), "torch")


def test_operators_on_the_cpu_are_found(tinypy_bundle: Path) -> None:
    options = ort.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = ort.InferenceSession(tinypy_bundle / GRAPH_FILE, options, providers=["CPUExecutionProvider"])

    assert {"Attention", "TensorScatter"} <= operators_on_cpu(session)
