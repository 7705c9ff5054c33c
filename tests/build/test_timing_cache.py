"""TensorRT's timings are kept between builds, per flavour, version and GPU, and never in the way of a build."""

from pathlib import Path
from typing import Any

import pytest

from ppd.build.timing_cache import keep_timing_cache, timing_cache_path, use_timing_cache
from ppd.runtime.engines.cuda.device import Gpu

trt = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed")
GPU = Gpu(
    name="NVIDIA H100 80GB/HBM3",
    compute_capability="9.0",
    num_multiprocessors=132,
    integrated=False,
    free_bytes=0,
    total_bytes=0,
    cuda="13.0",
)
# There they do nothing, but they are the same functions as TensorRT's.
pytestmark = pytest.mark.filterwarnings("ignore:.*no-ops in TensorRT-RTX:DeprecationWarning")


@pytest.fixture
def config() -> Any:
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    return builder.create_builder_config()


def test_the_file_names_flavour_version_and_gpu_in_the_users_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    path = timing_cache_path("tensorrt", "10.16.1", GPU)

    assert path == tmp_path / "ppd" / "timing-tensorrt-10.16.1-NVIDIA-H100-80GB-HBM3-132.cache"


def test_timings_come_back_to_the_next_configuration(config: Any, tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.cache"
    use_timing_cache(config, path)
    keep_timing_cache(config, path)
    written = path.read_bytes()
    assert written

    use_timing_cache(config, path)

    assert bytes(config.get_timing_cache().serialize()) == written


@pytest.mark.parametrize("content", [b"damaged", b""])
def test_timings_that_are_damaged_are_begun_again(config: Any, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.cache"
    path.write_bytes(content)

    use_timing_cache(config, path)
    keep_timing_cache(config, path)

    assert len(path.read_bytes()) > len(content)


def test_a_folder_that_cannot_be_made_stops_no_build(config: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "a.cache"

    use_timing_cache(config, path)
    keep_timing_cache(config, path)

    assert not path.exists()
