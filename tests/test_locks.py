"""Locks: they end with the process that holds them, and follow no link."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from ppd.errors import ExportError
from ppd.locks import LOCK_FILE, locked, release_lock, take_lock


def test_one_holds_it_and_the_file_goes_with_it(tmp_path: Path) -> None:
    with locked(tmp_path):
        assert take_lock(tmp_path) is None
        assert (tmp_path / LOCK_FILE).read_bytes() == b""
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    ready, go = os.pipe()
    child = os.fork()
    if not child:
        take_lock(tmp_path)
        os.write(go, b"!")
        signal.pause()
    os.read(ready, 1)
    assert take_lock(tmp_path) is None
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert (tmp_path / LOCK_FILE).exists()

    with locked(tmp_path, told=lambda line: pytest.fail(line)):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_of_a_folder_that_was_replaced_is_another_lock(tmp_path: Path) -> None:
    folder, old = tmp_path / "folder", tmp_path / "old"
    folder.mkdir()
    handle = take_lock(folder)
    assert handle is not None
    folder.rename(old)
    folder.mkdir()
    other = take_lock(folder)
    assert other is not None

    release_lock(folder, handle)
    assert (folder / LOCK_FILE).exists()  # the other's
    release_lock(folder, other)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_is_no_file_is_no_lock(tmp_path: Path, kind: str) -> None:
    folder, precious = tmp_path / "folder", tmp_path / "precious"
    folder.mkdir()
    precious.write_text("years of work", "utf-8")
    lock = folder / LOCK_FILE
    make: dict[str, Callable[[], None]]
    make = {"link": lambda: lock.symlink_to(precious), "pipe": lambda: os.mkfifo(lock), "folder": lock.mkdir}
    make[kind]()

    with pytest.raises(ExportError, match=r"cannot write .*\.lock \(.+\); make the folder writable"):
        take_lock(folder)
    assert precious.read_text("utf-8") == "years of work"


def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="No such file"):
        take_lock(tmp_path / "nothing")
