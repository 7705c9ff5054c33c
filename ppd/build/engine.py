"""Build: a TensorRT engine from a bundle's graph, kept in the bundle under a key that names all it depends on.

Two flavours share the code. `tensorrt` builds on the GPU that will run the engine; `tensorrt-rtx` builds ahead of time,
on any machine, for the target's compute capability. Neither needs torch.
"""

import dataclasses
import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx

from ppd.bundle import REFERENCE_FILE, Bundle, add_file, file_entry, open_bundle, write_manifest
from ppd.errors import EngineError
from ppd.files import write_atomically
from ppd.build.lower import lower
from ppd.build.network import (
    Profiles,
    has_fused_attention,
    layer_kinds,
    make_decomposable,
    parse,
    profiles_for,
    read_graph,
    require_native,
)
from ppd.build.timing_cache import keep_timing_cache, timing_cache_path, use_timing_cache
from ppd.manifest import EngineInfo, Manifest
from ppd.runtime.check import check_engine, load_recording, recording_length
from ppd.runtime.decode import Plans
from ppd.runtime.engines import open_engine
from ppd.runtime.engines.cuda.device import Gpu, current_gpu
from ppd.runtime.engines.tensorrt.built import (
    FLAVOURS,
    engine_key,
    engine_role,
    graph_digest,
    import_tensorrt,
    stale,
    tree_digest,
)
from ppd.signature import GRAPH_FILE, LOWERED_GRAPH_FILE, WEIGHTS_FILE
from ppd.targets import Target

_FIRST_NATIVE = (10, 15)
"""First TensorRT with native attention (10.14.1), rotary and KV-write layers (10.15.1); an older one gets the lowered
graph. TensorRT's release notes; what its parser takes: https://github.com/onnx/onnx-tensorrt/pull/1048."""
_GIB = 1 << 30

BuildProgress = Callable[[str, float], None]
"""Called with the phase of the build, and the share of the build that is done, 0 to 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A serialised engine and what it was made from."""

    content: memoryview
    layers: dict[str, int]


def build(
    folder: str | os.PathLike[str],
    flavour: str,
    *,
    target: Target | None = None,
    max_rows: int | None = None,
    force: bool = False,
    progress: BuildProgress = lambda _phase, _share: None,
) -> EngineInfo:
    """Build an engine into a bundle, unless it holds it already.

    Args:
        folder: The bundle's folder.
        flavour: "tensorrt" or "tensorrt-rtx".
        target: Build ahead of time for this device ("tensorrt-rtx" only); None for the GPU of this machine.
        max_rows: Largest N of the decode profile; None for the largest tree state's.
        force: Build even if the engine is there.
        progress: Called as the build goes on.

    Returns:
        The engine's record. One built for the GPU of this machine has been checked against the recorded reference.

    Raises:
        EngineError: The flavour is not installed, cannot build for the device, lacks memory, or
            made an engine that answers wrongly; that engine is not kept.
        BundleError: The bundle is damaged.
    """
    trt, bundle = import_tensorrt(flavour), open_bundle(folder)
    gpu = None if target is not None and flavour == "tensorrt-rtx" else current_gpu()
    capability = _capability(trt, flavour, target, gpu)
    lowered = flavour == "tensorrt" and is_lowered_for(trt.__version__)
    if lowered:
        bundle = add_lowered_graph(bundle)
    profiles = profiles_of(bundle, max_rows)
    wanted = _record(bundle.manifest, trt, flavour, gpu, capability, profiles, lowered=lowered)
    present = next((info for info in bundle.manifest.engines if info.key == wanted.key), None)
    if present is not None and not force and not stale(bundle.manifest, present):
        return present
    _require_memory(bundle, profiles, gpu, target)
    # TensorRT-RTX times nothing at build time: its timing cache does nothing any more.
    timings = timing_cache_path(flavour, trt.__version__, gpu.name) if flavour == "tensorrt" and gpu else None
    plan = plan_from_bundle(trt, bundle, profiles, capability if gpu is None else None, lowered, progress, timings)
    wanted = dataclasses.replace(wanted, size_bytes=plan.content.nbytes)
    _store(bundle, wanted, plan.content)
    return wanted if gpu is None else _check(bundle.folder, wanted.key, flavour)


def plan_from_bundle(
    trt: ModuleType,
    bundle: Bundle,
    profiles: Profiles,
    capability: str | None,
    lowered: bool,
    progress: BuildProgress = lambda _phase, _share: None,
    timings: Path | None = None,
) -> Plan:
    """Parse and build, and keep nothing.

    Args:
        trt: The flavour's module.
        bundle: The bundle.
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
            return Plan(content=memoryview(content), layers=dict(layer_kinds(network)))
        if attempt or lowered or not any("decomposable" in message for message in messages):
            break
    raise EngineError(
        f"TensorRT {trt.__version__} cannot build {bundle.folder} ({'; '.join(messages[-2:]) or 'no reason given'}); "
        "free memory, or install another version of it"
    )


def add_lowered_graph(bundle: Bundle) -> Bundle:
    """Write the graph for TensorRT before 10.15 into a bundle, unless it is there; it shares the weights."""
    if bundle.has(LOWERED_GRAPH_FILE):
        return bundle
    model = onnx.load(bundle.path(GRAPH_FILE), load_external_data=False)
    return add_file(bundle, LOWERED_GRAPH_FILE, lower(model, bundle.manifest.model.num_heads).SerializeToString())


def memory_bytes(bundle: Bundle, profiles: Profiles) -> int:
    """Memory that weights, KV cache and logits take on the device while the engine runs."""
    model = bundle.manifest.model
    graph = onnx.load(bundle.path(GRAPH_FILE), load_external_data=False).graph
    kind = next(value.type.tensor_type.elem_type for value in graph.input if value.name == "k_0")
    item_bytes = onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize
    cache = 2 * model.num_layers * model.num_kv_heads * profiles.capacity * model.head_dim * item_bytes
    logits = max(profiles.max_prefill_head_rows, profiles.max_decode_rows) * model.vocab_size * 4
    return bundle.manifest.files[WEIGHTS_FILE].size_bytes + cache + logits


def choose_flavour(target: Target | None) -> str:
    """The flavour to build: TensorRT-RTX ahead of time, else TensorRT where it is installed."""
    installed = importlib.util.find_spec(FLAVOURS["tensorrt"]) is not None
    return "tensorrt" if target is None and installed else "tensorrt-rtx"


def is_lowered_for(version: str) -> bool:
    """Whether a version of TensorRT, such as "10.3", needs the lowered graph."""
    major, minor = version.split(".")[:2]
    return (int(major), int(minor)) < _FIRST_NATIVE


def profiles_of(bundle: Bundle, max_rows: int | None = None) -> Profiles:
    """The profiles of a bundle, with room for the check of its recorded reference: the text, and its prompt rows."""
    count = bundle.manifest.prompt_tokens.count
    return profiles_for(bundle, recording_length(count) + count, max_rows)


def compute_capabilities(trt: ModuleType) -> list[str]:
    """Compute capabilities that a flavour builds ahead of time for, such as "8.9"."""
    names = getattr(trt, "ComputeCapability", None)
    return [] if names is None else [f"{n[2:-1]}.{n[-1]}" for n in names.__members__ if n.startswith("SM")]


def _capability(trt: ModuleType, flavour: str, target: Target | None, gpu: Gpu | None) -> str:
    if target is None or gpu is not None:
        assert gpu is not None
        if target is not None and target.compute_capability != gpu.compute_capability:
            raise EngineError(
                f"the target {target.name} has compute capability {target.compute_capability}, this GPU ({gpu.name}) "
                f"{gpu.compute_capability}: a {flavour} engine is built on the device that runs it; run ppd build there"
            )
        return gpu.compute_capability
    known = compute_capabilities(trt)
    if target.compute_capability not in known:
        raise EngineError(
            f"{flavour} {trt.__version__} builds for compute capability {', '.join(known)}, not for {target.name} "
            f"({target.compute_capability}); run ppd build --engine tensorrt on the device itself"
        )
    assert target.compute_capability is not None
    return target.compute_capability


def _record(
    manifest: Manifest,
    trt: ModuleType,
    flavour: str,
    gpu: Gpu | None,
    capability: str,
    profiles: Profiles,
    *,
    lowered: bool,
) -> EngineInfo:
    info = EngineInfo(
        key="",
        flavour=flavour,
        version=trt.__version__,
        gpu=gpu.name if gpu is not None else None,
        compute_capability=capability,
        precision=manifest.precision,
        **dataclasses.asdict(profiles),
        lowered=lowered,
        graph_sha256=graph_digest(manifest, lowered=lowered),
        tree_sha256=tree_digest(manifest),
        size_bytes=0,
        checked=False,
    )
    return dataclasses.replace(info, key=engine_key(info))


def _require_memory(bundle: Bundle, profiles: Profiles, gpu: Gpu | None, target: Target | None) -> None:
    """The engine and its cache have to fit; on the device, the weights are held twice during the build."""
    needed = memory_bytes(bundle, profiles)
    if gpu is not None:
        needed += bundle.manifest.files[WEIGHTS_FILE].size_bytes
        fits, what = needed <= gpu.free_bytes, "the build needs"
        has = f"{gpu.name} has {gpu.free_bytes / _GIB:.1f} GiB free"
    else:
        assert target is not None
        fits, what = target.holds(needed), "the engine and its cache need"
        has = f"{target.name} has {(target.memory_gb or 0) * 10**9 / _GIB:.1f} GiB"
    if not fits:
        raise EngineError(
            f"{what} about {needed / _GIB:.1f} GiB, {has}; "
            "close other programs, or export with a smaller --context or precision"
        )


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


def _store(bundle: Bundle, info: EngineInfo, content: memoryview) -> None:
    """Write an engine, then the manifest; stale engines go."""
    role = engine_role(info.key)
    (bundle.folder / role).parent.mkdir(exist_ok=True)
    write_atomically(bundle.folder / role, content)
    files = bundle.manifest.files | {role: file_entry(bundle.folder, role)}
    manifest = dataclasses.replace(bundle.manifest, files=files)
    kept = [other for other in manifest.engines if other.key != info.key and not stale(manifest, other)]
    _write_engines(bundle.folder, manifest, [*kept, info])


def _write_engines(folder: Path, manifest: Manifest, engines: list[EngineInfo]) -> None:
    """Replace the manifest's engines, then delete the files of those that are gone."""
    roles = {engine_role(info.key) for info in engines}
    gone = {role for role in manifest.files if role.startswith("engines/")} - roles
    files = {role: entry for role, entry in manifest.files.items() if role not in gone}
    write_manifest(folder, dataclasses.replace(manifest, files=files, engines=engines))
    for role in gone:
        (folder / manifest.files[role].path).unlink(missing_ok=True)


def drop_engines(folder: Path, unwanted: Callable[[Manifest, EngineInfo], bool]) -> None:
    """Take engines out of a bundle: the manifest first, then their files.

    Args:
        folder: The bundle's folder.
        unwanted: Whether an engine of the manifest goes.

    Raises:
        BundleError: The folder is no bundle, or one is damaged.
        ExportError: The manifest cannot be written.
    """
    manifest = open_bundle(folder, verify=False).manifest
    kept = [info for info in manifest.engines if not unwanted(manifest, info)]
    if len(kept) < len(manifest.engines):
        _write_engines(folder, manifest, kept)


def _check(folder: Path, key: str, flavour: str) -> EngineInfo:
    """Run the recorded reference on a built engine; delete it if it answers wrongly."""
    bundle = open_bundle(folder, verify=False)
    others = [info for info in bundle.manifest.engines if info.key != key]
    info = next(info for info in bundle.manifest.engines if info.key == key)
    alone = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, engines=[info]))
    try:
        engine = open_engine(alone, flavour)  # another that fits as well must not answer for it
        check_engine(engine, Plans(bundle.manifest, bundle.tree), load_recording(bundle.path(REFERENCE_FILE)))
    except EngineError as error:
        _write_engines(folder, bundle.manifest, others)
        raise EngineError(f"the engine that was built does not work and was deleted: {error}") from error
    checked = dataclasses.replace(info, checked=True)
    _write_engines(folder, bundle.manifest, [*others, checked])
    return checked
