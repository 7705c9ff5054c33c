"""The documents' examples run as they stand there, and their numbers are the ones that they assert."""

import re
import shutil
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


def python_blocks(name: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (DOCS / name).read_text("utf-8"), re.MULTILINE | re.DOTALL)


def test_the_worked_example_of_the_trees_is_right() -> None:
    (block,) = python_blocks("trees.md")
    exec(compile(block, "docs/trees.md", "exec"), {})


def test_the_worked_example_would_notice_another_number() -> None:
    (block,) = python_blocks("trees.md")
    with pytest.raises(AssertionError):
        exec(compile(block.replace("1.603", "1.613"), "docs/trees.md", "exec"), {})


@pytest.mark.parametrize("number", ["1.603", "1.716", "1.328", "0.588", "0.206", "1.85"])
def test_the_text_of_the_trees_names_the_numbers_that_are_asserted(number: str) -> None:
    text = (DOCS / "trees.md").read_text("utf-8")
    (block,) = python_blocks("trees.md")
    assert number in block
    assert number in text.replace(block, "")


def test_the_python_page_runs(tinypy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(tinypy_bundle, tmp_path / "b")
    monkeypatch.chdir(tmp_path)
    exec(compile("\n".join(python_blocks("python.md")), "docs/python.md", "exec"), {})
