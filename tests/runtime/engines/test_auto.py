"""Which engine "auto" takes, and what an engine that cannot be opened says."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest

from ppd.bundle import open_bundle
from ppd.errors import ArgumentError, EngineError
from ppd.precision import PRECISIONS
from ppd.runtime.engines import ENGINES, ENTRY_POINTS, EngineOptions, open_engine
from ppd.runtime.engines.onnxruntime.cuda import operators_on_cpu
from ppd.runtime.model import Model
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
    with pytest.raises(EngineError, match="cuda-python is not installed"):
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
    assert all(tuple(precision.computes_in) == tuple(ENGINES) for precision in PRECISIONS.values())


def test_another_package_may_bring_an_engine(
    tinypy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "theirs.py").write_text(
        "from ppd.runtime.engines.onnxruntime.cpu import OnnxRuntimeEngine\n"
        "class Theirs(OnnxRuntimeEngine):\n"
        "    def __init__(self, bundle, options):\n"
        "        super().__init__(bundle, options)\n"
        "        self.options = options\n"
    )
    record = tmp_path / "their_engine-1.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: their-engine\nVersion: 1.0\n")
    (record / "entry_points.txt").write_text(f"[{ENTRY_POINTS}]\ntheirs = theirs:Theirs\nbroken = not_there:open\n")
    monkeypatch.syspath_prepend(tmp_path)
    bundle = open_bundle(tinypy_bundle, verify=False)

    engine: Any = open_engine(bundle, "theirs", threads=1, exact=True)

    assert (engine.options.threads, engine.options.exact) == (1, True)
    assert len(Model(bundle, engine).generate([5, 6], max_new_tokens=3).token_ids) == 3
    with pytest.raises(EngineError, match="not_there is not installed; run pip install --force-reinstall their-engine"):
        open_engine(bundle, "broken")
    with pytest.raises(ArgumentError, match=r"no engine is called 'x'; expected auto or onnxruntime, .*, theirs"):
        open_engine(bundle, "x")


@pytest.mark.parametrize("exact", [False, True])
def test_exact_reaches_the_engine(tinypy_bundle: Path, monkeypatch: pytest.MonkeyPatch, exact: bool) -> None:
    asked = []
    entry = dataclasses.replace(ENGINES["onnxruntime"], opener="builtins:print")
    monkeypatch.setitem(ENGINES, "onnxruntime", entry)
    monkeypatch.setattr("builtins.print", lambda _, options: asked.append(options))
    open_engine(open_bundle(tinypy_bundle, verify=False), threads=2, exact=exact)

    assert asked == [EngineOptions(threads=2, exact=exact)]


def test_operators_on_the_cpu_are_found(tinypy_bundle: Path) -> None:
    options = ort.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = ort.InferenceSession(tinypy_bundle / GRAPH_FILE, options, providers=["CPUExecutionProvider"])

    assert {"Attention", "TensorScatter"} <= operators_on_cpu(session)
