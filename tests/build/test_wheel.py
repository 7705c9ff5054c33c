"""The wheel that a bundle for a device brings: pip installs it, and the commands are there."""

import subprocess
import sys
from pathlib import Path

import pytest

import ppd
from ppd.build import wheel as module
from ppd.build.wheel import wheel
from ppd.errors import ExportError


def test_pip_installs_the_wheel_and_what_it_brings_is_this_package(tmp_path: Path) -> None:
    name, content = wheel()
    (tmp_path / name).write_bytes(content)
    options = ["--quiet", "--no-index", "--no-deps", "--target", str(tmp_path / "there")]
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", *options, str(tmp_path / name)]
    subprocess.run(command, check=True, timeout=120)

    there, here = tmp_path / "there" / "ppd", Path(ppd.__file__).parent
    assert len(content) < 2_000_000
    for path in here.rglob("*.py"):
        assert (there / path.relative_to(here)).read_bytes() == path.read_bytes()
    assert (there / "build" / "build_notes.md").exists()
    assert not list(there.rglob("*.safetensors"))
    assert (tmp_path / "there" / "bin" / "ppd").exists()
    metadata = next((tmp_path / "there").glob("*.dist-info")) / "METADATA"
    assert "Provides-Extra: tensorrt-jetson" in metadata.read_text("utf-8")
    assert wheel() == (name, content)


def test_a_package_that_is_only_imported_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PACKAGE", "ppd-nowhere")

    with pytest.raises(ExportError, match="ppd-nowhere is not installed, only imported; run pip install -e"):
        wheel()
