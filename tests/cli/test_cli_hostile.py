"""What a hostile file makes of a command: exit code 1 and one line that a terminal does not obey, nothing beside it."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ppd.cli import entry
from ppd.cli.app import one_line, shown
from ppd.errors import ModelError
from ppd.manifest import MANIFEST_FILE
from tests.cli.helpers import Run, fails
from tests.damage import change, replace, sealed


def put(bundle: Path, role: str, content: bytes) -> None:
    """Replace a file of a bundle, as whoever signs its manifest can."""
    replace(bundle / role, content)
    change(bundle, ("files", role, "size_bytes"), len(content))
    change(bundle, ("files", role, "sha256"), hashlib.sha256(content).hexdigest())


def as_a_process(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "ppd", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(Path(entry.__file__).parents[2])}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, env=environment)


def test_a_panic_of_a_library_is_one_line(own_bundle: Path) -> None:
    tokenizer = json.loads((own_bundle / "tokenizer.json").read_bytes())
    step = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    put(own_bundle, "tokenizer.json", json.dumps({**tokenizer, "pre_tokenizer": step}).encode())
    ended = as_a_process("generate", own_bundle, f"f({'a' * 44}!", "--threads", 1)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("error: the tokenizer fails on a text")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_one_line(own_bundle: Path, run: Run, value: float) -> None:
    size = (own_bundle / "model.onnx.data").stat().st_size
    put(own_bundle, "model.onnx.data", np.full(size // 4, value, np.float32).tobytes())
    fails(run("generate", own_bundle, "def f", "--threads", 1), "not finite", "ppd check")
    fails(run("check", own_bundle, "--threads", 1), "not finite")


@pytest.mark.parametrize(
    ("role", "content"),
    [("model-onnxruntime.onnx", b"hello"), ("model.onnx.data", b""), ("tree.bin", b"\xff" * 1_331_200)],
)
def test_native_libraries_add_no_lines(
    own_bundle: Path, role: str, content: bytes, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(own_bundle, role, content)
    monkeypatch.setattr(sys, "argv", ["ppd", "check", str(own_bundle), "--threads", "1"])
    with pytest.raises(SystemExit):
        entry.main()
    written = capfd.readouterr().err
    assert written.startswith("error: ")
    assert written.count("\n") == 1


def test_a_name_that_a_terminal_would_obey_is_shown(own_bundle: Path, run: Run) -> None:
    change(own_bundle, ("model", "name"), "\x1b[31mred\x07\nerror: fake")
    out = run("inspect", own_bundle).out
    assert "\x1b" not in out
    assert r"\x1b[31mred\x07\nerror: fake" in out


def test_a_long_line_is_cut_and_stays_one_line() -> None:
    line = one_line("begins\n" + "x" * 10**6 + "\t\x1b[2J ends")
    assert line.startswith("begins xxx")
    assert line.endswith(r"\x1b[2J ends")
    assert len(line) < 1100
    assert shown("é „ok“") == "é „ok“"


@pytest.mark.parametrize("error", [MemoryError(), ModelError("a\nb")])
def test_no_memory_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def raises() -> None:
        raise error

    monkeypatch.setattr(entry, "app", raises)
    fails(run(), "memory" if isinstance(error, MemoryError) else "a b")


def test_a_manifest_that_is_out_of_range_is_one_line(own_bundle: Path, run: Run) -> None:
    data = json.loads((own_bundle / MANIFEST_FILE).read_bytes())
    data["model"]["num_layers"] = 10**12
    replace(own_bundle / MANIFEST_FILE, sealed(data))
    for command in ("inspect", "check"):
        fails(run(command, own_bundle), "num_layers", "1 to 1024")
