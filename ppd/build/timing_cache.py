"""TensorRT's timing cache, kept between builds: a re-fold changes the mask and not one timed kernel.

One file per flavour, version and size of GPU, in the user's cache folder. The flavour `tensorrt` has it; TensorRT-RTX,
which times nothing at build time, has the same functions, which do nothing.
"""

import contextlib
import re
from pathlib import Path
from typing import Any

from ppd.errors import ExportError
from ppd.files import cache_folder, write_atomically
from ppd.runtime.engines.cuda.device import Gpu


def timing_cache_path(flavour: str, version: str, gpu: Gpu) -> Path:
    """The timing cache of a flavour, version and GPU: an Orin of each size has the same name."""
    name = f"timing-{flavour}-{version}-{gpu.name}-{gpu.num_multiprocessors}"
    return cache_folder() / (re.sub(r"[^\w.-]+", "-", name) + ".cache")


def use_timing_cache(config: Any, path: Path) -> None:
    """Load the kept timings into a builder configuration; nothing if there are none or they do not fit.

    Args:
        config: A `tensorrt.IBuilderConfig`.
    """
    content = b""
    with contextlib.suppress(OSError):
        content = path.read_bytes()
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def keep_timing_cache(config: Any, path: Path) -> None:
    """Write the timings of a finished build. A folder that cannot be written only makes the next build slower."""
    cache = config.get_timing_cache()
    if cache is None:
        return
    with contextlib.suppress(OSError, ExportError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, memoryview(cache.serialize()))
