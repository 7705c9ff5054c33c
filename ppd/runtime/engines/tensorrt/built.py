"""Built TensorRT engines in a bundle: what they are called, and which of them fits a device.

An engine is a file of the role `engines/<key>.engine` with a record in the manifest. The key is a hash of everything
that the engine depends on, so that a changed graph, tree, version, GPU or profile is another engine.
"""

import contextlib
import dataclasses
import hashlib
import importlib
import json
from types import ModuleType

from ppd.bundle import Bundle
from ppd.errors import ArgumentError, EngineError
from ppd.manifest import EngineInfo, Manifest
from ppd.runtime.engines.cuda.device import Gpu, current_gpu
from ppd.signature import GRAPH_FILE, LOWERED_GRAPH_FILE, TREE_TABLES_FILE, WEIGHTS_FILE

FLAVOURS = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx_bindings"}
"""Flavour → the Python module that brings it."""

_REMEDIES = {
    "tensorrt": "on a Jetson it comes with JetPack (make the environment with --system-site-packages), "
    "elsewhere run pip install tensorrt",
    "tensorrt-rtx": "run pip install tensorrt_rtx_cu13_bindings tensorrt_rtx_cu13_libs",
}
_NOT_IN_KEY = (
    "key",
    "size_bytes",
    "checked",
    "decomposable",
    "opt_level",
    "workspace",
    "scratch_bytes",
    "power_mode",
)
"""What is found out by the build, or may be chosen for it: an engine built otherwise takes the place of the first."""


def import_tensorrt(flavour: str) -> ModuleType:
    """The Python module of a flavour; both have the same API.

    Raises:
        ArgumentError: There is no such flavour.
        EngineError: It is not installed, or cannot be imported.
    """
    if flavour not in FLAVOURS:
        raise ArgumentError(f"no TensorRT flavour is called {flavour!r}; expected {' or '.join(FLAVOURS)}")
    try:
        return importlib.import_module(FLAVOURS[flavour])
    except (ImportError, OSError) as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == FLAVOURS[flavour]
        what = "is not installed" if missing else f"cannot be imported ({error})"
        raise EngineError(f"the engine {flavour} {what}; {_REMEDIES[flavour]}") from error


def engine_role(key: str) -> str:
    """Role, and path in the bundle, of the engine with this key."""
    return f"engines/{key}.engine"


def log_role(key: str) -> str:
    """Role, and path in the bundle, of what TensorRT said while it built the engine with this key."""
    return f"engines/{key}.log"


def engine_key(info: EngineInfo) -> str:
    """Key of an engine: a hash of what it depends on."""
    fields = {name: value for name, value in dataclasses.asdict(info).items() if name not in _NOT_IN_KEY}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def graph_digest(manifest: Manifest, *, lowered: bool) -> str:
    """SHA-256 over graph and weights, what an engine's `graph_sha256` is compared with. Empty without such a graph."""
    roles = (LOWERED_GRAPH_FILE if lowered else GRAPH_FILE, WEIGHTS_FILE)
    if roles[0] not in manifest.files:
        return ""
    return hashlib.sha256("".join(manifest.files[role].sha256 for role in roles).encode()).hexdigest()


def tree_digest(manifest: Manifest) -> str:
    """SHA-256 of the folded tree tables, what an engine's `tree_sha256` is compared with."""
    return manifest.files[TREE_TABLES_FILE].sha256


@dataclasses.dataclass(frozen=True, slots=True)
class Device:
    """What an engine has to be built for: a GPU's name as CUDA gives it, its compute capability and its size."""

    gpu: str
    compute_capability: str
    num_multiprocessors: int

    @classmethod
    def of(cls, gpu: Gpu) -> "Device":
        """The same of this machine's GPU."""
        return cls(gpu.name, gpu.compute_capability, gpu.num_multiprocessors)


def find_engine(bundle: Bundle, flavour: str, version: str, device: Device) -> EngineInfo:
    """The built engine that fits a device: the narrowest of several, as each has room for every tree state.

    Of several as narrow, it is the last that was built.

    Args:
        flavour: "tensorrt" or "tensorrt-rtx".
        version: Full version of the installed flavour.

    Raises:
        EngineError: None fits; the message says what differs in the nearest.
    """
    built = [info for info in bundle.manifest.engines if info.flavour == flavour]
    differing = [(differences(bundle.manifest, info, version, device), info) for info in reversed(built)]
    if fitting := [info for wrong, info in differing if not wrong]:
        return min(fitting, key=lambda info: info.max_decode_rows)
    again = f"run ppd build {bundle.folder} --engine {flavour} on this device"
    if not differing:
        raise EngineError(f"{bundle.folder} holds no {flavour} engine; {again}")
    nearest, info = min(differing, key=lambda pair: len(pair[0]))
    raise EngineError(f"{bundle.folder}: the {flavour} engine {info.key} does not fit: {'; '.join(nearest)}; {again}")


def find_engine_here(bundle: Bundle, flavour: str) -> EngineInfo:
    """The built engine that fits the GPU of this machine and the version of the flavour that is installed.

    Raises:
        EngineError: The flavour, driver or GPU is missing, or no engine fits.
    """
    trt, gpu = import_tensorrt(flavour), current_gpu()
    return find_engine(bundle, flavour, trt.__version__, Device.of(gpu))


def flavour_in_use(bundle: Bundle, engine: str) -> str | None:
    """The flavour that `open_engine` takes for an engine's name, "auto" included; None for one that is not TensorRT."""
    if engine != "auto":
        return engine if engine in FLAVOURS else None
    built = {info.flavour for info in bundle.manifest.engines}
    for flavour in FLAVOURS:
        if flavour in built:
            with contextlib.suppress(EngineError):
                return find_engine_here(bundle, flavour).flavour
    return None


def is_wide(info: EngineInfo) -> bool:
    """Whether an engine takes larger steps than its tree has: such a one is built for measuring, and not kept."""
    return info.max_decode_rows > info.best_decode_rows


def with_engines_for(bundle: Bundle, num_rows: int) -> Bundle:
    """The bundle as if it had only the engines that take decode steps of this many rows."""
    engines = [info for info in bundle.manifest.engines if info.max_decode_rows >= num_rows]
    return dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, engines=engines))


def differences(manifest: Manifest, info: EngineInfo, version: str, device: Device) -> list[str]:
    """What keeps an engine from running this bundle on this device, in words; empty if nothing does."""
    wrong = stale(manifest, info)
    if info.version != version:
        wrong.append(f"it was built by version {info.version}, {version} is installed")
    if info.compute_capability != device.compute_capability:
        wrong.append(
            f"it was built for compute capability {info.compute_capability}, this GPU ({device.gpu}) has "
            f"{device.compute_capability}"
        )
    elif info.gpu not in (None, device.gpu):
        wrong.append(f"it was built on {info.gpu}, this GPU is {device.gpu}")
    elif info.num_multiprocessors not in (None, device.num_multiprocessors):
        wrong.append(
            f"it was built on {info.gpu} with {info.num_multiprocessors} multiprocessors, this one has "
            f"{device.num_multiprocessors}"
        )
    return wrong


def stale(manifest: Manifest, info: EngineInfo) -> list[str]:
    """What changed in the bundle since an engine was built, in words; empty if nothing did."""
    wrong = []
    if info.key != engine_key(info):
        wrong.append("its key does not match its record")
    elif engine_role(info.key) not in manifest.files:
        wrong.append("its file is not in the bundle")
    if info.graph_sha256 != graph_digest(manifest, lowered=info.lowered):
        wrong.append("the graph or its weights changed since it was built")
    if info.tree_sha256 != tree_digest(manifest):
        wrong.append("another tree was folded in since it was built")
    return wrong
