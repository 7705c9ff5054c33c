"""Optional packages: a missing one becomes a one-line error that names the extra to install."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from ppd.errors import PPDError


def remedy(extra: str) -> str:
    """The command that installs what an extra brings; from an installed wheel too, as the package itself is there."""
    return f'pip install "ppd-edge[{extra}]"'


def version_of(package: str) -> str | None:
    """The version of an installed package, which is not imported; None if there is none, or its metadata is damaged."""
    import importlib.metadata  # takes a while

    try:
        return importlib.metadata.version(package)
    except Exception:  # a package's metadata may be damaged in any way
        return None


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Turn a missing package into an error that names the extra to install.

    Raises:
        PPDError: A package that the block imports is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] == "ppd":
            raise
        raise PPDError(f"{error.name} is not installed; run {remedy(extra)}") from error


def require(module: str, extra: str) -> ModuleType:
    """Import a module that comes with an extra.

    Raises:
        PPDError: The module is not installed.
    """
    with needs(extra):
        return importlib.import_module(module)
