"""Engines: what runs the graph.

A new one is a module beside `onnxruntime/cpu.py` with an entry in `ENGINES`, or, in another package, an entry point of
the group `ppd.engines` that names its opener. Modules are imported when their engine is chosen, by name: the runtime
itself needs none of them. `torch` lies in a layer above, since it is the decoder that export traces.
"""

import importlib
import logging
import os
from dataclasses import dataclass

from ppd.arguments import whole
from ppd.bundle import Bundle
from ppd.errors import ArgumentError, EngineError
from ppd.runtime.engines.base import Engine, EngineOptions
from ppd.runtime.engines.tensorrt.built import FLAVOURS

_REINSTALL = "pip check, which names what ppd-edge lacks"


@dataclass(frozen=True, slots=True)
class EngineEntry:
    """How an engine is opened.

    Attributes:
        opener: Module and function, called with the bundle and the `EngineOptions`.
        package: The package that it needs: its import name and its usual name.
        remedy: The command that installs it.
    """

    opener: str
    package: tuple[str, str] = ("", "")
    remedy: str = _REINSTALL


_ONNXRUNTIME = ("onnxruntime", "ONNX Runtime")
ENGINES = {
    "onnxruntime": EngineEntry(
        "ppd.runtime.engines.onnxruntime.cpu:open_onnxruntime",
        _ONNXRUNTIME,
        'pip install "ppd-edge[cpu]" (or [cuda], never both)',
    ),
    "onnxruntime-cuda": EngineEntry(
        "ppd.runtime.engines.onnxruntime.cuda:open_onnxruntime_cuda",
        _ONNXRUNTIME,
        'pip install "ppd-edge[cuda]" (and uninstall onnxruntime: never both)',
    ),
    "tensorrt": EngineEntry("ppd.runtime.engines.tensorrt.engine:open_tensorrt"),
    "tensorrt-rtx": EngineEntry("ppd.runtime.engines.tensorrt.engine:open_tensorrt_rtx"),
    "torch": EngineEntry("ppd.torch_engine.engine:open_torch", ("torch", "PyTorch"), 'pip install "ppd-edge[export]"'),
}
"""This package's engines, by name."""
ENTRY_POINTS = "ppd.engines"
"""Group of the entry points that bring the engines of other packages."""
_MAX_THREADS_PER_CORE = 4
_logger = logging.getLogger(__name__)

__all__ = ["ENGINES", "ENTRY_POINTS", "Engine", "EngineEntry", "EngineOptions", "open_engine"]


def open_engine(
    bundle: Bundle, engine: str = "auto", threads: int | None = None, *, exact: bool = False, brief: bool = False
) -> Engine:
    """Open a bundle in an engine.

    Args:
        engine: An engine's name; or "auto": TensorRT where a built engine fits this GPU, else ONNX Runtime on the GPU
            where it can, else ONNX Runtime on the CPU.
        threads: CPU threads; None for the engine's own choice.
        exact: Compute in fp32 what the engine would round for speed (quantised products on a CPU); slower.
        brief: Only a few steps will run: take less memory, and less time to open, for slower steps.

    Raises:
        ArgumentError: There is no such engine, or the number of threads is not allowed.
        EngineError: The engine is not installed, or cannot run the bundle.
    """
    options = EngineOptions(threads=_checked(threads), exact=exact, brief=brief)
    if engine != "auto":
        return _open(bundle, engine, options)
    for choice in _gpu_choices(bundle):
        try:
            return _open(bundle, choice, options)
        except EngineError as error:
            _logger.info("engine auto: not %s: %s", choice, error)
    return _open(bundle, "onnxruntime", options)


def _checked(threads: int | None) -> int | None:
    if threads is None:
        return None
    number = whole(threads)
    if number is None or number < 1:
        raise ArgumentError(f"threads is {threads!r:.40}; expected a whole number above 0, or None")
    if number > _MAX_THREADS_PER_CORE * (os.cpu_count() or 1):
        raise ArgumentError(f"threads is {number}; this machine has {os.cpu_count()} cores: give at most that many")
    return number


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


def _find_entry(engine: str) -> EngineEntry:
    """The entry of an engine, looked for in other packages where this one has none."""
    if engine in ENGINES:
        return ENGINES[engine]
    from importlib.metadata import entry_points  # takes a while, and is for other packages' engines only

    others = {
        point.name: EngineEntry(point.value, remedy=f"pip install --force-reinstall {point.dist.name}")
        for point in entry_points(group=ENTRY_POINTS)
        if point.dist is not None
    }
    if engine not in others:
        raise ArgumentError(f"no engine is called {engine!r}; expected auto or {', '.join([*ENGINES, *others])}")
    return others[engine]


def _open(bundle: Bundle, engine: str, options: EngineOptions) -> Engine:
    entry = _find_entry(engine)
    module, function = entry.opener.split(":")
    try:
        opener = getattr(importlib.import_module(module), function)
    except ImportError as error:
        package = (error.name or "").split(".")[0]
        what = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be imported ({error})"
        name = entry.package[1] if package == entry.package[0] else package
        raise EngineError(f"{name} {what}; run {entry.remedy}") from error
    opened: Engine = opener(bundle, options)
    return opened
