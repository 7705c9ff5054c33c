"""Build: a TensorRT engine from a bundle's graph, kept in the bundle under a key that names all it depends on.

Two flavours share the code. `tensorrt` builds on the GPU that will run the engine; `tensorrt-rtx` builds ahead of time,
on any machine, for the target's compute capability. Neither needs torch.
"""

import dataclasses
import importlib.util
import os
from dataclasses import dataclass
from types import ModuleType

from ppd.board import read_board
from ppd.build.config import BuildSettings
from ppd.build.log import BuildLog
from ppd.build.lower import lower
from ppd.build.network import Profiles, load_graph, profiles_for
from ppd.build.room import require_room
from ppd.build.serialize import compute_capabilities, is_lowered_for, serialize_engine
from ppd.build.stored import put_engine, record_engine, with_engines
from ppd.build.timing_cache import timing_cache_path
from ppd.build.watch import BuildProgress
from ppd.bundle import Bundle, open_bundle, unchanged
from ppd.changes import Change, add_file, changing
from ppd.errors import ArgumentError, EngineError, ExportError
from ppd.files import cache_folder, write_atomically
from ppd.manifest import EngineInfo, Manifest
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
from ppd.runtime.engines.tensorrt.engine import TensorRTEngine
from ppd.runtime.recording import load_recording
from ppd.signature import GRAPH_FILE, LOWERED_GRAPH_FILE
from ppd.targets import Target

_MAX_OPT_LEVEL = 5


def build(
    folder: str | os.PathLike[str],
    flavour: str,
    *,
    target: Target | None = None,
    max_rows: int | None = None,
    chunk: int | None = None,
    workspace: int | None = None,
    opt_level: int | None = None,
    force: bool = False,
    progress: BuildProgress = lambda _phase, _share: None,
) -> EngineInfo:
    """Build an engine into a bundle, unless it holds it already. Until it is checked the bundle is the old one.

    Args:
        flavour: "tensorrt" or "tensorrt-rtx".
        target: Build ahead of time for this device ("tensorrt-rtx" only); None for the GPU of this machine.
        max_rows: Largest N of the decode profile; None for the largest tree state's.
        chunk: Rows of the prompt that are read at once, 64 to 512; None for 512. Fewer take less scratch memory.
        workspace: Scratch memory that a kernel may have, in MiB; None for what is left on a board, all of it elsewhere.
        opt_level: 0 builds fastest, 5 longest; None for TensorRT's own, 3.
        force: Build even if the bundle already holds the engine.

    Returns:
        The engine's record. One built for the GPU of this machine has been checked against the recorded reference.

    Raises:
        ArgumentError: A number is out of its range.
        EngineError: The flavour is not installed, cannot build for the device, lacks memory, or built an engine that
            fails its check; that engine is deleted.
        BundleError: The bundle is damaged, or another tree was folded in meanwhile.
        ExportError: The bundle cannot be written.
    """
    import_tensorrt(flavour)
    wish = Wish(max_rows=max_rows, chunk=chunk, workspace=workspace, opt_level=opt_level, force=force)
    with changing(open_bundle(folder)) as change:
        info = build_engine(change, flavour, target=target, wish=wish, progress=progress)
        if not change.is_empty:
            change.commit(lambda now: with_engines(now, [info]), same_tree=True, told=lambda line: progress(line, 0.0))
    return info


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What engine is wanted; the attributes are arguments of `build`.

    Raises:
        ArgumentError: A number is out of its range.
    """

    max_rows: int | None = None
    chunk: int | None = None
    workspace: int | None = None
    opt_level: int | None = None
    force: bool = False

    def __post_init__(self) -> None:
        if self.opt_level is not None and self.opt_level not in range(_MAX_OPT_LEVEL + 1):
            raise ArgumentError(f"opt_level is {self.opt_level}; expected 0 to {_MAX_OPT_LEVEL}")
        if self.workspace is not None and self.workspace < 1:
            raise ArgumentError(f"workspace is {self.workspace}; expected MiB, 1 or more")


def build_engine(
    change: Change,
    flavour: str,
    *,
    target: Target | None = None,
    wish: Wish | None = None,
    progress: BuildProgress = lambda _phase, _share: None,
) -> EngineInfo:
    """Build an engine for a bundle as it will be, check it where its GPU is at hand, and put it into the change.

    Arguments, result and errors are those of `build`.
    """
    wish = wish or Wish()
    trt, bundle = import_tensorrt(flavour), change.bundle
    gpu = None if target is not None and flavour == "tensorrt-rtx" else current_gpu()
    capability = _capability(trt, flavour, target, gpu)
    lowered = flavour == "tensorrt" and is_lowered_for(trt.__version__)
    if lowered and not bundle.has(LOWERED_GRAPH_FILE):
        change.put(LOWERED_GRAPH_FILE, lowered_graph(bundle))
        bundle = change.bundle
    profiles = profiles_for(bundle, wish.max_rows, wish.chunk)
    wanted = _record(bundle.manifest, trt, flavour, gpu, capability, profiles, lowered=lowered)
    if (present := _present(bundle.manifest, wanted, wish)) is not None:
        return present
    room = require_room(bundle, profiles, gpu, target)
    settings = BuildSettings(
        capability=capability if gpu is None else None,
        workspace_bytes=room if wish.workspace is None else wish.workspace * 2**20,
        opt_level=wish.opt_level,
        # TensorRT-RTX times nothing at build time: its timing cache does nothing any more.
        timings=timing_cache_path(flavour, trt.__version__, gpu) if flavour == "tensorrt" and gpu else None,
    )
    log = BuildLog()
    log.note(f"{wanted}, {settings}")
    try:
        built = serialize_engine(trt, bundle, profiles, settings, lowered=lowered, progress=progress, log=log)
    except EngineError as error:
        raise EngineError(f"{error}{_kept(log, wanted.key)}") from error
    info = dataclasses.replace(
        wanted,
        size_bytes=built.content.nbytes,
        decomposable=built.decomposable,
        opt_level=wish.opt_level,
        workspace=wish.workspace,
    )
    put_engine(change, info, built.content, str(log))
    del built  # the check opens the file: on a board one copy less
    if gpu is not None:
        info = dataclasses.replace(info, checked=True, scratch_bytes=_check(change.bundle, info))
        record_engine(change, info)
    return info


def _present(manifest: Manifest, wanted: EngineInfo, wish: Wish) -> EngineInfo | None:
    """The engine that is wanted, if the bundle holds it."""
    found = next((info for info in manifest.engines if info.key == wanted.key), None)
    if found is None or wish.force or stale(manifest, found):
        return None
    as_wanted = wish.workspace in (None, found.workspace) and wish.opt_level in (None, found.opt_level)
    return found if as_wanted else None


def _kept(log: BuildLog, key: str) -> str:
    """Keep the log of a build that failed, beside the timings; a few words that say where."""
    path = cache_folder() / f"build-{key}.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, str(log).encode())
    except (OSError, ExportError):  # the error itself matters more
        return ""
    return f"; all that TensorRT said is in {path}"


def add_lowered_graph(bundle: Bundle) -> Bundle:
    """Write the graph for TensorRT before 10.15 into a bundle, unless it is there; it shares the weights."""
    if bundle.has(LOWERED_GRAPH_FILE):
        return bundle
    return add_file(bundle, LOWERED_GRAPH_FILE, lowered_graph(bundle))


def lowered_graph(bundle: Bundle) -> bytes:
    """The graph for TensorRT before 10.15, made of the bundle's own."""
    model = load_graph(bundle, GRAPH_FILE, bundle.read_bytes(GRAPH_FILE))
    return lower(model, bundle.manifest.model.num_heads).SerializeToString()


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
        num_multiprocessors=gpu.num_multiprocessors if gpu is not None else None,
        power_mode=read_board().power_mode if gpu is not None else "",
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


def _check(bundle: Bundle, info: EngineInfo) -> int:
    """Run the recorded reference on a built engine; the scratch memory that it takes, in bytes."""
    alone = dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, engines=[info]))
    try:
        with unchanged(bundle):
            engine = open_engine(alone, info.flavour)  # another that fits as well must not answer for it
        check_engine(engine, bundle, load_recording(bundle))
    except EngineError as error:
        raise EngineError(f"the engine that was built does not work and was deleted: {error}") from error
    assert isinstance(engine, TensorRTEngine)
    return engine.scratch_bytes
