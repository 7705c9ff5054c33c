"""Staging: folders that appear whole or not at all, and what is left of commands that were killed.

A command that works in a folder of its own holds that folder's lock; one that nobody holds is dead and goes with the
next command. `.OUT.????????.tmp` beside OUT holds the new folder, `bundle`, and for a moment the replaced one, `old`.
"""

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from ppd.errors import ExportError
from ppd.files import exchange, sync
from ppd.locks import LOCK_FILE, locked, release_lock, take_lock

_NEW, _OLD = "bundle", "old"
_RANDOM = "[a-z0-9_]{8}"

IsOurs = Callable[[Path], bool]
"""Whether a folder may be replaced."""


@contextlib.contextmanager
def staged_folder(out: Path, *, force: bool, is_ours: IsOurs) -> Iterator[Path]:
    """Yield an empty folder that becomes `out` when the block ends, and vanishes if it raises.

    Killed at any point, it leaves the old `out` or the new one there, or, where the system cannot exchange two folders
    in one step, brings the old one back with the next command (`restore`).

    Args:
        force: Replace an existing folder of ours, with all that is in it, or an empty one. No other is ever deleted.

    Raises:
        ExportError: `out` exists and may not be replaced, or its parent cannot be written.
    """
    out = out.absolute()
    restore(out, is_ours)
    require_writable(out, force=force, is_ours=is_ours)
    new_parents = [parent for parent in out.parents if not parent.exists()]
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f"cannot write beside {out} ({error.strerror}); choose another --out") from error
    try:
        with own_folder(out.parent, f".{out.name}.", keep=lambda work: _has_only_copy(work, out)) as work:
            staging = work / _NEW
            staging.mkdir()
            staging.chmod(0o755)
            yield staging
            for path in staging.rglob("*"):
                sync(path)
            _put_in_place(work, out, force=force, is_ours=is_ours)
            sync(out.parent)
    except OSError as error:
        raise ExportError(
            f"cannot write {out} ({error.strerror or error}); free space, or choose another --out"
        ) from error
    finally:
        for parent in new_parents:  # of a failed export; they hold the bundle otherwise, and stay
            with contextlib.suppress(OSError):
                parent.rmdir()


def require_writable(out: Path, *, force: bool, is_ours: IsOurs) -> None:
    """Refuse an output folder that exists, unless `force` is given and it is ours or empty.

    Raises:
        ExportError: `out` exists and may not be replaced.
    """
    if not os.path.lexists(out):
        return
    if out.exists() and out.samefile(Path.cwd()):
        raise ExportError(f"{out} is the working directory, which cannot be replaced; choose another --out")
    if not out.is_dir() or not _may_go(out, is_ours):
        raise ExportError(f"{out} exists and is not a bundle; choose another --out")
    if not force:
        raise ExportError(f"{out} exists; give --force to replace it, or choose another --out")


def without_detours(out: Path) -> Path:
    """The same path without "..": a folder that the way leads through may not exist yet.

    Raises:
        ExportError: The links on the way lead in a circle.
    """
    try:
        return out.resolve() if ".." in out.parts else out
    except (OSError, RuntimeError) as error:  # RuntimeError before Python 3.13
        raise ExportError(f"{out} leads in a circle; choose another --out") from error


def restore(out: Path, is_ours: IsOurs) -> None:
    """Bring back a folder that a killed command had moved away, and remove what killed commands left beside it."""
    with contextlib.suppress(OSError, ExportError):
        for work in dead_folders(out.parent, f".{out.name}."):
            if {path.name for path in work.iterdir()} - {LOCK_FILE, _NEW, _OLD}:
                continue
            if not os.path.lexists(out) and is_ours(work / _OLD):
                (work / _OLD).rename(out)
            shutil.rmtree(work, ignore_errors=True)


@contextlib.contextmanager
def own_folder(parent: Path, prefix: str, *, keep: Callable[[Path], bool] = lambda _: False) -> Iterator[Path]:
    """Make a folder, whose lock is held while the block runs, and remove it.

    Args:
        keep: Asked at the end whether it stays after all.

    Raises:
        ExportError: `parent` cannot be written, or its file system has no locks.
    """
    folder, handle = _make(parent, prefix)
    try:
        yield folder
    finally:
        if not keep(folder):
            shutil.rmtree(folder, ignore_errors=True)
        release_lock(folder, handle)


def _make(parent: Path, prefix: str) -> tuple[Path, int]:
    while True:
        try:
            folder = Path(tempfile.mkdtemp(prefix=prefix, suffix=".tmp", dir=parent))
        except OSError as error:
            raise ExportError(f"cannot write in {parent} ({error.strerror}); make it writable") from error
        try:
            handle = take_lock(folder)
        except BaseException:
            if folder.exists():
                shutil.rmtree(folder, ignore_errors=True)
                raise
            continue  # another command took it for dead, before it had its lock
        if handle is not None:
            return folder, handle


def dead_folders(parent: Path, prefix: str) -> Iterator[Path]:
    """The folders that `own_folder` made for commands that were killed; each is locked until the next is asked for."""
    pattern = re.compile(rf"{re.escape(prefix)}{_RANDOM}\.tmp")
    for path in [path for path in parent.iterdir() if pattern.fullmatch(path.name)]:
        if path.is_symlink() or not path.is_dir() or path.stat().st_uid != os.getuid():
            continue
        handle = take_lock(path)
        if handle is None:
            continue
        try:
            yield path
        finally:
            release_lock(path, handle)


def _put_in_place(work: Path, out: Path, *, force: bool, is_ours: IsOurs) -> None:
    require_writable(out, force=force, is_ours=is_ours)
    if not os.path.lexists(out):
        (work / _NEW).rename(out)  # fails if a folder appears there that is not empty
        return
    with locked(out.resolve()):  # of a link, what it leads to stays where it is
        require_writable(out, force=force, is_ours=is_ours)
        if not exchange(work / _NEW, out):
            _replace_in_two_steps(work, out)
        elif not (work / _NEW).is_symlink() and not _may_go(work / _NEW, is_ours):
            exchange(work / _NEW, out)
            raise ExportError(f"{out} exists and is not a bundle; choose another --out")


def _replace_in_two_steps(work: Path, out: Path) -> None:
    out.rename(work / _OLD)
    try:
        (work / _NEW).rename(out)
    except BaseException:
        (work / _OLD).rename(out)
        raise


def _has_only_copy(work: Path, out: Path) -> bool:
    """Whether the replaced folder could not even be moved back."""
    return (work / _OLD).exists() and not os.path.lexists(out)


def _may_go(folder: Path, is_ours: IsOurs) -> bool:
    """Whether a folder is ours, or empty but for a lock."""
    return is_ours(folder) or all(path.name == LOCK_FILE for path in folder.iterdir())
