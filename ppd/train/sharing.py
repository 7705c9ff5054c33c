"""Sharing: what several processes make together, once, and keep in a file."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from ppd.files import write_atomically

_Item = TypeVar("_Item")
_Made = TypeVar("_Made")


def share_out(
    accelerator: Accelerator, items: Sequence[_Item], make: Callable[[Sequence[_Item]], list[_Made]]
) -> list[_Made]:
    """Make something of every item; each process takes its slice of them, and all get everything, in order."""
    made = make(items[accelerator.process_index :: accelerator.num_processes])
    if accelerator.num_processes == 1:
        return made
    return interleave(gather_object([made]))


def interleave(slices: Sequence[Sequence[_Made]]) -> list[_Made]:
    """Undo the slicing: the first of every slice, then the second of every slice, and so on."""
    whole: list[_Made] = [slices[0][0]] * sum(map(len, slices)) if slices[0] else []
    for process, part in enumerate(slices):
        whole[process :: len(slices)] = part
    return whole


def once(
    accelerator: Accelerator,
    *,
    path: Callable[[], Path],
    read: Callable[[Path], _Made | None],
    make: Callable[[], _Made],
    write: Callable[[_Made], bytes],
) -> _Made:
    """What a file holds, or, if it is not there or damaged, what all processes make; the main one writes it.

    Args:
        path: Called in the main process only: the name depends on hashes that take a while.
        read: None if the file is damaged.
    """
    file = path() if accelerator.is_main_process else None
    found = [read(file) if file is not None and file.is_file() else None]
    if accelerator.num_processes > 1:
        broadcast_object_list(found)
    if found[0] is not None:
        return found[0]
    made = make()
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, write(made))
    return made
