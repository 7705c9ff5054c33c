"""Files: written whole or not at all, and read from inside their folder only."""

import contextlib
import ctypes
import errno
import os
import re
import stat
import sys
import tempfile
from pathlib import Path
from typing import BinaryIO

from ppd.errors import ArgumentError, ExportError

_TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp")
_HOW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_CANNOT_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP)


def cache_folder() -> Path:
    """The user's: `$XDG_CACHE_HOME/ppd`, by default `~/.cache/ppd`. What is lost there costs time only."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ppd"


def require_folder_of(path: Path, flag: str) -> None:
    """Refuse a file whose folder does not exist, before anything is measured for it.

    Args:
        flag: That named the file.

    Raises:
        ArgumentError: There is no such folder.
    """
    if not path.absolute().parent.is_dir():
        raise ArgumentError(f"{path.parent} is not a folder; make it, or choose another {flag}")


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write a file under a temporary name and rename it, durably.

    Raises:
        ExportError: The file cannot be written.
    """
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    except OSError as error:
        raise ExportError(f"cannot write {path} ({error.strerror}); make the folder writable") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
        sync(path.parent)
    except OSError as error:
        raise ExportError(f"cannot write {path} ({error.strerror}); free space, or make the folder writable") from error
    finally:
        Path(temporary).unlink(missing_ok=True)


def remove_temporary(folder: Path) -> None:
    """Remove what killed calls of `write_atomically` left in a folder; its lock is held, so that none is under way."""
    for entry in os.scandir(folder):
        if _TEMPORARY.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
            with contextlib.suppress(OSError):
                Path(entry.path).unlink()


def open_inside(folder: Path, name: str) -> BinaryIO:
    """Open a regular file of a folder for reading. No link below the folder is followed, no device or pipe opened.

    Args:
        name: Its path inside the folder, with forward slashes.

    Raises:
        OSError: It is not there, or is of another kind; `strerror` says what.
    """
    path = folder
    for part in name.split("/"):
        path = path / part
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            raise OSError(errno.ELOOP, "a link, not a file of its own: copy with cp -RL", str(path))
    if stat.S_ISDIR(mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "a device or a pipe, not a regular file", str(path))
    return os.fdopen(os.open(path, os.O_RDONLY | _HOW), "rb", buffering=0)


def exchange(one: Path, other: Path) -> bool:
    """Let what lies at two paths change places, in one step; false where the system or the file system cannot.

    Raises:
        OSError: One of them is not there, or may not be moved.
    """
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    if function is None:
        return False
    if function(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in _CANNOT_EXCHANGE:
        return False
    raise OSError(code, os.strerror(code), str(other))


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk, so that a power cut after the rename finds its content."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
