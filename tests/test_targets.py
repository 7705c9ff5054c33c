"""Targets: the presets of devices, found by name."""

import json
import re
from pathlib import Path

import pytest

import ppd.targets
from ppd.errors import ArgumentError, PPDError
from ppd.precision import PRECISIONS
from ppd.targets import Target, find_target, load_targets, resolve_precision

CPU = find_target("cpu")
ROOT = Path(__file__).parents[1]


def test_every_preset_is_found_by_its_name_and_is_whole() -> None:
    targets = load_targets()

    assert {"cpu", "jetson-orin", "rtx-4090"} <= targets.keys()
    for name, target in targets.items():
        assert find_target(name) is target
        assert target.name == name
        assert re.fullmatch("[a-z0-9]+(-[a-z0-9]+)*", name)
        assert target.description
        assert target.compute_capability is None or re.fullmatch(r"\d+\.\d", target.compute_capability)
        assert resolve_precision("auto", target).name == target.precision


def test_every_figure_has_a_source() -> None:
    for target in load_targets().values():
        figures = [f"throughput_tflops.{precision}" for precision in target.throughput_tflops]
        for name in ("compute_capability", "memory_gb", "bandwidth_gbs"):
            figures += [name] if getattr(target, name) is not None else []
        figures += ["power_modes"] if target.power_modes else []
        figures += ["context"] if target.context is not None else []
        assert {*figures, "precision", "tensorrt", "tensorrt_rtx"} == target.sources.keys()
        assert all(target.sources.values())


def test_figures_are_whole_for_every_device_but_the_machine_itself() -> None:
    for name, target in load_targets().items():
        known = {target.memory_gb is not None, target.bandwidth_gbs is not None, bool(target.throughput_tflops)}
        assert known == {name != "cpu"}
        if name != "cpu":
            assert target.throughput_tflops.keys() == {"fp32", "fp16", "int8", "int4"}
            assert min(target.throughput_tflops.values()) == target.throughput_tflops["fp32"] > 0


def test_tensorrt_rtx_is_offered_where_it_knows_the_compute_capability() -> None:
    for target in load_targets().values():
        assert target.tensorrt_rtx == (target.compute_capability in {"7.5", "8.0", "8.6", "8.9", "12.0", "12.1"})
        assert (target.tensorrt is None) == (target.compute_capability is None)
        assert target.tensorrt is None or re.fullmatch(r"\d+\.\d+\+", target.tensorrt)


@pytest.mark.parametrize(("name", "expected"), [("jetson-orin", "fp16"), ("raspberry-pi-5", "int8"), ("cpu", "fp32")])
def test_auto_is_the_presets_precision(name: str, expected: str) -> None:
    assert resolve_precision("auto", find_target(name)).name == expected


@pytest.mark.parametrize(
    ("name", "types"),
    [("cpu", "float32 float16 float32 float32"), ("jetson-orin", "float32 float16 float16 float16")],
)
def test_a_graph_has_16_bits_on_a_gpu_and_where_asked_for(name: str, types: str) -> None:
    assert [find_target(name).graph_type(precision) for precision in PRECISIONS.values()] == types.split()


def test_a_target_with_an_nvidia_gpu_says_how_to_build_on_it() -> None:
    for target in load_targets().values():
        assert (target.build is None) == (target.compute_capability is None)
        if target.build is not None:
            for command in target.build.install.values():
                assert command.startswith("pip install ")
                assert "./$wheel[" in command
            assert bool(target.build.power) == bool(target.power_modes)
            assert not any("$" in line.replace("$mode", "") for line in target.build.power)


def test_the_guide_and_the_recipes_install_what_the_presets_say() -> None:
    guide = (ROOT / "docs" / "deploy-jetson.md").read_text("utf-8")
    recipes = {path.name: path.read_text("utf-8") for path in (ROOT / "docker").glob("*.Dockerfile")}
    commands: dict[str, str] = {}
    for target in load_targets().values():
        commands |= target.build.install if target.build and target.power_modes else {}

    assert len(commands) == 3
    for system, command in commands.items():
        line, pin = re.search(r"R\d\d", system), command.split(" ")[-1]
        assert line is not None
        (row,) = (row for row in guide.splitlines() if row.startswith(f"| {line.group()}: JetPack"))
        assert re.sub(r"ppd_edge-[\w.-]+\.whl", "$wheel", row.split("`")[1]) == command
        recipe = recipes["jetson-jp6.Dockerfile" if "JetPack 6" in system else "jetson-jp7.Dockerfile"]
        assert pin in recipe or line.group() == "R39"  # the recipe is for every JetPack 7


def test_presets_are_read_from_the_data_file() -> None:
    data = json.loads((Path(ppd.targets.__file__).parent / "targets.json").read_text("utf-8"))

    assert data["schema"] == 1
    assert list(load_targets()) == list(data["targets"])


@pytest.mark.parametrize(
    ("name", "compute_capability"), [("jetson-orin", "8.7"), ("rtx-4090", "8.9"), ("a100-40", "8.0"), ("cpu", None)]
)
def test_compute_capabilities_are_those_that_nvidia_lists(name: str, compute_capability: str | None) -> None:
    assert find_target(name).compute_capability == compute_capability


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("jetson-oren", "jetson-orin"), ("rtx4090", "rtx-4090"), ("cpus", "cpu"), ("raspberry", "raspberry-pi-5")],
)
def test_an_unknown_name_lists_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ArgumentError, match=f"no target is called {name!r}") as caught:
        find_target(name)

    assert nearest in str(caught.value)
    assert "h200" not in str(caught.value)  # only the nearest
    assert "ppd targets" in str(caught.value)
    assert isinstance(caught.value, PPDError)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("name", ["", "§§§§"])
def test_a_name_like_no_other_lists_them_all(name: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        find_target(name)

    assert all(known in str(caught.value) for known in load_targets())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_precision_that_can_be_exported_is_taken_as_asked(precision: str) -> None:
    assert resolve_precision(precision, CPU).name == precision


@pytest.mark.parametrize("precision", ["fp64", "FP32", "", "Auto"])
def test_any_other_precision_is_refused(precision: str) -> None:
    with pytest.raises(ArgumentError, match=f"precision {precision!r} cannot be exported.*fp32"):
        resolve_precision(precision, CPU)


def test_a_preset_asks_for_what_can_be_exported() -> None:
    hopeful = Target(name="later", description="a device", compute_capability=None, precision="int3")

    with pytest.raises(ArgumentError, match="precision 'int3' cannot be exported"):
        resolve_precision("auto", hopeful)
