"""`ppd-export`: what cannot be exported is one line, and changes nothing."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ppd import cli
from ppd.errors import ExportError
from ppd.manifest import MANIFEST_FILE
from tests.cli.helpers import Outcome, Run, fails
from tests.copies import OLD_MANIFEST


def export(run: Run, *arguments: object, entry: Callable[[], None] = cli.export_main) -> Outcome:
    """`ppd-export` of the embedded model for this CPU; later arguments override these."""
    return run("--model", "tinypy", "--gpu", "cpu", *arguments, entry=entry)


def test_an_export_for_no_device_says_which_there_are(run: Run) -> None:
    error = run("--model", "tinypy", entry=cli.export_main).err

    assert all(word in error for word in ("Missing option '--gpu'", "cpu, or another of ppd targets"))


ROOT_ONLY = {"path": [], "prompts": 3}
BAD_EXPORTS: dict[str, tuple[list[str], list[str]]] = {
    "unknown model": (["--model", "tinypi"], ["tinypi", "tinypy"]),
    "unknown target": (["--gpu", "jetson-oren"], ["no target is called 'jetson-oren'", "nearest: jetson-orin"]),
    "unknown precision": (["--precision", "fp64"], ["precision 'fp64'", "fp32"]),
    "missing tree": (["--tree", "missing.json"], ["missing.json"]),
    "tree that is not JSON": (["--tree", "words.json"], ["words.json is not JSON"]),
    "tree with a broken rule": (["--tree", "orphan.json"], ["orphan.json", "path [0, 0] has no parent"]),
    "tree with unknown keys": (["--tree", "extra.json"], ["extra.json", "see comment"]),
    "context too small": (["--context", "1"], ["context is 1", "2 to 512"]),
    "context too large": (["--context", "513"], ["context is 513", "2 to 512"]),
    "missing prompt tokens": (["--prompt-tokens", "./missing"], ["missing"]),
    "output below a file": (["--out", "words.json/out"], ["--out"]),
    "output that is no bundle": (["--out", "thesis"], ["thesis exists and is not a bundle", "--out"]),
    "output that is no bundle, forced": (["--out", "thesis", "--force"], ["thesis exists and is not a bundle"]),
    "output that exists": (["--out", "old"], ["old exists; give --force to replace it"]),
    "default output that exists": ([], ["tinypy-cpu exists; give --force"]),
}


@pytest.fixture
def working_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with an old bundle, another folder, and tree files."""
    files = {
        "old/manifest.json": OLD_MANIFEST,
        "tinypy-cpu/manifest.json": OLD_MANIFEST,
        "thesis/chapter": "years of work",
        "words.json": "once upon a time",
        "orphan.json": _tree_file([ROOT_ONLY, {"path": [0, 0], "prompts": 3}]),
        "extra.json": _tree_file([ROOT_ONLY], comment="mine"),
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, "utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _tree_file(nodes: list[dict[str, Any]], **more: str) -> str:
    return json.dumps({"schema": 1, "num_prompt_tokens": 3, "states": {"3": nodes}, **more})


@pytest.mark.parametrize(("arguments", "words"), BAD_EXPORTS.values(), ids=BAD_EXPORTS.keys())
def test_an_export_that_cannot_be_done_is_one_line_and_changes_nothing(
    run: Run, working_dir: Path, arguments: list[str], words: list[str]
) -> None:
    before = {path: path.read_bytes() if path.is_file() else None for path in working_dir.rglob("*")}

    out = [] if "--out" in arguments or not arguments else ["--out", "new"]
    fails(export(run, *arguments, *out), *words)
    assert {path: path.read_bytes() if path.is_file() else None for path in working_dir.rglob("*")} == before


def test_ppd_export_is_also_a_subcommand(run: Run, working_dir: Path) -> None:
    fails(run("export", "--model", "tinypy", "--gpu", "cpux", "--out", "new"), "no target is called 'cpux'", "cpu")
    assert not (working_dir / "new").exists()


def test_an_output_that_may_not_be_written_is_refused_before_the_work(
    run: Run, working_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ppd.export import exporter

    monkeypatch.setattr(exporter, "open_weights", lambda *_: pytest.fail("the weights are loaded"))

    fails(export(run, "--out", "old"), "old exists; give --force")
    fails(export(run, "--out", "thesis", "--force"), "thesis exists and is not a bundle")
    assert (working_dir / "thesis" / "chapter").exists()


@pytest.mark.parametrize("out", ["new", "old"])
def test_an_export_that_fails_half_way_leaves_everything_as_it_was(
    run: Run, working_dir: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    from ppd.export import exporter

    def fail(*_: object) -> None:
        assert len(list(working_dir.glob(f".{out}.*.tmp"))) == 1  # it works beside the output
        raise ExportError("the graph cannot be traced")

    before = sorted(working_dir.rglob("*"))
    monkeypatch.setattr(exporter, "trace", fail)

    fails(export(run, "--out", out, "--force"), "the graph cannot be traced")
    assert sorted(working_dir.rglob("*")) == before
    assert (working_dir / "old" / MANIFEST_FILE).read_text("utf-8") == OLD_MANIFEST


def test_a_package_that_export_needs_and_is_not_there_is_named(working_dir: Path) -> None:
    code = "import sys; sys.modules['onnx'] = None; from ppd.cli import export_main; export_main()"
    command = [sys.executable, "-c", code, "--model", "tinypy", "--gpu", "cpu", "--out", "new"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=working_dir)

    fails(Outcome(done.returncode, done.stdout, done.stderr), "onnx is not installed", 'pip install "ppd-edge[export]"')
    assert not (working_dir / "new").exists()
