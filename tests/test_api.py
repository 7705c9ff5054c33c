"""The Python API: five names, light to import, whichever module of theirs was imported first."""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import ppd


def in_a_new_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return done.stdout.strip()


def test_importing_the_package_imports_nothing_heavy() -> None:
    loaded = json.loads(in_a_new_process("import json, sys, ppd; print(json.dumps(sorted(sys.modules)))"))

    assert not {"numpy", "torch", "onnxruntime", "ppd.runtime", "ppd.errors"} & set(loaded)


def test_naming_a_verb_imports_nothing_heavy() -> None:
    code = "import json, sys; from ppd import export, calibrate, train; print(json.dumps(sorted(sys.modules)))"

    assert not {"numpy", "torch", "onnxruntime"} & set(json.loads(in_a_new_process(code)))


@pytest.mark.parametrize(
    ("name", "module"),
    [("export", "ppd.export.exporter"), ("calibrate", "ppd.calibrate.calibrate"), ("train", "ppd.train.trainer")],
)
@pytest.mark.parametrize("first", ["", "import {module}; "])
def test_a_verb_is_called_whether_or_not_its_room_was_imported(name: str, module: str, first: str) -> None:
    code = (
        f"{first.format(module=module)}import inspect; from ppd import {name} as verb; "
        f"from {module} import {name}; assert callable(verb); "
        f"assert inspect.signature(verb) == inspect.signature({name}); print('same')"
    )

    assert in_a_new_process(code) == "same"


def test_a_call_reaches_the_function() -> None:
    from ppd.errors import ArgumentError

    with pytest.raises(ArgumentError, match="no target is called 'nowhere'"):
        ppd.export("tinypy", "nowhere")
    with pytest.raises(ArgumentError, match="minutes is 0"):
        ppd.calibrate("bundle", minutes=0)


def test_load_and_generate_are_the_runtimes(tinypy_bundle: Path) -> None:
    from ppd import runtime

    assert ppd.load is runtime.load
    assert ppd.generate(tinypy_bundle, "def f(", max_new_tokens=2).stats.steps >= 1
    assert "prompt" in inspect.signature(ppd.generate).parameters


def test_another_name_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="module 'ppd' has no attribute 'generat'"):
        ppd.generat  # noqa: B018
