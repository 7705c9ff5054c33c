"""TensorRT's timing cache, kept between builds: a re-fold changes the mask and not one timed kernel.

One file per flavour, version and GPU, in the user's cache folder. The flavour `tensorrt` has it; TensorRT-RTX, which
times nothing at build time, has the same functions, which do nothing.
"""

import contextlib
import os
import re
from pathlib import Path
from typing import Any

from ppd.errors import ExportError
from ppd.files import write_atomically


def timing_cache_path(flavour: str, version: str, gpu: str) -> Path:
    """Where the timings of a flavour and version on a GPU lie: `$XDG_CACHE_HOME/ppd`, by default `~/.cache/ppd`."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "ppd" / (re.sub(r"[^\w.-]+", "-", f"timing-{flavour}-{version}-{gpu}") + ".cache")


def use_timing_cache(config: Any, path: Path) -> None:
    """Give a builder configuration the timings kept so far; none, where there are none or they do not fit.

    Args:
        config: A `tensorrt.IBuilderConfig`.
        path: See `timing_cache_path`.
    """
    content = b""
    with contextlib.suppress(OSError):
        content = path.read_bytes()
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)


def keep_timing_cache(config: Any, path: Path) -> None:
    """Write the timings of a build that is done. A folder that cannot be written only costs the next build's time."""
    cache = config.get_timing_cache()
    if cache is None:
        return
    with contextlib.suppress(OSError, ExportError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, memoryview(cache.serialize()))
