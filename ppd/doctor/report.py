"""The report of `ppd doctor`."""

import platform
import sys
from dataclasses import dataclass
from pathlib import Path

import ppd
from ppd.doctor.engines import Answer, ask_gpu, engines_here
from ppd.doctor.machine import Machine, describe_machine, environment, without_home
from ppd.doctor.packages import caches, versions
from ppd.extras import remedy


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a bug report needs to know.

    Attributes:
        ppd, python: Versions.
        installed_in: Folder of the package.
        packages: Package → version, None if it is not installed.
        engines: Engine → whether it would run here, and what with or why not.
        warnings: What is likely to be wrong.
    """

    ppd: str
    python: str
    installed_in: str
    machine: Machine
    packages: dict[str, str | None]
    gpu: Answer
    engines: dict[str, Answer]
    caches: dict[str, str]
    environment: dict[str, str]
    warnings: list[str]


def examine() -> Report:
    """Ask this machine and environment; takes a second or two. Never raises for what it finds."""
    packages, gpu = versions(), ask_gpu()
    machine, engines = describe_machine(), engines_here(gpu)
    return Report(
        ppd=ppd.__version__,
        python=f"{platform.python_version()} ({platform.python_implementation()}, {platform.machine()})",
        installed_in=without_home(Path(ppd.__file__).parent),
        machine=machine,
        packages=packages,
        gpu=gpu,
        engines=engines,
        caches=caches(),
        environment=environment(),
        warnings=warnings_of(packages, engines),
    )


def warnings_of(packages: dict[str, str | None], engines: dict[str, Answer]) -> list[str]:
    """What is likely to be wrong, with its remedy."""
    found = []
    if packages.get("onnxruntime") and packages.get("onnxruntime-gpu"):
        found.append(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files; "
            "uninstall both, then install one of the extras cpu and cuda"
        )
    if not any(answer.works for answer in engines.values()):
        found.append(f"no engine would run here; run {remedy('cpu')}")
    if sys.version_info < (3, 11) and not packages.get("onnxruntime") and not packages.get("onnxruntime-gpu"):
        found.append("ONNX Runtime has no wheels of the version that is needed for Python 3.10; take 3.11 or newer")
    return found
