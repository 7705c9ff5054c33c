"""Remedies in messages name what exists where the package was installed from a wheel: extras, packages, commands."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import ppd
from ppd.models.registry import load_registry
from ppd.targets import load_targets

ROOT = Path(__file__).parents[1]
PACKAGE = Path(ppd.__file__).parent
PROJECT = (ROOT / "pyproject.toml").read_text("utf-8")
EXTRAS = re.findall(
    r"^([\w-]+) = \[", PROJECT.split("[project.optional-dependencies]")[1].split("\n[")[0], re.MULTILINE
)
FROM_ELSEWHERE = {"tensorrt", "tensorrt_cu12", "tensorrt_cu13", "nvidia-ml-py"}
"""What no extra brings: NVIDIA's TensorRT, which comes with JetPack too, and NVML, which only measures energy."""
ONLY_IN_A_CHECKOUT = re.compile(r"\bmake (?:demo|test|check|bench|docs)\b|\b(?:benchmarks|examples|scripts|tests)/")
COMMAND = re.compile(
    r"pip install ((?:--?[\w-]+ )*(?:\"[^\"]+\"|[\w.=<>\[\]-]+)(?: \"[^\"]+\"| [a-z_0-9]+_[a-z_0-9]+)*)"
)


def texts(tree: ast.AST) -> Iterator[str]:
    """The texts of a module that it may show, f-strings with {} for their values; its docstrings are none."""
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docs = {id(n.body[0].value) for n in ast.walk(tree) if isinstance(n, owners) and isinstance(n.body[0], ast.Expr)}
    inside = {id(part) for n in ast.walk(tree) if isinstance(n, ast.JoinedStr) for part in n.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and not {id(node)} & (docs | inside):
            yield node.value


MESSAGES = {
    (path.relative_to(ROOT).as_posix(), text)
    for path in PACKAGE.rglob("*.py")
    for text in texts(ast.parse(path.read_text("utf-8")))
} | {
    *(
        (f"target {target.name}", line)
        for target in load_targets().values()
        if target.build is not None
        for line in target.build.install.values()
    ),
    *(("registry.json", entry.note) for entry in load_registry().values()),
}
INSTALLS = sorted((where, found) for where, text in MESSAGES for found in COMMAND.findall(text))


def installed(command: str) -> list[str]:
    return [word.strip('"') for word in re.findall(r'"[^"]+"|\S+', command) if not word.startswith("-")]


def complaint(requirement: str) -> str | None:
    """What is wrong with a requirement that a message tells to install."""
    name, _, rest = requirement.partition("[")
    if name in ("ppd-edge", "./$wheel"):
        extra = rest.rstrip("]")
        return None if extra in {*EXTRAS, "{}"} - {"dev"} else f"no extra {extra!r}"
    name = re.split(r"[=<>!{]", name)[0]
    known = name in FROM_ELSEWHERE or not name or f'"{name}' in PROJECT.lower()
    packages = {entry.package.name for entry in load_registry().values() if entry.package is not None}
    return None if known or name in packages else f"{name} is no dependency"


def test_there_are_commands_to_hold() -> None:
    assert len(INSTALLS) > 10
    assert {"cpu", "cuda", "export", "train", "tensorrt", "tensorrt-jetson", "plot"} <= set(EXTRAS)


@pytest.mark.parametrize(("where", "command"), INSTALLS)
def test_a_remedy_installs_what_exists(where: str, command: str) -> None:
    assert [complaint(word) for word in installed(command)] == [None] * len(installed(command)), where


def test_a_remedy_that_names_what_does_not_exist_is_found() -> None:
    assert complaint("ppd-edge[gpu]") == "no extra 'gpu'"
    assert complaint("ppd-edge") == "no extra ''"  # it may have come from a wheel that no index has
    assert complaint("onnxrumtime") == "onnxrumtime is no dependency"


def test_the_extras_that_the_code_asks_for_exist() -> None:
    asked = {
        match
        for path in PACKAGE.rglob("*.py")
        for match in re.findall(r"\b(?:needs|remedy)\([\"']([\w-]+)[\"']\)", path.read_text("utf-8"))
        + re.findall(r"\brequire\([^,()]+, \"([\w-]+)\"\)", path.read_text("utf-8"))
    }
    assert {"export", "train", "tensorrt"} <= asked <= set(EXTRAS)


def test_no_message_sends_to_a_file_or_target_of_the_checkout() -> None:
    assert [(where, text) for where, text in MESSAGES if ONLY_IN_A_CHECKOUT.search(text)] == []
