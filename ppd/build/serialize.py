"""Serialising: a bundle's graph becomes a TensorRT engine, for the GPU of this machine or ahead of time for another."""

from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

import onnx

from ppd.build.config import BuildSettings, configure, new_builder
from ppd.build.log import BuildLog
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
from ppd.build.watch import BuildProgress, CtrlC, monitor
from ppd.bundle import Bundle
from ppd.errors import EngineError

_FIRST_NATIVE = (10, 15)
"""First TensorRT with native attention (10.14.1), rotary and KV-write layers (10.15.1); an older one gets the lowered
graph. TensorRT's release notes; what its parser takes: https://github.com/onnx/onnx-tensorrt/pull/1048."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SerializedEngine:
    """What TensorRT built.

    Attributes:
        layers: How many layers of each kind the network had.
        decomposable: Whether TensorRT was free to run attention in parts, instead of as one fused kernel.
    """

    content: memoryview
    layers: dict[str, int]
    decomposable: bool = False


def serialize_engine(
    trt: ModuleType,
    bundle: Bundle,
    profiles: Profiles,
    settings: BuildSettings,
    *,
    lowered: bool,
    progress: BuildProgress = lambda _phase, _share: None,
    log: BuildLog | None = None,
) -> SerializedEngine:
    """Parse and build an engine, without storing it in the bundle.

    Attention is built as one fused kernel where that takes the graph's type and heads. A build that fails so is tried
    again with attention in parts: on some GPUs the fused kernel does not build, and the messages differ.

    Raises:
        EngineError: TensorRT does not start, or the graph does not parse or build, or its layers are not native.
        KeyboardInterrupt: Ctrl-C was pressed.
    """
    model = read_graph(bundle, profiles.capacity, lowered=lowered)
    log = log or BuildLog()
    build = _Build(trt, bundle, model, profiles, settings, lowered, progress, log)
    reasons = []
    for decomposable in build.attempts():
        log.begin("attention may run in parts" if decomposable else "attention as the graph has it")
        built = build.attempt(decomposable=decomposable)
        if built is not None:
            return built
        reasons.append(log.reason())
    raise EngineError(
        f"TensorRT {trt.__version__} cannot build {bundle.folder} ({'; then '.join(dict.fromkeys(reasons))}); "
        "free memory, or install another version of it"
    )


@dataclass(frozen=True, slots=True)
class _Build:
    """One graph, and how to build it."""

    trt: ModuleType
    bundle: Bundle
    model: onnx.ModelProto
    profiles: Profiles
    settings: BuildSettings
    lowered: bool
    progress: BuildProgress
    log: BuildLog

    def attempts(self) -> Iterator[bool]:
        """Whether attention may be decomposed, attempt by attempt. The lowered graph has it in parts already."""
        fused = not self.lowered and has_fused_attention(self.model, self.bundle.manifest.model.head_dim)
        if self.lowered or fused:
            yield False
        if not self.lowered:
            yield True

    def attempt(self, *, decomposable: bool) -> SerializedEngine | None:
        """The engine; None if TensorRT did not build it."""
        trt, timings = self.trt, self.settings.timings
        logger = self.log.logger(trt)
        builder = new_builder(trt, logger)
        network = parse(trt, logger, builder, self.model, self.bundle.folder)
        if not self.lowered:
            require_native(trt, network, self.bundle.manifest.model.num_layers)
            if decomposable:
                make_decomposable(trt, network)
        with CtrlC() as ctrl_c:
            config = configure(trt, builder, self.profiles, self.settings, monitor(trt, self.progress, ctrl_c))
            if timings is not None:
                use_timing_cache(config, timings)
            content = builder.build_serialized_network(network, config)
            if ctrl_c.pressed():
                raise KeyboardInterrupt
        if content is None:
            return None
        if timings is not None:
            keep_timing_cache(config, timings)
        layers = dict(layer_kinds(network))
        return SerializedEngine(content=memoryview(content), layers=layers, decomposable=decomposable)


def is_lowered_for(version: str) -> bool:
    """Whether a version of TensorRT, such as "10.3", needs the lowered graph."""
    major, minor = version.split(".")[:2]
    return (int(major), int(minor)) < _FIRST_NATIVE


def compute_capabilities(trt: ModuleType) -> list[str]:
    """Compute capabilities that a flavour builds ahead of time for, such as "8.9"."""
    names = getattr(trt, "ComputeCapability", None)
    return [] if names is None else [f"{n[2:-1]}.{n[-1]}" for n in names.__members__ if n.startswith("SM")]
