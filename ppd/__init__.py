"""PPD on the edge: export LLMs with Parallel Prompt Decoding, and run them losslessly in fewer passes.

    ppd.train     prompt tokens for a frozen model
    ppd.export    a checkpoint and prompt tokens become a bundle
    ppd.calibrate measure this device, fold the fastest tree into the bundle
    ppd.load      a bundle becomes a model that generates, streams and chats
    ppd.generate  load and generate once

docs/python.md has an example of each. Importing this package imports none of them.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"
__all__ = ["__version__", "calibrate", "export", "generate", "load", "train"]

if TYPE_CHECKING:
    from ppd.calibrate.calibrate import calibrate as calibrate
    from ppd.export.exporter import export as export
    from ppd.runtime import generate as generate
    from ppd.runtime import load as load
    from ppd.train.trainer import train as train


def __getattr__(name: str) -> Any:
    if name in ("load", "generate"):
        return getattr(importlib.import_module("ppd.runtime"), name)
    if name in ("export", "calibrate", "train"):  # packages that are called by their name
        return importlib.import_module(f"ppd.{name}")
    raise AttributeError(f"module 'ppd' has no attribute {name!r}")
