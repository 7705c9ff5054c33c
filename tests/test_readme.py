"""The README's code runs as it stands there."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ppd.tree import tree_from_json

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
BIN = Path(sys.executable).parent


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tinypy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_python_blocks_run(folder: Path, tinypy_bundle: Path) -> None:
    shutil.copytree(tinypy_bundle, folder / "b")
    assert blocks("python")
    for block in blocks("python"):
        output = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, check=False)
        assert output.returncode == 0, output.stderr
        assert output.stdout


def test_shell_blocks_run(folder: Path) -> None:
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    assert lines[0].startswith("ppd-export")
    for line in lines:
        program, *arguments = shlex.split(line, comments=True)
        output = subprocess.run([BIN / program, *arguments], capture_output=True, text=True, check=False)
        assert output.returncode == 0, f"{line}: {output.stderr}"
        assert output.stdout


def test_tree_file_of_the_architecture_is_one() -> None:
    text = (Path(__file__).parents[1] / "ARCHITECTURE.md").read_text("utf-8")
    (example,) = re.findall(r"^```json\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    tree = tree_from_json(example)
    assert tree.rows[2].num_candidates == 3
    assert not tree_from_json(
        '{"schema": 1, "num_prompt_tokens": 2, "states": {"0": [{"path": [], "prompts": 0}]}}'
    ).drafts


def test_commands_that_are_named_exist() -> None:
    named = set(re.findall(r"`ppd ([a-z]+)", README))
    help_text = subprocess.run([BIN / "ppd", "--help"], capture_output=True, text=True, check=True).stdout
    assert named
    for command in named:
        assert re.search(rf"\b{command}\b", help_text), command


def test_make_targets_that_are_named_exist() -> None:
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
