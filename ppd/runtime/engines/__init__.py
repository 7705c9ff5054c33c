"""Engines: what runs the graph.

A new one is a module beside `onnxruntime.py`, and a line in `OPENERS`.
The modules are imported when their engine is chosen, by name: the runtime itself needs none of them. `torch` lies in a
layer above, since it is the decoder that export traces.
"""

import importlib
import logging
import os

from ppd.bundle import Bundle
from ppd.errors import ArgumentError, EngineError
from ppd.runtime.engines.base import Engine
from ppd.runtime.engines.tensorrt.built import FLAVOURS

OPENERS = {
    "onnxruntime": "ppd.runtime.engines.onnxruntime.cpu:open_onnxruntime",
    "onnxruntime-cuda": "ppd.runtime.engines.onnxruntime.cuda:open_onnxruntime_cuda",
    "tensorrt": "ppd.runtime.engines.tensorrt.engine:open_tensorrt",
    "tensorrt-rtx": "ppd.runtime.engines.tensorrt.engine:open_tensorrt_rtx",
    "torch": "ppd.torch_engine.engine:open_torch",
}
"""Engine → module and function that opens it, called with the bundle and the number of threads."""

ENGINES = tuple(OPENERS)

_REMEDIES = {
    "onnxruntime": 'pip install "ppd-edge[cpu]" (or [cuda], never both)',
    "onnxruntime-cuda": 'pip install "ppd-edge[cuda]" (and uninstall onnxruntime: never both)',
    "torch": 'pip install "ppd-edge[export]"',
}
_MODULES = {"onnxruntime": "ONNX Runtime", "torch": "PyTorch"}
_ROUND = ("onnxruntime",)
"""Engines that round more than the graph says, unless they are opened to be exact."""
_MAX_THREADS_PER_CORE = 4
_logger = logging.getLogger(__name__)

__all__ = ["ENGINES", "OPENERS", "Engine", "open_engine"]


def open_engine(bundle: Bundle, engine: str = "auto", threads: int | None = None, *, exact: bool = False) -> Engine:
    """Open a bundle in an engine.

    Args:
        bundle: The bundle.
        engine: One of `ENGINES`; or "auto": TensorRT where a built engine fits this GPU, else ONNX Runtime on the GPU
            where it can, else ONNX Runtime on the CPU.
        threads: CPU threads; None for the engine's own choice.
        exact: For checks: compute in fp32 what the engine would round for speed (int8 on a CPU); slow.

    Raises:
        ArgumentError: There is no such engine, or `threads` is below 1.
        EngineError: The engine is not installed, or cannot run the bundle or its precision.
    """
    if engine not in ("auto", *ENGINES):
        raise ArgumentError(f"no engine is called {engine!r}; expected auto or {', '.join(ENGINES)}")
    if threads is not None and (type(threads) is not int or threads < 1):
        raise ArgumentError(f"threads is {threads!r}; expected a whole number above 0, or None")
    if threads is not None and threads > _MAX_THREADS_PER_CORE * (os.cpu_count() or 1):
        raise ArgumentError(f"threads is {threads}; this machine has {os.cpu_count()} cores: give at most that many")
    if engine != "auto":
        return _open(bundle, engine, threads, exact=exact)
    for choice in _gpu_choices(bundle):
        try:
            return _open(bundle, choice, threads)
        except EngineError as error:
            _logger.info("engine auto: not %s: %s", choice, error)
    return _open(bundle, "onnxruntime", threads, exact=exact)


def _gpu_choices(bundle: Bundle) -> list[str]:
    """Engines on a GPU that may run the bundle here, best first."""
    built = {info.flavour for info in bundle.manifest.engines}
    choices = [flavour for flavour in FLAVOURS if flavour in built]
    try:
        import onnxruntime
    except ImportError:
        return choices
    return (
        [*choices, "onnxruntime-cuda"] if "CUDAExecutionProvider" in onnxruntime.get_available_providers() else choices
    )


def _open(bundle: Bundle, engine: str, threads: int | None, *, exact: bool = False) -> Engine:
    module, function = OPENERS[engine].split(":")
    try:
        opener = getattr(importlib.import_module(module), function)
    except ImportError as error:
        package = (error.name or "").split(".")[0]
        missing = isinstance(error, ModuleNotFoundError)
        what = "is not installed" if missing else f"cannot be imported ({error})"
        remedy = _REMEDIES.get(engine, "pip install --force-reinstall ppd-edge")
        raise EngineError(f"{_MODULES.get(package, package)} {what}; run {remedy}") from error
    opened: Engine = opener(bundle, threads, exact=True) if exact and engine in _ROUND else opener(bundle, threads)
    return opened
