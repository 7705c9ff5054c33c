"""NVIDIA's own classes against what our code uses of them, in five versions of TensorRT and in TensorRT-RTX."""

from typing import Any

import pytest

from tests.nvidia.bindings import RTX
from tests.nvidia.uses import ONLY_RTX_RUNS, Use, takes, unnamed, uses

SINCE = {
    "LayerType.ATTENTION_INPUT": (10, 14),
    "IAttentionInputLayer": (10, 14),
    "IAttentionInputLayer.attention": (10, 14),
    "IAttention.decomposable": (10, 14),
    "LayerType.KV_CACHE_UPDATE": (10, 15),
    "ICudaEngine.get_aliased_input_tensor": (10, 15),
}
"""What our code uses only in versions that have it: first version."""
ONLY_RTX = {
    "ComputeCapability",
    "IBuilderConfig.num_compute_capabilities",
    "IBuilderConfig.set_compute_capability",
    "BuilderFlag.REQUIRE_USER_ALLOCATION",
}
"""What it uses only in TensorRT-RTX."""
ANSWERS = {
    "Builder": "TypeError",
    "Runtime": "TypeError",
    "OnnxParser": "TypeError",
    "parse": "False",
    "create_network": "None",
    "create_builder_config": "None",
    "build_serialized_network": "None",
    "set_shape": "RuntimeError",
    "create_timing_cache": "None",
    "get_timing_cache": "None",
    "deserialize_cuda_engine": "None",
    "deserialize_cuda_engine of a view": "None",
    "create_execution_context": "None",
    "set_optimization_profile_async": "RuntimeError",
    "set_optimization_profile_async that works": "True",
    "set_input_shape": "False",
    "set_input_shape that works": "True",
    "set_tensor_address": "False",
    "set_tensor_address that works": "True",
    "execute_async_v3": "False",
    "execute_async_v3 that works": "True",
    # TensorRT's thread gets no exception: one in phase_start is lost, one in step_complete cancels the build.
    "Ctrl-C in phase_start": "int",
    "Ctrl-C in step_complete": "None, which cancels",
    "phase_start is told": "a phase in another of 3",
    "a logger of ours is told": "ERROR: said by TensorRT",
}
"""What happens where TensorRT refuses; everything else our code does rests on these."""
DIFFERENT = {("10.3.0", "set_optimization_profile_async"): "signal 11"}
"""10.3 takes the whole process down: a profile that an engine does not have must never be asked for."""


def _is_used_in(path: str, name: str, version: str) -> bool:
    if path in ONLY_RTX:
        return name == RTX
    major, minor = map(int, version.split(".")[:2])
    return name == RTX or (major, minor) >= SINCE.get(path, (0, 0))


def _wrong(use: Use, surface: dict[str, Any]) -> str | None:
    """What keeps a version from taking a use."""
    owner, _, member = use.path.rpartition(".")
    if not owner:
        return _wrong_call(use, surface[use.path].get("__init__", [])) if use.path in surface else "is missing"
    for part in owner.split("."):  # an enum inside a class is read through its members
        members = surface.get(part, surface.get(owner.split(".")[0], {}))
    return _wrong_call(use, members[member]) if member in members else "is missing"


def _wrong_call(use: Use, signatures: list[str]) -> str | None:
    if not use.called or use.path.endswith("__init__") or takes(signatures, use.num_arguments, use.names):
        return None
    return f"takes {signatures}, not {use.num_arguments} arguments and {use.names}"


def test_a_version_has_everything_that_our_code_uses_in_it(found: dict[str, Any]) -> None:
    used = [
        use
        for use in uses()
        if _is_used_in(use.path, found["name"], found["version"])
        and (found["name"] == RTX or not use.where.startswith(ONLY_RTX_RUNS))
    ]
    wrong = [(use, _wrong(use, found["surface"])) for use in used]

    assert [f"{use.where}: {use.path} {what}" for use, what in wrong if what and not use.is_optional] == []


def test_what_is_kept_from_older_versions_is_missing_there(found: dict[str, Any]) -> None:
    if found["name"] == RTX:
        pytest.skip("it has everything")
    older = [path for path in SINCE if not _is_used_in(path, found["name"], found["version"])]

    assert [path for path in older if _wrong(Use(path, ""), found["surface"]) is None] == []


def test_no_object_of_tensorrt_escapes_the_table() -> None:
    assert unnamed() == []
    assert {*SINCE, *ONLY_RTX} <= {use.path for use in uses()}


def test_a_version_answers_as_our_code_expects(found: dict[str, Any]) -> None:
    if found["name"] == RTX:
        pytest.skip("its real libraries cannot be made to refuse")
    name = found["name"]

    assert found["answers"] == {key: DIFFERENT.get((name, key), answer) for key, answer in ANSWERS.items()}


def test_nvidias_logger_prints_to_standard_output(found: dict[str, Any]) -> None:
    """Why ours is another: generated text and JSON go there."""
    assert "where NVIDIA's logger prints" in found["stdout"]


def test_types_have_the_sizes_that_buffers_are_made_for(found: dict[str, Any]) -> None:
    assert found["itemsize"] == {"INT64": 8, "FLOAT": 4, "HALF": 2, "BF16": 2}
