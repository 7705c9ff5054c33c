"""NVIDIA's own cuda-python, of each JetPack, takes every call of engines, over a driver that is imitated in C."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

import ppd
from tests.nvidia.bindings import HERE, installed

PACKAGES = {
    "12.6.2.post1": ["cuda-python==12.6.2.post1"],  # the oldest that has its modules, in one package
    "12.8.0": ["cuda-bindings==12.8.0"],  # JetPack 6
    "13.2.0": ["cuda-bindings==13.2.0", "cuda-pathfinder"],  # JetPack 7.2
}


@pytest.mark.parametrize("version", PACKAGES)
def test_a_cuda_python_takes_every_call(version: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler (cc), which builds the stand-in for CUDA's driver")
    assert request.config.cache is not None
    cache = Path(request.config.cache.mkdir("cuda"))
    with FileLock(cache / "lock"):
        packages = installed(cache, version, *PACKAGES[version])
    library = tmp_path / "libcuda.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-w", "-o", library, HERE / "libcuda.c"], check=True, timeout=300)
    paths = os.pathsep.join([str(Path(ppd.__file__).parents[1]), str(packages)])
    environment = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path), "PYTHONPATH": paths}

    command = [sys.executable, str(HERE / "drive.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)

    assert (done.returncode, done.stdout) == (0, "all calls passed\n"), done.stderr[-2000:]
