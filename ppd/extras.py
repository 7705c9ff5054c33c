"""Optional packages: a missing one is told in one line, with the extra that brings it."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from ppd.errors import PPDError


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Turn a missing package into a line that says which extra of this package brings it.

    Raises:
        PPDError: A package that the block imports is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] == "ppd":
            raise
        raise PPDError(f'{error.name} is not installed; run pip install "ppd-edge[{extra}]"') from error


def require(module: str, extra: str) -> ModuleType:
    """Import a module that an extra brings.

    Raises:
        PPDError: It is not installed.
    """
    with needs(extra):
        return importlib.import_module(module)
