"""The machine: its processor, memory and board, as the operating system tells them."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from ppd.host_memory import container_limit

GIB = 2**30
FEATURES = (
    *("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16"),
    *("neon", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2"),
)
"""Features of processors that kernels of engines choose by, as Linux spells them: x86-64, then Arm."""
VARIABLES = (
    *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES"),
    *("HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "XDG_CACHE_HOME"),
)
"""Environment variables that change what engines, the hub or our caches do."""
_MODEL_NAMES = ("model name", "Model", "Hardware")


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A machine; None where the system does not tell.

    Attributes:
        board: A single-board computer's model and its JetPack release.
        cores: Logical ones.
        usable_cores: Those that this process may run on.
        memory_gib, available_gib: In all, and what programs could still take.
        limit_gib: Of the container, if it has one.
        features: Those of `FEATURES` that the processor has.
    """

    system: str
    board: str | None
    processor: str
    cores: int | None
    usable_cores: int | None
    features: list[str]
    memory_gib: float | None
    available_gib: float | None
    limit_gib: float | None


def describe_machine(root: Path = Path("/")) -> Machine:
    """This machine.

    Args:
        root: Where `/proc` and `/sys` are.
    """
    info = _fields(root / "proc/cpuinfo")
    memory = _fields(root / "proc/meminfo")
    flags = f"{info.get('flags', '')} {info.get('Features', '')}".split()
    limit = container_limit(root / "sys/fs/cgroup")
    return Machine(
        system=platform.platform(),
        board=" ".join(
            filter(None, [_read(root / "proc/device-tree/model"), _read(root / "etc/nv_tegra_release")[:60]])
        )
        or None,
        processor=next((info[name] for name in _MODEL_NAMES if name in info), platform.processor())
        or platform.machine(),
        cores=os.cpu_count(),
        usable_cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        features=[name for name in FEATURES if name in flags],
        memory_gib=_gib(memory.get("MemTotal")),
        available_gib=_gib(memory.get("MemAvailable")),
        limit_gib=round(limit / GIB, 1) if limit is not None else None,
    )


def environment() -> dict[str, str]:
    """Those of `VARIABLES` that are set; the home folder is written as ~."""
    return {name: without_home(os.environ[name]) for name in VARIABLES if name in os.environ}


def without_home(path: str | Path) -> str:
    """A path without the name of its user, which a public report need not tell."""
    home = os.path.expanduser("~")  # noqa: PTH111 - Path.home raises where there is none
    return str(path).replace(home, "~", 1) if len(home) > 1 and str(path).startswith(home) else str(path)


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", errors="replace").strip("\0 \n")
    except OSError:
        return ""


def _fields(path: Path) -> dict[str, str]:
    """The first value of every `name: value` of a file."""
    found: dict[str, str] = {}
    for line in _read(path).splitlines():
        name, _, value = line.partition(":")
        found.setdefault(name.strip(), value.strip())
    return found


def _gib(kilobytes: str | None) -> float | None:
    words = (kilobytes or "").split()
    return round(int(words[0]) * 1024 / GIB, 1) if words and words[0].isdigit() else None
