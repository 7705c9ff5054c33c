"""Versions of installed packages, without importing them."""

import importlib.util
import os
from pathlib import Path

from ppd.doctor.machine import without_home
from ppd.extras import version_of

PACKAGES = (
    *("numpy", "tokenizers", "jinja2", "typer", "rich"),
    *("onnxruntime", "onnxruntime-gpu"),
    *("onnx", "onnx-ir", "onnxscript", "torch", "transformers", "safetensors", "sentencepiece", "gguf", "protobuf"),
    *("huggingface-hub", "accelerate", "matplotlib", "uvicorn", "starlette", "sse-starlette", "prometheus-client"),
    *("tensorrt", "tensorrt_rtx_cu13_bindings", "tensorrt_rtx_cu13_libs"),
    *("tensorrt_rtx_cu12_bindings", "tensorrt_rtx_cu12_libs", "cuda-python", "cuda-bindings"),
)
"""What this package's extras bring, and what they bring themselves that matters."""


def versions() -> dict[str, str | None]:
    """Package → its version, None if it is not installed."""
    return {name: version_of(name) for name in PACKAGES}


def has_module(name: str) -> bool:
    """Whether a module could be found; it is not imported."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def caches() -> dict[str, str]:
    """Folders that commands keep something in, and how many entries each has."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    hub = os.environ.get("HF_HUB_CACHE") or f"{os.environ.get('HF_HOME') or base / 'huggingface'}/hub"
    return {"models of the hub": _counted(Path(hub)), "what ppd keeps": _counted(base / "ppd")}


def _counted(folder: Path) -> str:
    try:
        number = str(sum(1 for name in os.listdir(folder.expanduser()) if not name.startswith(".")))  # noqa: PTH208
    except (OSError, RuntimeError):
        number = "none"
    return f"{without_home(folder)} ({number})"
