"""Targets: presets of the devices that a bundle is made for. A new one is an entry in `targets.json`."""

import difflib
import functools
import json
from dataclasses import dataclass, field
from pathlib import Path

from ppd.errors import ArgumentError
from ppd.precision import GraphType, Precision, find_precision


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSteps:
    """What `BUILD.md` says of building a TensorRT engine on a kind of device.

    Attributes:
        why: Why it is built on the device: the beginning of a sentence.
        prepare: Commands that make the environment.
        install: System ("JetPack 6 (R36)") → the command that installs what the build needs, in which $wheel stands for
            the file of this package in the bundle.
        power: Lines about the power mode, in which $mode stands for the target's fastest; may be empty.
    """

    why: str
    prepare: list[str]
    install: dict[str, str]
    power: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A device preset.

    Attributes:
        name: What `--gpu` takes.
        compute_capability: CUDA compute capability, as NVIDIA lists it; None without an NVIDIA GPU.
        precision: What `--precision auto` means here.
        memory_gb: Memory that weights, KV cache and workspace share, in GB; None where it depends on the machine.
        bandwidth_gbs: Its bandwidth, in GB/s; None where it depends on the machine.
        throughput_tflops: Dense operations by precision as run, in 10^12/s: weight-only int8 and int4 compute in fp16
            on a GPU. Empty where it depends on the machine.
        power_modes: Power modes by name, the fastest last, where they matter; the figures are those of the fastest.
        context: The context of a bundle for it unless another is asked for, where a long one is dear in memory and
            time; a model with less takes its own. None for the model's own.
        tensorrt: The oldest TensorRT that the device may have, as "10.3+"; None where there is none.
        tensorrt_rtx: Whether TensorRT-RTX knows the compute capability.
        build: How an engine is built on the device; None without an NVIDIA GPU.
        notes: What else to know for the build, one paragraph each.
        sources: Figure ("throughput_tflops.fp16" for one precision) → where it is from.
    """

    name: str
    description: str
    compute_capability: str | None
    precision: str
    memory_gb: float | None = None
    bandwidth_gbs: float | None = None
    throughput_tflops: dict[str, float] = field(default_factory=dict)
    power_modes: list[str] = field(default_factory=list)
    context: int | None = None
    tensorrt: str | None = None
    tensorrt_rtx: bool = False
    build: BuildSteps | None = None
    notes: list[str] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=dict)

    def graph_type(self, precision: Precision) -> GraphType:
        """The graph's type for what is not quantised."""
        return precision.graph_type(on_gpu=self.compute_capability is not None)

    def holds(self, size_bytes: float) -> bool:
        """Whether that many bytes fit the memory; where the memory is not known, they do."""
        return self.memory_gb is None or size_bytes <= self.memory_gb * 10**9


@functools.cache
def load_targets() -> dict[str, Target]:
    """Every preset, by name."""
    data = json.loads((Path(__file__).parent / "targets.json").read_text("utf-8"))
    builds = {name: BuildSteps(**fields) for name, fields in data["builds"].items()}
    return {
        name: Target(name=name, **fields | {"build": builds[fields["build"]] if fields["build"] else None})
        for name, fields in data["targets"].items()
    }


def find_target(name: str) -> Target:
    """The preset of this name.

    Raises:
        ArgumentError: There is none; the message lists the nearest names.
    """
    targets = load_targets()
    if not isinstance(name, str) or name not in targets:
        near = difflib.get_close_matches(str(name).lower(), targets, n=3, cutoff=0.3) or sorted(targets)
        raise ArgumentError(f"no target is called {name!r}; nearest: {', '.join(near)} (ppd targets lists them all)")
    return targets[name]


def resolve_precision(precision: str, target: Target) -> Precision:
    """The precision asked for; `auto` is the preset's.

    Raises:
        ArgumentError: The precision cannot be exported.
    """
    return find_precision(target.precision if precision == "auto" else precision)
