"""Locks: one command at a time in a folder, for as long as its process lives.

The lock is the system's own (`flock`) on an empty file, so that it ends with the process, however that ends. The file
goes with it, unless the process was killed; the next command takes that one over.
"""

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from ppd.errors import ExportError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK_FILE = ".lock"

Told = Callable[[str], None]
"""Called with a line, once, while another command is waited for."""


def say_nothing(_: str) -> None:
    """For callers that need not know of a wait."""


@contextlib.contextmanager
def locked(folder: Path, told: Told = say_nothing) -> Iterator[None]:
    """Hold a folder's lock; where another command holds it, wait for that.

    Raises:
        ExportError: The folder cannot be written, or its file system has no locks.
    """
    handle = take_lock(folder)
    if handle is None:
        told(f"waiting for another command in {folder.name}")
        handle = take_lock(folder, wait=True)
        assert handle is not None
    try:
        yield
    finally:
        release_lock(folder, handle)


def take_lock(folder: Path, *, wait: bool = False) -> int | None:
    """Take a folder's lock: its handle, for `release_lock`; None if another command holds it and `wait` is false.

    Raises:
        ExportError: As for `locked`.
    """
    if fcntl is None:
        raise ExportError(f"{folder} cannot be locked on this system; write bundles on Linux or macOS")
    path = folder / LOCK_FILE
    while True:
        try:
            handle = _open(path)
        except OSError as error:
            raise ExportError(f"cannot write {path} ({error.strerror}); make the folder writable") from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if _is_at(path, handle):
                return handle
        except BlockingIOError:
            os.close(handle)
            return None
        except OSError as error:
            os.close(handle)
            raise ExportError(
                f"{folder} cannot be locked ({error.strerror}): use a disk of this machine, and copy the bundle then"
            ) from error
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # of a folder that was replaced, or of a lock that ended: its file is gone


def release_lock(folder: Path, handle: int) -> None:
    """End a lock that `take_lock` gave. The folder may have been moved or removed meanwhile."""
    try:
        with contextlib.suppress(OSError):
            if _is_at(folder / LOCK_FILE, handle):
                (folder / LOCK_FILE).unlink()
    finally:
        os.close(handle)


def _open(path: Path) -> int:
    flags = os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        handle = os.open(path, os.O_RDWR | flags, 0o644)
    except PermissionError:  # another user's, who may write into the folder as we do
        handle = os.open(path, os.O_RDONLY | flags, 0o644)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(0, "it is no regular file", str(path))
    return handle


def _is_at(path: Path, handle: int) -> bool:
    """Whether a path leads to the file of a handle."""
    try:
        there = path.lstat()
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(handle))
