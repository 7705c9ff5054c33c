"""Targets: presets of the devices that a bundle is made for. A new one is an entry in `targets.json`."""

import difflib
import functools
import json
from dataclasses import dataclass, field
from pathlib import Path

from ppd.errors import ArgumentError, EngineError

PRECISIONS = ("fp32", "fp16", "int8", "int4")
"""Precisions that this version exports."""

ENGINE_PRECISIONS = {
    "onnxruntime": ("fp32", "fp16", "int8", "int4"),
    "onnxruntime-cuda": ("fp32", "fp16", "int8", "int4"),
    "tensorrt": ("fp32", "fp16", "int8", "int4"),
    "tensorrt-rtx": ("fp32", "fp16", "int8", "int4"),
    "torch": ("fp32", "fp16", "int8", "int4"),
}
"""Engine → precisions of the bundles that it opens; any other is refused. docs/gpu.md says what each computes in, and
what has been tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A device preset.

    Attributes:
        name: What `--gpu` takes.
        description: The device, in words.
        compute_capability: CUDA compute capability, as NVIDIA lists it; None without an NVIDIA GPU.
        precision: What `--precision auto` means here, once this version exports it (see `resolve_precision`).
        memory_gb: Memory that weights, KV cache and workspace share, in GB; None where it depends on the machine.
        bandwidth_gbs: Its bandwidth, in GB/s; None where it depends on the machine.
        throughput_tflops: Dense operations by precision as run, in 10^12/s: weight-only int8 and int4 compute in fp16
            on a GPU. Empty where it depends on the machine.
        power_modes: Power modes by name, the fastest last, where they matter; the figures are those of the fastest.
        context: Cache length that memory is planned for; a model with less takes its own.
        tensorrt: The oldest TensorRT that the device may have, as "10.3+"; None where there is none.
        tensorrt_rtx: Whether TensorRT-RTX knows the compute capability.
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
    context: int = 4096
    tensorrt: str | None = None
    tensorrt_rtx: bool = False
    sources: dict[str, str] = field(default_factory=dict)

    def holds(self, size_bytes: int) -> bool:
        """Whether so much fits the memory; unknown counts as yes."""
        return self.memory_gb is None or size_bytes <= self.memory_gb * 10**9


@functools.cache
def load_targets() -> dict[str, Target]:
    """Every preset, by name."""
    data = json.loads((Path(__file__).parent / "targets.json").read_text("utf-8"))
    return {name: Target(name=name, **fields) for name, fields in data["targets"].items()}


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


def resolve_precision(precision: str, target: Target) -> str:
    """The precision that `auto` stands for, or the one asked for if it can be exported.

    `auto` is the preset's precision, or the next more exact one that this version exports; fp16 only on a GPU.

    Raises:
        ArgumentError: It cannot.
    """
    resolved = _nearest_precision(target) if precision == "auto" else precision
    if resolved not in PRECISIONS:
        raise ArgumentError(f"precision {resolved!r} cannot be exported; this version exports {', '.join(PRECISIONS)}")
    return resolved


def require_engine_precision(engine: str, precision: str) -> None:
    """Refuse a bundle whose precision an engine cannot run.

    Args:
        engine: A key of `ENGINE_PRECISIONS`.
        precision: Of the bundle.

    Raises:
        EngineError: It cannot; the message lists what it can run, and the engines that run this precision.
    """
    usable = ENGINE_PRECISIONS[engine]
    if precision not in usable:
        others = [name for name, precisions in ENGINE_PRECISIONS.items() if precision in precisions]
        instead = f", or use {' or '.join(others)}" if others else ""
        raise EngineError(
            f"the bundle is in {precision}, the engine {engine} runs {', '.join(usable)}; "
            f"export with another --precision{instead}"
        )


def has_16_bit_graph(precision: str, target: Target) -> bool:
    """Whether what is not quantised has 16 bits: where asked for, and on GPUs but for fp32."""
    return precision == "fp16" or (target.compute_capability is not None and precision != "fp32")


def _nearest_precision(target: Target) -> str:
    order = ("int4", "int8", "fp16", "fp32")
    if target.precision not in order:
        return target.precision
    more_exact = order[order.index(target.precision) :]
    usable = (p for p in more_exact if p in PRECISIONS and (p != "fp16" or target.compute_capability is not None))
    return next(usable, target.precision)
