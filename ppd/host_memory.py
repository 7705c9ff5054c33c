"""The memory that there is: of the machine, or of the container on it."""

import os
from dataclasses import dataclass
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CONTAINER = Path("/sys/fs/cgroup")
"""Where a container sees its own limits (cgroup v2)."""


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Bytes that the system can give to a program: `available` counts the page cache, which it would give back."""

    available: int
    swap: int


def host_memory() -> HostMemory | None:
    """The memory that this machine, or the container on it, can give now; None where the system does not say."""
    host = _machines_memory()
    limit = container_limit(_CONTAINER)
    if host is None or limit is None:
        return host
    return HostMemory(min(host.available, max(0, limit - _held_by(_CONTAINER))), host.swap)


def container_limit(folder: Path) -> int | None:
    """Bytes that a container may take; None without a limit.

    Args:
        folder: Of its control group.
    """
    try:
        limit = (folder / "memory.max").read_text("utf-8").strip()
    except OSError:
        return None
    return int(limit) if limit.isdigit() else None


def _held_by(folder: Path) -> int:
    """Bytes that a container holds and could not give back: its page cache is not among them."""
    try:
        held = int((folder / "memory.current").read_text("utf-8"))
        lines = (line.split() for line in (folder / "memory.stat").read_text("utf-8").splitlines())
        return held - sum(int(line[1]) for line in lines if line[0] in ("active_file", "inactive_file"))
    except (OSError, ValueError, IndexError):
        return 0


def _machines_memory() -> HostMemory | None:
    if _MEMINFO.is_file():
        lines = (line.split() for line in _MEMINFO.read_text("utf-8").splitlines())
        kilobytes = {line[0]: int(line[1]) for line in lines if len(line) > 1}
        if "MemAvailable:" in kilobytes:
            return HostMemory(1024 * kilobytes["MemAvailable:"], 1024 * kilobytes.get("SwapFree:", 0))
    try:
        return HostMemory(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), 0)
    except (AttributeError, OSError, ValueError):  # not every system has these names
        return None
