"""Build: a TensorRT engine from a bundle's graph, kept in the bundle under a key that names all it depends on.

Two flavours share the code. `tensorrt` builds on the GPU that will run the engine; `tensorrt-rtx` builds ahead of time,
on any machine, for the target's compute capability. Neither needs torch.
"""

import dataclasses
import importlib.util
import os
from types import ModuleType

import onnx

from ppd.build.lower import lower
from ppd.build.network import Profiles, profiles_for
from ppd.build.serialize import BuildProgress, compute_capabilities, is_lowered_for, serialize_engine
from ppd.build.stored import put_engine, with_engines
from ppd.build.timing_cache import timing_cache_path
from ppd.bundle import Bundle, open_bundle, unchanged
from ppd.changes import Change, add_file, changing
from ppd.errors import EngineError
from ppd.manifest import EngineInfo, Manifest
from ppd.memory import GB, Memory, memory_of
from ppd.runtime.check import check_engine
from ppd.runtime.engines import open_engine
from ppd.runtime.engines.cuda.device import Gpu, current_gpu
from ppd.runtime.engines.tensorrt.built import (
    FLAVOURS,
    engine_key,
    graph_digest,
    import_tensorrt,
    stale,
    tree_digest,
)
from ppd.runtime.recording import load_recording
from ppd.signature import GRAPH_FILE, LOWERED_GRAPH_FILE, WEIGHTS_FILE
from ppd.targets import Target


def build(
    folder: str | os.PathLike[str],
    flavour: str,
    *,
    target: Target | None = None,
    max_rows: int | None = None,
    force: bool = False,
    progress: BuildProgress = lambda _phase, _share: None,
) -> EngineInfo:
    """Build an engine into a bundle, unless it holds it already. Until it is checked the bundle is the old one.

    Args:
        flavour: "tensorrt" or "tensorrt-rtx".
        target: Build ahead of time for this device ("tensorrt-rtx" only); None for the GPU of this machine.
        max_rows: Largest N of the decode profile; None for the largest tree state's.
        force: Build even if the bundle already holds the engine.

    Returns:
        The engine's record. One built for the GPU of this machine has been checked against the recorded reference.

    Raises:
        EngineError: The flavour is not installed, cannot build for the device, lacks memory, or built an engine that
            fails its check; that engine is deleted.
        BundleError: The bundle is damaged, or another tree was folded in meanwhile.
        ExportError: The bundle cannot be written.
    """
    import_tensorrt(flavour)
    with changing(open_bundle(folder)) as change:
        info = build_engine(change, flavour, target=target, max_rows=max_rows, force=force, progress=progress)
        if not change.is_empty:
            change.commit(lambda now: with_engines(now, [info]), same_tree=True, told=lambda line: progress(line, 0.0))
    return info


def build_engine(
    change: Change,
    flavour: str,
    *,
    target: Target | None = None,
    max_rows: int | None = None,
    force: bool = False,
    progress: BuildProgress = lambda _phase, _share: None,
) -> EngineInfo:
    """Build an engine for a bundle as it will be, check it where its GPU is at hand, and put it into the change.

    Arguments, result and errors are those of `build`.
    """
    trt, bundle = import_tensorrt(flavour), change.bundle
    gpu = None if target is not None and flavour == "tensorrt-rtx" else current_gpu()
    capability = _capability(trt, flavour, target, gpu)
    lowered = flavour == "tensorrt" and is_lowered_for(trt.__version__)
    if lowered and not bundle.has(LOWERED_GRAPH_FILE):
        change.put(LOWERED_GRAPH_FILE, _lowered(bundle))
        bundle = change.bundle
    profiles = profiles_for(bundle, max_rows)
    wanted = _record(bundle.manifest, trt, flavour, gpu, capability, profiles, lowered=lowered)
    present = next((info for info in bundle.manifest.engines if info.key == wanted.key), None)
    if present is not None and not force and not stale(bundle.manifest, present):
        return present
    _require_memory(bundle, profiles, gpu, target)
    # TensorRT-RTX times nothing at build time: its timing cache does nothing any more.
    timings = timing_cache_path(flavour, trt.__version__, gpu.name) if flavour == "tensorrt" and gpu else None
    built = serialize_engine(trt, bundle, profiles, capability if gpu is None else None, lowered, progress, timings)
    wanted = dataclasses.replace(wanted, size_bytes=built.content.nbytes, checked=gpu is not None)
    put_engine(change, wanted, built.content)
    if gpu is not None:
        _check(change.bundle, wanted)
    return wanted


def add_lowered_graph(bundle: Bundle) -> Bundle:
    """Write the graph for TensorRT before 10.15 into a bundle, unless it is there; it shares the weights."""
    if bundle.has(LOWERED_GRAPH_FILE):
        return bundle
    return add_file(bundle, LOWERED_GRAPH_FILE, _lowered(bundle))


def _lowered(bundle: Bundle) -> bytes:
    model = onnx.load_from_string(bundle.read_bytes(GRAPH_FILE))
    return lower(model, bundle.manifest.model.num_heads).SerializeToString()


def engine_memory(bundle: Bundle, profiles: Profiles) -> Memory:
    """Device memory that the engine takes while it runs, without TensorRT's workspace."""
    return memory_of(
        bundle.manifest.model,
        weights=bundle.manifest.files[WEIGHTS_FILE].size_bytes,
        item_bytes=2 if bundle.manifest.graph_type == "float16" else 4,
        capacity=profiles.capacity,
        head_rows=max(profiles.max_prefill_head_rows, profiles.max_decode_rows),
    )


def flavour_to_build(target: Target | None) -> str:
    """The flavour to build: TensorRT-RTX ahead of time, else TensorRT where it is installed."""
    installed = importlib.util.find_spec(FLAVOURS["tensorrt"]) is not None
    return "tensorrt" if target is None and installed else "tensorrt-rtx"


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
    """Require that engine and cache fit; a build on the device itself holds the weights twice meanwhile."""
    memory = engine_memory(bundle, profiles)
    needed = memory.total
    if gpu is not None:
        needed += memory.weights
        fits, what = needed <= gpu.free_bytes, "the build needs"
        has = f"{gpu.name} has {gpu.free_bytes / GB:.1f} GB free"
    else:
        assert target is not None
        fits, what = target.holds(needed), "the engine and its cache need"
        has = f"{target.name} has {target.memory_gb or 0:.1f} GB"
    if not fits:
        raise EngineError(
            f"{what} about {needed / GB:.1f} GB, {has}; "
            "close other programs, or export with a smaller --context or precision"
        )


def _check(bundle: Bundle, info: EngineInfo) -> None:
    """Run the recorded reference on a built engine."""
    alone = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, engines=[info]))
    try:
        with unchanged(bundle):
            engine = open_engine(alone, info.flavour)  # another that fits as well must not answer for it
        check_engine(engine, bundle, load_recording(bundle))
    except EngineError as error:
        raise EngineError(f"the engine that was built does not work and was deleted: {error}") from error
