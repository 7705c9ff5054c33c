"""TensorRT-RTX compiles kernels on the GPU that runs them: all of them before a step, and kept from run to run.

By itself it runs slow kernels that fit every shape and compiles better ones meanwhile. A CUDA graph would keep the slow
ones for ever, and a calibration would measure them.
"""

import contextlib
import logging
from pathlib import Path
from types import ModuleType
from typing import Any

from ppd.errors import EngineError, ExportError
from ppd.files import cache_folder, write_atomically
from ppd.manifest import EngineInfo

_logger = logging.getLogger(__name__)


class Kernels:
    """The runtime configuration that an engine's contexts are made with, and its compiled kernels on disk.

    Args:
        engine: A `tensorrt_rtx.ICudaEngine`.
        path: The file that keeps the kernels, in the user's cache folder.
    """

    def __init__(self, trt: ModuleType, engine: Any, path: Path) -> None:
        self.config = engine.create_runtime_config()
        self.config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        self.config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        self._path, self._num_bytes = path, 0
        self._cache = self.config.create_runtime_cache()
        with contextlib.suppress(OSError):
            content = path.read_bytes()
            if self._cache.deserialize(content):  # of another GPU, driver or version it is refused, and made anew
                self._num_bytes = len(content)
        if not self.config.set_runtime_cache(self._cache):
            raise EngineError(f"TensorRT-RTX {trt.__version__} takes no cache of its kernels; install another version")

    def keep(self) -> None:
        """Write the kernels, if there are new ones. A folder that cannot be written makes the next start slower."""
        content = memoryview(self._cache.serialize())
        if content.nbytes == self._num_bytes:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, content)
        except (OSError, ExportError) as error:
            _logger.info("the compiled kernels are not kept: %s", error)
        self._num_bytes = content.nbytes


def kernels_of(trt: ModuleType, engine: Any, info: EngineInfo) -> Kernels | None:
    """The kernels of an engine; None for TensorRT, which has compiled them when it built."""
    if not hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
        return None
    return Kernels(trt, engine, cache_folder() / f"kernels-{info.key}.cache")
