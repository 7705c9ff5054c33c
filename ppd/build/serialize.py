"""Serialising: a bundle's graph becomes a TensorRT engine, for the GPU of this machine or ahead of time for another."""

from dataclasses import dataclass
from types import ModuleType

from ppd.build.config import BuildSettings, configure, new_builder
from ppd.build.log import BuildLog
from ppd.build.network import (
    Profiles,
    has_fused_attention,
    layer_kinds,
    make_decomposable,
    open_caches,
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
        has_buckets: Whether its S is open.
    """

    content: memoryview
    layers: dict[str, int]
    decomposable: bool = False
    has_buckets: bool = False


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
    again with attention in parts: on some GPUs the fused kernel does not build, and the messages differ. The lowered
    graph is built with S open, so that a short chat does not pay for the whole context, and where that fails with the
    largest one; the native graph's layers want S fixed.

    Raises:
        EngineError: TensorRT does not start, or the graph does not parse or build, or its layers are not native.
        KeyboardInterrupt: Ctrl-C was pressed.
    """
    log = log or BuildLog()
    build = _Build(trt, bundle, profiles, settings, lowered, progress, log)
    reasons = []
    for attempt in build.attempts():
        log.begin(str(attempt))
        built = build.attempt(attempt)
        if built is not None:
            return built
        reasons.append(log.reason())
    raise EngineError(
        f"TensorRT {trt.__version__} cannot build {bundle.folder} ({'; then '.join(dict.fromkeys(reasons))}); "
        "free memory, or install another version of it"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One way to build a graph.

    Attributes:
        capacity: S; None for an open one.
        decomposable: As in `SerializedEngine`.
    """

    capacity: int | None
    decomposable: bool = False

    def __str__(self) -> str:
        room = "room for any number of rows" if self.capacity is None else f"room for {self.capacity} rows"
        return f"{room}, attention {'may run in parts' if self.decomposable else 'as the graph has it'}"


@dataclass(frozen=True, slots=True)
class _Build:
    """One graph, and how to build it."""

    trt: ModuleType
    bundle: Bundle
    profiles: Profiles
    settings: BuildSettings
    lowered: bool
    progress: BuildProgress
    log: BuildLog

    def attempts(self) -> list[Attempt]:
        """What to try, one after the other. The lowered graph has attention in parts already."""
        capacity = self.profiles.capacity
        if self.lowered:
            return [Attempt(capacity=None), Attempt(capacity=capacity)]
        in_parts = Attempt(capacity=capacity, decomposable=True)
        model = read_graph(self.bundle, capacity, lowered=False)
        fused = has_fused_attention(model, self.bundle.manifest.model.head_dim)
        return [Attempt(capacity=capacity), in_parts] if fused else [in_parts]

    def attempt(self, attempt: Attempt) -> SerializedEngine | None:
        """The engine; None if TensorRT did not build it."""
        trt, timings = self.trt, self.settings.timings
        model = read_graph(self.bundle, attempt.capacity, lowered=self.lowered)
        logger = self.log.logger(trt)
        builder = new_builder(trt, logger)
        network = parse(trt, logger, builder, model, self.bundle.folder)
        if not self.lowered:
            require_native(trt, network, self.bundle.manifest.model.num_layers)
            if attempt.decomposable:
                make_decomposable(trt, network)
        ranges = self.profiles.ranges(open_caches(model))
        with CtrlC() as ctrl_c:
            config = configure(trt, builder, ranges, self.settings, monitor(trt, self.progress, ctrl_c))
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
        return SerializedEngine(
            content=memoryview(content),
            layers=layers,
            decomposable=attempt.decomposable,
            has_buckets=attempt.capacity is None,
        )


def is_lowered_for(version: str) -> bool:
    """Whether a version of TensorRT, such as "10.3", needs the lowered graph."""
    major, minor = version.split(".")[:2]
    return (int(major), int(minor)) < _FIRST_NATIVE


def compute_capabilities(trt: ModuleType) -> list[str]:
    """Compute capabilities that a flavour builds ahead of time for, such as "8.9"."""
    names = getattr(trt, "ComputeCapability", None)
    return [] if names is None else [f"{n[2:-1]}.{n[-1]}" for n in names.__members__ if n.startswith("SM")]
