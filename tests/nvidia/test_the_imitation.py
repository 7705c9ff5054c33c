"""The imitated GPU of the other tests against NVIDIA's own classes: it has what they have, and refuses as they do."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ppd.bundle import open_bundle
from tests.fakes import tensorrt as fakes
from tests.fakes.gpu import FakeGpu
from tests.nvidia.bindings import RTX
from tests.nvidia.probe import outcome
from tests.nvidia.uses import ONLY_RTX_RUNS, parameters, uses

CLASSES = {"Runtime": fakes.Runtime, "ICudaEngine": fakes.Engine, "IExecutionContext": fakes.Context}
NEWEST = "11.4.0.106"


@pytest.fixture
def gpu(tinypy_bundle: Path) -> FakeGpu:
    return FakeGpu(open_bundle(tinypy_bundle, verify=False))


def _only(found: dict[str, Any], name: str) -> None:
    if found["name"] != name:
        pytest.skip("compared with the newest version")


def test_its_functions_have_the_names_and_arguments_of_nvidias(found: dict[str, Any], gpu: FakeGpu) -> None:
    _only(found, NEWEST)
    runtime = gpu.tensorrt().Runtime(None)
    engine = runtime.deserialize_cuda_engine(b"plan")
    objects = {"Runtime": runtime, "ICudaEngine": engine, "IExecutionContext": engine.create_execution_context("user")}
    wrong = []
    for use in uses():
        owner, _, member = use.path.rpartition(".")
        if owner not in CLASSES or not use.called or use.where.startswith(ONLY_RTX_RUNS):
            continue
        theirs = [[name for name, _ in parameters(line)] for line in found["surface"][owner].get(member, [])]
        ours = list(inspect.signature(getattr(objects[owner], member)).parameters)
        if theirs and ours not in [names[: len(ours)] for names in theirs]:
            wrong.append(f"{use.path}({', '.join(ours)}), NVIDIA's takes {theirs}")

    assert wrong == []


def test_it_has_every_value_of_the_module_that_the_runtime_uses(found: dict[str, Any], gpu: FakeGpu) -> None:
    _only(found, NEWEST)
    runs = [
        use
        for use in uses()
        if use.where.startswith("runtime/") and not use.is_optional and not use.where.startswith(ONLY_RTX_RUNS)
    ]
    module, lacking = gpu.tensorrt(), []
    for path in {use.path for use in runs if use.path.split(".")[0] not in CLASSES}:
        thing: Any = module
        for part in path.split("."):
            thing = getattr(thing, part, None)
        if thing is None:
            lacking.append(path)

    assert lacking == []


def test_it_refuses_as_nvidias_classes_do(found: dict[str, Any], gpu: FakeGpu) -> None:
    if found["name"] == RTX:
        pytest.skip("its real libraries cannot be made to refuse")
    module = gpu.tensorrt()
    runtime = module.Runtime(None)
    engine = runtime.deserialize_cuda_engine(b"plan")
    context = engine.create_execution_context("user")
    name, address = engine.tensors[0], gpu.allocate(256, "a test")[1]
    calls: dict[str, Callable[[], Any]] = {
        "Runtime": lambda: module.Runtime(None),
        "deserialize_cuda_engine": lambda: runtime.deserialize_cuda_engine(b"plan"),
        "deserialize_cuda_engine of a view": lambda: runtime.deserialize_cuda_engine(memoryview(b"")),
        "create_execution_context": lambda: engine.create_execution_context("user"),
        "set_optimization_profile_async": lambda: context.set_optimization_profile_async(1, 7),
        "set_tensor_address": lambda: context.set_tensor_address(name, address),
        "set_input_shape": lambda: context.set_input_shape(name, (1, 1)),
    }
    works = {f"{call} that works": outcome(calls[call]) for call in calls if call.startswith("set_")}
    gpu.refused.update(calls)
    answers = {call: outcome(calls[call]) for call in calls} | works

    theirs = {call: found["answers"][call] for call in answers}
    assert {**theirs, "set_optimization_profile_async": "RuntimeError"} == answers
