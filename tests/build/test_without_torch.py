"""Building engines needs no torch: the device has none."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ppd.bundle import open_bundle
from tests.copies import link_bundle

BUILD = """
import importlib.abc, json, sys

class Hidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "transformers", "onnx_ir", "onnxscript", "safetensors"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
from ppd.build.engine import build
from ppd.build.finish import finish_for_target
from ppd.targets import find_target

info = build(sys.argv[1], "tensorrt-rtx", target=find_target("rtx-4090"))
notes = finish_for_target(sys.argv[1], find_target("jetson-orin")).has("BUILD.md")
print(json.dumps({"key": info.key, "notes": notes, "torch": "torch" in sys.modules}))
"""


def test_an_engine_is_built_and_the_build_elsewhere_prepared_where_there_is_no_torch(
    tinypy_bundle: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed")
    folder = link_bundle(tinypy_bundle, tmp_path / "own")

    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(folder)], capture_output=True, text=True, check=False, timeout=300
    )

    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert (answer["notes"], answer["torch"]) == (True, False)
    assert [info.key for info in open_bundle(folder).manifest.engines] == [answer["key"]]
