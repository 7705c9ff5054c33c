"""Engines: what runs the graph. A new one is a module beside `onnxruntime.py` and a line in `open_engine`."""

import os

from ppd.bundle import Bundle
from ppd.errors import ArgumentError, EngineError
from ppd.runtime.engines.base import Engine

ENGINES = ("onnxruntime",)
_MAX_THREADS_PER_CORE = 4

__all__ = ["ENGINES", "Engine", "open_engine"]


def open_engine(bundle: Bundle, engine: str = "auto", threads: int | None = None) -> Engine:
    """Open a bundle in an engine.

    Args:
        bundle: The bundle.
        engine: One of `ENGINES`, or "auto" for the best that is installed.
        threads: CPU threads; None for the engine's own choice.

    Raises:
        ArgumentError: There is no such engine, or `threads` is below 1.
        EngineError: The engine is not installed, or cannot run the bundle.
    """
    if engine not in ("auto", *ENGINES):
        raise ArgumentError(f"no engine is called {engine!r}; expected auto or {', '.join(ENGINES)}")
    if threads is not None and (type(threads) is not int or threads < 1):
        raise ArgumentError(f"threads is {threads!r}; expected a whole number above 0, or None")
    if threads is not None and threads > _MAX_THREADS_PER_CORE * (os.cpu_count() or 1):
        raise ArgumentError(f"threads is {threads}; this machine has {os.cpu_count()} cores: give at most that many")
    try:
        from ppd.runtime.engines.onnxruntime import OnnxRuntimeEngine
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "onnxruntime"
        what = "is not installed" if missing else f"cannot be imported ({error})"
        raise EngineError(f'ONNX Runtime {what}; run pip install "ppd-edge[cpu]" (or [cuda], never both)') from error
    return OnnxRuntimeEngine(bundle, threads)
