"""Serialising: a bundle's graph becomes a TensorRT engine, for the GPU of this machine or ahead of time for another."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ppd.build.network import (
    Profiles,
    has_fused_attention,
    layer_kinds,
    make_decomposable,
    parse,
    read_graph,
    require_native,
)
from ppd.build.timing_cache import keep_timing_cache, use_timing_cache
from ppd.bundle import Bundle
from ppd.errors import EngineError

_FIRST_NATIVE = (10, 15)
"""First TensorRT with native attention (10.14.1), rotary and KV-write layers (10.15.1); an older one gets the lowered
graph. TensorRT's release notes; what its parser takes: https://github.com/onnx/onnx-tensorrt/pull/1048."""

BuildProgress = Callable[[str, float], None]
"""Called with the phase of the build, and the share of the build that is done, 0 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SerializedEngine:
    """What TensorRT built: its bytes, and how many layers of each kind the network had."""

    content: memoryview
    layers: dict[str, int]


def serialize_engine(
    trt: ModuleType,
    bundle: Bundle,
    profiles: Profiles,
    capability: str | None,
    lowered: bool,
    progress: BuildProgress = lambda _phase, _share: None,
    timings: Path | None = None,
) -> SerializedEngine:
    """Parse and build, and keep nothing.

    Args:
        trt: The flavour's module.
        bundle: The bundle, whose files the parser reads.
        profiles: The shapes.
        capability: Compute capability to build ahead of time for; None for the GPU of this machine.
        lowered: Build the lowered graph.
        progress: Called as the build goes on.
        timings: File of the timing cache; None to keep none.

    Raises:
        EngineError: The graph does not parse or build, or its layers are not native.
    """
    model = read_graph(bundle, profiles.capacity, lowered=lowered)
    info = bundle.manifest.model
    decomposable = not lowered and not has_fused_attention(model, info.head_dim)
    for attempt in (decomposable, True):
        messages: list[str] = []
        logger = _logger(trt, messages)
        builder = trt.Builder(logger)
        network = parse(trt, logger, builder, model, bundle.folder)
        if not lowered:
            require_native(trt, network, info.num_layers)
            if attempt:
                make_decomposable(trt, network)
        config = _config(trt, builder, profiles, capability, progress)
        if timings is not None:
            use_timing_cache(config, timings)
        content = builder.build_serialized_network(network, config)
        if content is not None:
            if timings is not None:
                keep_timing_cache(config, timings)
            return SerializedEngine(content=memoryview(content), layers=dict(layer_kinds(network)))
        if attempt or lowered or not any("decomposable" in message for message in messages):
            break
    raise EngineError(
        f"TensorRT {trt.__version__} cannot build {bundle.folder} ({'; '.join(messages[-2:]) or 'no reason given'}); "
        "free memory, or install another version of it"
    )


def is_lowered_for(version: str) -> bool:
    """Whether a version of TensorRT, such as "10.3", needs the lowered graph."""
    major, minor = version.split(".")[:2]
    return (int(major), int(minor)) < _FIRST_NATIVE


def compute_capabilities(trt: ModuleType) -> list[str]:
    """Compute capabilities that a flavour builds ahead of time for, such as "8.9"."""
    names = getattr(trt, "ComputeCapability", None)
    return [] if names is None else [f"{n[2:-1]}.{n[-1]}" for n in names.__members__ if n.startswith("SM")]


def _config(trt: ModuleType, builder: Any, profiles: Profiles, capability: str | None, progress: BuildProgress) -> Any:
    config = builder.create_builder_config()
    for ranges in profiles.ranges():
        profile = builder.create_optimization_profile()
        for name, shapes in ranges.items():
            profile.set_shape(name, *shapes)
        config.add_optimization_profile(profile)
    if capability is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{capability.replace('.', '')}"), 0)
    config.progress_monitor = _monitor(trt, progress)
    return config


def _logger(trt: ModuleType, messages: list[str]) -> Any:
    class Logger(trt.ILogger):  # type: ignore[name-defined, misc]  # chosen at run time
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                messages.append(message)

    return Logger()


def _monitor(trt: ModuleType, progress: BuildProgress) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[name-defined, misc]  # chosen at run time
        """Reports the outermost phase's share, and the name of the innermost."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._outermost, self._num_steps, self._share = "", 1, 0.0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self._outermost, self._num_steps = phase_name, max(1, num_steps)
            progress(phase_name, self._share)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name == self._outermost:
                self._share = (step + 1) / self._num_steps
                progress(phase_name, self._share)
            return True

        def phase_finish(self, phase_name: str) -> None:
            if phase_name == self._outermost:
                progress(phase_name, 1.0)

    return Monitor()
