"""Every GPU engine on real hardware: build, the recorded reference, and the CPU engine's tokens. `make test-gpu`."""

from pathlib import Path

import pytest

from ppd import runtime
from ppd.build.engine import build
from ppd.bundle import open_bundle
from ppd.errors import EngineError
from ppd.runtime.engines import open_engine
from ppd.runtime.engines.cuda.device import current_gpu
from ppd.runtime.engines.tensorrt.built import FLAVOURS, import_tensorrt
from tests.copies import link_bundle
from tests.same_tokens import require_same_tokens

pytestmark = pytest.mark.gpu
PROMPT = list(range(5, 25))


def bundle_for(engine: str, bundle: Path, folder: Path) -> Path:
    """A copy of the bundle that the engine can open; skips where it is not installed."""
    try:
        current_gpu()
        copy = link_bundle(bundle, folder)
        if engine in FLAVOURS:
            import_tensorrt(engine)
    except EngineError as error:
        pytest.skip(str(error))
    if engine == "onnxruntime-cuda":
        onnxruntime = pytest.importorskip("onnxruntime")
        if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
            pytest.skip("this onnxruntime has no CUDA provider")
    if engine == "torch" and not pytest.importorskip("torch").cuda.is_available():
        pytest.skip("this torch has no CUDA")
    if engine in FLAVOURS:
        build(copy, engine)
    return copy


@pytest.mark.parametrize("engine", ["tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "torch"])
def test_it_answers_as_the_reference_and_the_cpu_do(engine: str, tinypy_bundle: Path, tmp_path: Path) -> None:
    folder = bundle_for(engine, tinypy_bundle, tmp_path / "bundle")

    info = runtime.check_bundle(folder, engine=engine)
    print(f"{info.engine}: max difference {info.max_difference:.2g}, tolerance {info.tolerance:.2g}")

    on_gpu, on_cpu = (runtime.load(folder, engine=name) for name in (engine, "onnxruntime"))
    require_same_tokens(on_gpu, on_cpu, PROMPT, 48)


def test_auto_takes_the_built_engine(tinypy_bundle: Path, tmp_path: Path) -> None:
    folder = bundle_for("tensorrt", tinypy_bundle, tmp_path / "bundle")

    assert open_engine(open_bundle(folder)).name.startswith("tensorrt ")
