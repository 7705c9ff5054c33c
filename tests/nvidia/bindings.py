"""NVIDIA's own Python modules of TensorRT, without a GPU: installed once, and asked in processes of their own.

The packages `tensorrt_cu12_bindings` and `tensorrt_cu13_bindings` hold the module alone, about 1 MB; the libraries that
it is linked with are imitated by `stub.c`.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

HERE = Path(__file__).parent
VERSIONS = {
    "10.3.0": "tensorrt_cu12_bindings",  # JetPack 6
    "10.13.3.9": "tensorrt_cu13_bindings",  # JetPack 7.0 and 7.1
    "10.16.1.11": "tensorrt_cu13_bindings",  # JetPack 7.2 has 10.16.2, which no package index has
    "11.1.0.106": "tensorrt_cu13_bindings",
    "11.4.0.106": "tensorrt_cu13_bindings",
}
RTX = "tensorrt-rtx"
"""TensorRT-RTX, whose real libraries are installed with the tests' other packages."""
_LIBRARIES = ("nvinfer", "nvonnxparser", "nvinfer_plugin")
_PATIENCE = 120


def ask(version: str, cache: Path) -> dict[str, Any]:
    """What `probe.py` finds in a version; the test is skipped where that cannot be installed."""
    if version == RTX:
        pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed")
        return _run("tensorrt_rtx_bindings", None)
    with FileLock(cache / "lock"):
        libraries, package = _stub(cache, version.split(".")[0]), _package(cache, version)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(libraries), "PYTHONPATH": str(package)}
    return _run("tensorrt_bindings", environment)


def _run(module: str, environment: dict[str, str] | None) -> dict[str, Any]:
    command = [sys.executable, str(HERE / "probe.py"), module]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_PATIENCE, check=False)
    assert done.returncode == 0, f"{module}: {done.stdout[-1000:]}{done.stderr[-3000:]}"
    *printed, last = done.stdout.splitlines()
    return {**json.loads(last), "stdout": "\n".join(printed), "stderr": done.stderr}


def _stub(cache: Path, major: str) -> Path:
    """A folder with the imitated libraries, for the loader."""
    source, folder = HERE / "stub.c", cache / "stub"
    library = folder / "libstub.so"
    if not library.exists() or library.stat().st_mtime < source.stat().st_mtime:
        compiler = shutil.which("cc")
        if compiler is None:
            pytest.skip("no C compiler (cc), which builds the stand-in for TensorRT's libraries")
        folder.mkdir(exist_ok=True)
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source], check=True, timeout=_PATIENCE)
    for name in _LIBRARIES:
        link = folder / f"lib{name}.so.{major}"
        if not link.exists():
            link.symlink_to(library.name)
    return folder


def _package(cache: Path, version: str) -> Path:
    return installed(cache, version, f"{VERSIONS[version]}=={version}")


def installed(cache: Path, name: str, *packages: str) -> Path:
    """A folder with packages; kept under the name, so that the next run needs no network."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    folder, waiting = cache / f"{name}-py{python}", cache / f"{name}-py{python}.part"
    if folder.exists():
        return folder
    shutil.rmtree(waiting, ignore_errors=True)
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:", "--target", str(waiting)]
    command = [sys.executable, "-m", "pip", "install", *options, *packages]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=False)
        reasons = done.stderr.strip().splitlines() or ["no reason given"]
        why = None if done.returncode == 0 else reasons[-1]
    except subprocess.TimeoutExpired:
        why = f"it takes more than {_PATIENCE} s"
    if why is not None:
        pytest.skip(f"pip cannot install {' '.join(packages)} for Python {python}: {why}")
    waiting.rename(folder)
    return folder
