"""Durable writes: files that are replaced whole, and folders that appear whole or not at all."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from ppd.errors import ExportError


@contextlib.contextmanager
def staged_folder(out: Path, *, force: bool, is_ours: Callable[[Path], bool]) -> Iterator[Path]:
    """Yield an empty folder beside `out` that becomes `out` when the block ends, and vanishes if it raises.

    Args:
        force: Replace an existing folder of ours, with all that is in it, or an empty one. No other is ever deleted.
        is_ours: Whether a folder may be replaced.

    Raises:
        ExportError: `out` exists and may not be replaced, or its parent cannot be written.
    """
    out = out.absolute()
    require_writable(out, force=force, is_ours=is_ours)
    new_parents = [parent for parent in out.parents if not parent.exists()]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent))
    except OSError as error:
        raise ExportError(f"cannot write beside {out} ({error.strerror}); choose another --out") from error
    try:
        staging.chmod(0o755)
        yield staging
        for path in staging.rglob("*"):
            _sync(path)
        _replace_folder(staging, out, force=force, is_ours=is_ours)
        _sync(out.parent)
    except OSError as error:
        raise ExportError(
            f"cannot write {out} ({error.strerror or error}); free space, or choose another --out"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        for parent in new_parents:  # of a failed export; they hold the bundle otherwise, and stay
            with contextlib.suppress(OSError):
                parent.rmdir()


def require_writable(out: Path, *, force: bool, is_ours: Callable[[Path], bool]) -> None:
    """Refuse an output folder that exists, unless `force` is given and it is ours or empty.

    Raises:
        ExportError: `out` exists and may not be replaced.
    """
    if not out.exists() and not out.is_symlink():
        return
    if out.resolve() == Path.cwd():
        raise ExportError(f"{out} is the working directory, which cannot be replaced; choose another --out")
    if not out.is_dir() or (any(out.iterdir()) and not is_ours(out)):
        raise ExportError(f"{out} exists and is not a bundle; choose another --out")
    if not force:
        raise ExportError(f"{out} exists; give --force to replace it, or choose another --out")


def _replace_folder(new: Path, out: Path, *, force: bool, is_ours: Callable[[Path], bool]) -> None:
    require_writable(out, force=force, is_ours=is_ours)
    if not out.exists():
        new.rename(out)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".old", dir=out.parent)) / "bundle"
    try:
        out.rename(old)
        new.rename(out)
    except BaseException:
        if old.exists() and not out.exists():
            old.rename(out)
        raise
    finally:
        if out.exists():  # if even the way back failed, the old bundle stays where it is
            shutil.rmtree(old.parent, ignore_errors=True)


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write a file under a temporary name and rename it, durably.

    Raises:
        ExportError: The file cannot be written.
    """
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise ExportError(f"cannot write {path} ({error.strerror}); make the folder writable") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
        _sync(path.parent)
    except OSError as error:
        raise ExportError(f"cannot write {path} ({error.strerror}); free space, or make the folder writable") from error
    finally:
        Path(temporary).unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Flush a file or a folder to the disk, so that a power cut after the rename finds its content."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
