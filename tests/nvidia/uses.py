"""What our code uses of TensorRT's module, read from its source: every attribute, and how every function is called."""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ppd

ROOT = Path(ppd.__file__).parent
SOURCES = sorted([*ROOT.glob("build/*.py"), *ROOT.glob("runtime/engines/tensorrt/*.py")])
MODULE = ("trt", "_trt")
"""Names that the module itself has in our code."""
INSTANCES: dict[str, dict[str, str | None]] = {
    "build/config.py": {
        "builder": "Builder",
        "config": "IBuilderConfig",
        "logger": "ILogger",
        "monitor": "IProgressMonitor",
        "profile": "IOptimizationProfile",
    },
    "build/log.py": {"severity": None},
    "build/serialize.py": {"builder": "Builder", "network": "INetworkDefinition"},
    "build/network.py": {
        "builder": "Builder",
        "layer": "ILayer",
        "attention_layer": "IAttentionInputLayer",
        "attention": "IAttention",
        "logger": "ILogger",
        "network": "INetworkDefinition",
        "parser": "OnnxParser",
    },
    "build/timing_cache.py": {"cache": "ITimingCache", "config": "IBuilderConfig"},
    "runtime/engines/tensorrt/engine.py": {"engine": "ICudaEngine", "context": "IExecutionContext"},
    "runtime/engines/tensorrt/contexts.py": {
        "_engine": "ICudaEngine",
        "engine": "ICudaEngine",
        "context": "IExecutionContext",
        "runtime": "Runtime",
    },
    "runtime/engines/tensorrt/kernels.py": {
        "_cache": "IRuntimeCache",
        "config": "IRuntimeConfig",
        "engine": "ICudaEngine",
    },
    "runtime/engines/tensorrt/loading.py": {
        "engine": "ICudaEngine",
        "logger": "ILogger",
        "runtime": "Runtime",
        "severity": "ILogger.Severity",
    },
}
"""File → what TensorRT's objects are called in it, and their class; None for an enum's value. What is not named here is
not checked, so that `unnamed` looks for parameters and variables that are missing."""
ONLY_RTX_RUNS = "runtime/engines/tensorrt/kernels.py"
"""Code that only TensorRT-RTX runs."""
CASTS = {"ILayer.attention": "IAttentionInputLayer.attention"}
"""Attributes that an object has after our code gave it another class."""
HOLDS = {"IAttentionInputLayer.attention": "IAttention"}
"""Attributes whose value is itself used."""


@dataclass(frozen=True, slots=True)
class Use:
    """An attribute that our code uses.

    Attributes:
        path: Such as "Builder.create_network".
        where: File and line.
        called: Whether it is called, with `num_arguments` by position and the others by name.
        is_optional: Whether our code asks if it exists.
    """

    path: str
    where: str
    called: bool = False
    num_arguments: int = 0
    names: tuple[str, ...] = ()
    is_optional: bool = False


def uses() -> list[Use]:
    """Every use, in the order of the source."""
    return [use for path in SOURCES for use in _of_file(path)]


def unnamed() -> list[str]:
    """Parameters typed `Any`, and variables made by a call of the module, that `INSTANCES` lacks."""
    missing = []
    for path in SOURCES:
        file, tree = path.relative_to(ROOT).as_posix(), ast.parse(path.read_text("utf-8"))
        if not _mentions_module(tree):
            continue
        known = {*INSTANCES.get(file, {}), *MODULE}
        made = [name for node in ast.walk(tree) if isinstance(node, ast.Assign) for name in _made(node)]
        missing += [f"{file}: {name}" for name in [*_parameters(tree), *made] if name not in known]
    return missing


def _mentions_module(tree: ast.Module) -> bool:
    return any(isinstance(node, ast.arg) and node.arg in MODULE for node in ast.walk(tree))


def _parameters(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.arg) and isinstance(node.annotation, ast.Name) and node.annotation.id == "Any":
            yield node.arg


def _made(node: ast.Assign) -> Iterator[str]:
    """Variables of `x = trt.Class(…)`."""
    made = _path(node.value.func, {}) if isinstance(node.value, ast.Call) else None
    if made is not None and "." not in made:
        yield from (target.id for target in node.targets if isinstance(target, ast.Name))


def _of_file(path: Path) -> Iterator[Use]:
    file, tree = path.relative_to(ROOT).as_posix(), ast.parse(path.read_text("utf-8"))
    instances = INSTANCES.get(file, {})
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        where = f"{file}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr"):
            owner = _path(node.args[0], instances)
            if owner is not None and isinstance(node.args[1], ast.Constant):
                yield Use(f"{owner}.{node.args[1].value!s}".lstrip("."), where, is_optional=True)
        if not isinstance(node, ast.Attribute) or (found := _path(node, instances)) in (None, ""):
            continue
        call = calls.get(id(node))
        if call is None or any(isinstance(argument, ast.Starred) for argument in call.args):
            yield Use(str(found), where)
        else:
            names = tuple(str(keyword.arg) for keyword in call.keywords)
            yield Use(str(found), where, called=True, num_arguments=len(call.args), names=names)


def _path(node: ast.expr, instances: dict[str, str | None]) -> str | None:
    """The attribute below TensorRT's module that an expression is; "" for the module, None for anything else."""
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else None
    if name in MODULE:
        return ""
    if name in instances and (isinstance(node, ast.Name) or _is_ours(node)):
        return instances[name]
    if isinstance(node, ast.Attribute) and (owner := _path(node.value, instances)) is not None:
        owner = HOLDS.get(owner, owner)
        path = f"{owner}.{node.attr}".lstrip(".")
        return CASTS.get(path, path)
    return None


def _is_ours(node: ast.expr) -> bool:
    """Whether an attribute that bears an instance's name belongs to an object of ours, as `self._engine` does."""
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("self", "step")


def takes(signatures: list[str], num_arguments: int, names: tuple[str, ...]) -> bool:
    """Whether one of a function's signatures takes so many arguments by position, and these by name."""
    return any(_takes(signature, num_arguments, names) for signature in signatures)


def parameters(signature: str) -> list[tuple[str, bool]]:
    """Name of each parameter but self, and whether it may be left out; from pybind11's `name(a: X, b: Y = 0) -> Z`."""
    inside = signature[signature.index("(") + 1 : signature.rindex(") -> ")]
    parts = re.split(r",\s*(?![^\[\(<]*[\]\)>])", inside)
    found = [(part.split(":")[0].split("=")[0].strip(), "=" in part) for part in parts if part.strip()]
    return found[1:] if found and found[0][0] in ("self", "arg0") else found


def _takes(signature: str, num_arguments: int, names: tuple[str, ...]) -> bool:
    wanted = parameters(signature)
    if num_arguments > len(wanted):
        return False
    rest = dict(wanted[num_arguments:])
    return set(names) <= rest.keys() and all(optional for name, optional in rest.items() if name not in names)
