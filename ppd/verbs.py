"""Packages that are called by their name: `ppd.export(…)` runs the function `export` of `ppd/export/exporter.py`.

A package named after a verb is also a function, so that `from ppd import export` gives something to call whether or not
a module of the package was imported before. Nothing of it is imported until the call.
"""

import importlib
import inspect
import sys
from types import ModuleType
from typing import Any


def make_callable(package: str, module: str) -> None:
    """Let a package run the function of its own name.

    package: Its `__name__`, such as "ppd.export".
    """
    verb = package.rpartition(".")[2]

    def function() -> Any:
        return getattr(importlib.import_module(module), verb)

    class Verb(ModuleType):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return function()(*args, **kwargs)

        @property
        def __signature__(self) -> inspect.Signature:
            return inspect.signature(function())

    sys.modules[package].__class__ = Verb
