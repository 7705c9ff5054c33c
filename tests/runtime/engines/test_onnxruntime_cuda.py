"""ONNX Runtime on a GPU: what needs none."""

from pathlib import Path

import onnxruntime as ort
import pytest

from ppd.bundle import open_bundle
from ppd.errors import EngineError
from ppd.runtime.engines.onnxruntime import cuda as onnxruntime_cuda


@pytest.mark.skipif("CUDAExecutionProvider" in ort.get_available_providers(), reason="the provider may load")
def test_a_provider_that_does_not_load_is_not_taken_for_a_graph_that_does_not(tinypy_bundle: Path) -> None:
    with pytest.raises(EngineError, match=r"^the CUDAExecutionProvider .* does not load; .*\"ppd-edge\[cuda\]\""):
        onnxruntime_cuda._open_session(open_bundle(tinypy_bundle, verify=False))
