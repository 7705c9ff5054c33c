"""Who may import whom. Arrows point down: cli → train, export, calibrate, serve → build → models, runtime → core."""

import ast
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import ppd

PACKAGE = Path(ppd.__file__).parent
CORE = (
    "errors",
    "signature",
    "tree",
    "manifest",
    "codec",
    "bundle",
    "changes",
    "files",
    "locks",
    "staging",
    "graph_files",
    "targets",
    "documents",
    "formats",
    "messages",
    "questions",
    "precision",
    "decision",
    "measures",
    "ngrams",
    "host_memory",
    "memory",
    "extras",
    "verbs",
    "limits",
    "json_files",
    "native",
    "arguments",
    "board",
    "tree_tables",
)


@dataclass(frozen=True)
class Layer:
    """What the modules of a layer may import besides the standard library and each other.

    Attributes:
        layers: Other layers of this package.
        packages: Other packages, or parts of them ("google.protobuf").
    """

    layers: frozenset[str]
    packages: frozenset[str]


def layer(layers: str, packages: str) -> Layer:
    return Layer(frozenset(layers.split()), frozenset(packages.split()))


LAYERS = {
    # The package itself: five names of public functions, which it imports only when they are asked for.
    "ppd": layer("runtime calibrate export train", ""),
    "core": layer("", "numpy"),
    "templates": layer("core", "jinja2"),
    "runtime": layer("core planning templates", "numpy tokenizers onnxruntime tensorrt tensorrt_rtx_bindings cuda"),
    "models": layer("core", "numpy torch safetensors gguf huggingface_hub tokenizers sentencepiece google.protobuf"),
    "planning": layer("core", "numpy"),
    "torch_engine": layer("core models runtime", "numpy torch onnx"),
    "build": layer("core runtime", "numpy onnx google.protobuf tensorrt tensorrt_rtx_bindings"),
    "serve": layer("core runtime", "starlette uvicorn sse_starlette prometheus_client"),
    "calibrate": layer("core runtime planning build", "numpy pynvml"),
    "doctor": layer("core", ""),
    "export": layer(
        "core models runtime planning build",
        "numpy ml_dtypes torch safetensors tokenizers onnx onnx_ir onnxscript onnxruntime",
    ),
    "train": layer("core models runtime planning", "numpy torch safetensors tokenizers accelerate matplotlib"),
    "cli": layer(
        "core models templates runtime planning build export calibrate train serve doctor",
        "typer rich matplotlib numpy",
    ),
}


def layer_of(module: str) -> str:
    """The layer of a module such as `ppd.runtime.model`."""
    parts = module.split(".")
    assert parts[0] == "ppd"
    name = parts[1] if len(parts) > 1 else "ppd"
    return "core" if name in CORE else "cli" if name == "__main__" else name


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST, module: str, *, is_package: bool) -> set[str]:
    """Everything that a module imports, wherever the statement stands: in functions, conditions and type checking."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: len(module.split(".")) - node.level + is_package] if node.level else []
            origin = ".".join([*base, *filter(None, [node.module])])
            found |= {f"{origin}.{alias.name}" for alias in node.names}
    return found


def complaints(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """Imports of a module that its layer does not allow."""
    name = layer_of(module)
    if name not in LAYERS:
        return [f"{module} belongs to no layer"]
    allowed, wrong = LAYERS[name], []
    for imported in sorted(imports(ast.parse(source), module, is_package=is_package)):
        root = imported.split(".")[0]
        if root == "ppd":
            fine = imported in ("ppd", "ppd.__version__") or layer_of(imported) in {name, *allowed.layers}
        else:
            fine = root in sys.stdlib_module_names or any(
                imported == package or imported.startswith(f"{package}.") for package in allowed.packages
            )
        if not fine:
            wrong.append(f"{module} imports {imported}")
    return wrong


def edges(modules: dict[str, tuple[str, bool]]) -> dict[str, set[str]]:
    """Module → the modules of this package that it imports, wherever the statement stands.

    Args:
        modules: Name → source, and whether it is a package.
    """
    found: dict[str, set[str]] = {}
    for module, (source, is_package) in modules.items():
        named = imports(ast.parse(source), module, is_package=is_package)
        # `from ppd.cli import app` names a module, `from ppd.tree import Tree` something in one.
        owners = {name if name in modules else name.rpartition(".")[0] for name in named}
        found[module] = (owners & modules.keys()) - {module}
    return found


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle, the first of them again at the end; empty if there is none."""
    done: set[str] = set()

    def walk(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        found = next(filter(None, (walk(to, [*path, module]) for to in sorted(graph[module]))), [])
        done.add(module)
        return found

    return next(filter(None, (walk(module, []) for module in sorted(graph))), [])


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down(module: str) -> None:
    path = MODULES[module]

    assert complaints(path.read_text("utf-8"), module, is_package=path.name == "__init__.py") == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    sources = {
        name: (path.read_text("utf-8"), path.name == "__init__.py")
        for name, path in MODULES.items()
        if name != "ppd"  # it names the public functions, and imports them when they are asked for
    }

    assert circle(edges(sources)) == []


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        ({"ppd.a": "from ppd.b import f", "ppd.b": "def f():\n    import ppd.a"}, ["ppd.a", "ppd.b", "ppd.a"]),
        ({"ppd.a": "from ppd import b", "ppd.b": "from .a import g"}, ["ppd.a", "ppd.b", "ppd.a"]),
        (
            {"ppd.a": "import ppd.c", "ppd.b": "import ppd.a", "ppd.c": "import ppd.b"},
            ["ppd.a", "ppd.c", "ppd.b", "ppd.a"],
        ),
        ({"ppd.a": "from ppd.b import f\nfrom ppd.c import g", "ppd.b": "from ppd.c import g", "ppd.c": ""}, []),
    ],
)
def test_a_circle_is_found(sources: dict[str, str], expected: list[str]) -> None:
    assert circle(edges({name: (source, False) for name, source in sources.items()})) == expected


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("ppd.tree", "import torch"),
        ("ppd.bundle", "def f():\n    from ppd.runtime import load"),
        ("ppd.bundle", "from ppd import runtime"),
        ("ppd.bundle", "from . import cli"),
        ("ppd.bundle", "from .runtime.model import load"),
        ("ppd.runtime.model", "import onnx"),
        ("ppd.runtime.model", "from onnx import checker"),
        ("ppd.runtime.model", "from ppd.models.registry import load_registry"),
        ("ppd.runtime.engines.onnxruntime.cpu", "from ....export import fold"),
        ("ppd.runtime.model", "if TYPE_CHECKING:\n    import transformers"),
        ("ppd.models.hub", "import requests"),
        ("ppd.models.hub", "from google import auth"),
        ("ppd.models.hub", "from ppd.runtime.model import load"),
        ("ppd.runtime.engines", "from ppd.torch_engine.engine import open_torch"),
        ("ppd.torch_engine.engine", "from ppd.export.fold import fold"),
        ("ppd.serve.worker", "import torch"),
        ("ppd.runtime.model", "from ppd.serve.server import serve"),
        ("ppd.export.fold", "import transformers"),
        ("ppd.export.fold", "import ppd.cli"),
        ("ppd.planning.search", "import onnx"),
        ("ppd.cli", "import torch"),
        ("ppd.somewhere.new", ""),
    ],
)
def test_an_import_that_points_elsewhere_is_found(module: str, source: str) -> None:
    assert len(complaints(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("ppd.tree", "import json, numpy.typing\nfrom ppd.errors import TreeError\nfrom . import signature"),
        ("ppd.runtime.model", "import ppd\nfrom ppd.bundle import Bundle\nfrom .decode import Plans"),
        ("ppd.models.sentencepiece_tokenizer", "from google.protobuf import message\nimport google.protobuf.message"),
        ("ppd.export.exporter", "import onnx\nfrom ppd import __version__\nfrom ppd.runtime.check import Recording"),
        ("ppd.cli", "import typer\ndef f():\n    from ppd.export.exporter import export"),
    ],
)
def test_an_import_that_points_down_is_allowed(module: str, source: str) -> None:
    assert complaints(source, module) == []


def test_the_runtime_generates_without_torch_transformers_or_onnx(tinypy_bundle: Path) -> None:
    code = """
import json, sys
from ppd import runtime
model = runtime.load(sys.argv[1], threads=1)
plain, drafted = (model.generate("def f(", max_new_tokens=4, draft=draft).token_ids for draft in (False, True))
info = runtime.check_bundle(sys.argv[1], threads=1)
modules = sorted({name.split(".")[0] for name in sys.modules})
print(json.dumps({"same": plain == drafted, "rows": info.num_rows, "modules": modules}))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tinypy_bundle)], capture_output=True, text=True, check=True, timeout=120
    )
    answer = json.loads(done.stdout)

    assert answer["same"]
    assert answer["rows"] > 0
    assert "onnxruntime" in answer["modules"]
    assert not {"torch", "transformers", "onnx", "onnxscript", "onnx_ir", "safetensors"} & set(answer["modules"])
