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


def new_logger(trt: ModuleType) -> Any:
    """A logger for TensorRT that feeds `logging`; TensorRT's own prints to standard output, among the text.

    It has the last error in `reason`, "" if there was none.
    """
    levels = {
        trt.ILogger.INTERNAL_ERROR: logging.ERROR,
        trt.ILogger.ERROR: logging.ERROR,
        trt.ILogger.WARNING: logging.WARNING,
    }

    class Logger(trt.ILogger):  # type: ignore[name-defined, misc]  # chosen at run time
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.reason = ""

        def log(self, severity: Any, message: str) -> None:
            level = levels.get(severity, logging.DEBUG)
            if level == logging.ERROR:
                self.reason = message
            _logger.log(level, "TensorRT: %s", message)

    return Logger()


def load_engine(trt: ModuleType, logger: Any, bundle: Bundle, info: EngineInfo) -> tuple[Any, Any]:
    """The runtime and the engine; the runtime has to outlive the engine.

    The file is mapped and not read: on a board a copy of it would take the memory that the GPU's copy needs.

    Raises:
        EngineError: TensorRT does not start or does not load the engine, or the engine is not what its record says.
    """
    try:
        runtime = trt.Runtime(logger)
    except TypeError as error:  # all that TensorRT's Python module says of a NULL
        raise EngineError(
            f"{info.flavour} {trt.__version__} does not start{because(logger)}; check the driver with nvidia-smi, on a "
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
            f"{because(logger)}; close other programs, or run ppd build {bundle.folder} --engine {info.flavour} --force"
        )
    return runtime, engine


def because(logger: Any) -> str:
    """TensorRT's last error, as part of a message."""
    return f" ({' '.join(logger.reason.split())!s:.200})" if logger.reason else ""


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
