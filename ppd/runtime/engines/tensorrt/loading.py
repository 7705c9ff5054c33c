"""Loading a built engine: TensorRT's log goes to Python's, the file is mapped, and what is in it is compared."""

import logging
import mmap
from types import ModuleType
from typing import Any

from ppd.bundle import Bundle
from ppd.errors import EngineError
from ppd.files import open_inside
from ppd.manifest import EngineInfo
from ppd.runtime.engines.tensorrt.built import engine_role
from ppd.signature import CACHE_LEN, HEAD_ROWS, INPUT_IDS, LOGITS, STATE, TOP_IDS

_logger = logging.getLogger(__name__)


class EngineLog:
    """What TensorRT says goes to `logging`; its own logger prints to standard output, among the text.

    Attributes:
        reason: The last error, "" if there was none.
    """

    def __init__(self) -> None:
        self.reason = ""

    def logger(self, trt: ModuleType) -> Any:
        """A logger for TensorRT."""
        ours = self
        levels = {
            trt.ILogger.INTERNAL_ERROR: logging.ERROR,
            trt.ILogger.ERROR: logging.ERROR,
            trt.ILogger.WARNING: logging.WARNING,
        }

        class Logger(trt.ILogger):  # type: ignore[name-defined, misc]  # chosen at run time
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                level = levels.get(severity, logging.DEBUG)
                if level == logging.ERROR:
                    ours.reason = message
                _logger.log(level, "TensorRT: %s", message)

        return Logger()

    def because(self) -> str:
        """The last error, as part of a message."""
        return f" ({' '.join(self.reason.split())!s:.200})" if self.reason else ""


def load_engine(trt: ModuleType, log: EngineLog, bundle: Bundle, info: EngineInfo) -> tuple[Any, Any]:
    """The runtime and the engine; the runtime has to outlive the engine.

    The file is mapped and not read: on a board a copy of it would take the memory that the GPU's copy needs.

    Raises:
        EngineError: TensorRT does not start or does not load the engine, or the engine is not what its record says.
    """
    try:
        runtime = trt.Runtime(log.logger(trt))
    except TypeError as error:  # all that TensorRT's Python module says of a NULL
        raise EngineError(
            f"{info.flavour} {trt.__version__} does not start{log.because()}; check the driver with nvidia-smi, on a "
            "Jetson that TensorRT and JetPack are of one release (dpkg -l | grep -e tensorrt -e nvidia-jetpack)"
        ) from error
    name = bundle.manifest.files[engine_role(info.key)].path
    try:
        with open_inside(bundle.folder, name) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            engine = runtime.deserialize_cuda_engine(content)
    except OSError as error:
        raise EngineError(f"cannot read {bundle.folder / name} ({error.strerror}); copy the bundle again") from error
    if engine is None:
        raise EngineError(
            f"{info.flavour} {trt.__version__} cannot load the engine {info.key}, out of memory or damaged"
            f"{log.because()}; close other programs, or run ppd build {bundle.folder} --engine {info.flavour} --force"
        )
    return runtime, engine


def require_tensors(trt: ModuleType, engine: Any, info: EngineInfo, names: list[str]) -> None:
    """Refuse an engine that has other tensors or types than the record says, or that does not write in place."""
    suffix = "new" if info.lowered else "out"
    expected = {INPUT_IDS, STATE, CACHE_LEN, HEAD_ROWS, TOP_IDS, LOGITS, *names, *(f"{n}_{suffix}" for n in names)}
    found = {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
    again = "run ppd build again with --force"
    if found != expected:
        raise EngineError(f"the engine {info.key} differs in the tensors {sorted(found ^ expected)[:4]}; {again}")
    for name in (INPUT_IDS, STATE, CACHE_LEN, HEAD_ROWS, TOP_IDS):
        if engine.get_tensor_dtype(name) != trt.DataType.INT64:
            raise EngineError(
                f"the engine {info.key} has {name} as {engine.get_tensor_dtype(name)}, not int64; {again}"
            )
    for name in [] if info.lowered else names:
        if engine.get_aliased_input_tensor(f"{name}_out") != name:
            raise EngineError(f"the engine {info.key} does not write {name} in place; {again}")
