"""Room: whether a build fits, asked before it takes minutes and ends in the kernel's out-of-memory killer."""

from ppd.build.network import Profiles
from ppd.bundle import Bundle
from ppd.errors import EngineError
from ppd.host_memory import HostMemory, host_memory
from ppd.memory import GB, Memory, item_bytes_of, memory_of
from ppd.precision import PRECISIONS
from ppd.runtime.engines.cuda.device import Gpu
from ppd.signature import LOWERED_GRAPH_FILE, WEIGHTS_FILE
from ppd.targets import Target

_HOST_COPIES, _HOST_COPIES_QUANTISED = 3.0, 4.8
"""How often the builder holds the weights on the host. TensorRT-RTX 1.7, without a GPU, 226 M parameters: 432 MiB of
fp16 weights took 1638 MiB (lowered 1703), 139 MiB of int4 954 (lowered 1005); less what a tiny model takes."""
_HOST_FIXED = 250 * 2**20
_LEAST_WORKSPACE = 256 * 2**20


def engine_memory(bundle: Bundle, profiles: Profiles) -> Memory:
    """Device memory that the engine takes while it runs, without TensorRT's workspace."""
    rows = max(profiles.max_prefill_rows, profiles.max_decode_rows)
    # An engine of the lowered graph has memory for a step's own keys and values beside the cache. A bundle with that
    # graph may still be built from the other, by the version of TensorRT: what is asked for is the larger.
    beside = rows if bundle.has(LOWERED_GRAPH_FILE) else 0
    return memory_of(
        bundle.manifest.model,
        weights=bundle.manifest.files[WEIGHTS_FILE].size_bytes,
        item_bytes=item_bytes_of(bundle.manifest.graph_type),
        capacity=profiles.capacity + beside,
        head_rows=max(profiles.max_prefill_head_rows, profiles.max_decode_rows),
    )


def build_memory(bundle: Bundle) -> float:
    """Memory that a build takes where the GPU shares the CPU's: the builder's copies of the weights, and the GPU's."""
    return _host_bytes(bundle) + bundle.manifest.files[WEIGHTS_FILE].size_bytes


def require_room(bundle: Bundle, profiles: Profiles, gpu: Gpu | None, target: Target | None) -> int | None:
    """Require that the build fits, and the engine that it makes.

    A GPU with memory of its own holds the weights twice during the build. Where it shares the CPU's, what the system
    has available counts: CUDA takes the page cache for used, and that holds the whole bundle by then.

    Args:
        gpu: The GPU that the engine is built on; None for a build ahead of time, for the target.

    Returns:
        Bytes that may be given to a kernel as scratch memory; None for TensorRT's choice.

    Raises:
        EngineError: It does not fit.
    """
    memory, host = engine_memory(bundle, profiles), host_memory()
    if gpu is None:
        assert target is not None
        has = f"{target.name} has {target.memory_gb or 0:.1f} GB"
        _require(target.holds(memory.total), "the engine and its cache need", memory.total, has)
        return None
    if not gpu.integrated or host is None:
        on_gpu = max(2 * memory.weights, memory.total)
        _require(
            on_gpu <= gpu.free_bytes, "the build needs", on_gpu, f"{gpu.name} has {gpu.free_bytes / GB:.1f} GB free"
        )
        on_host = _host_bytes(bundle)
        if host is not None:
            _require(
                on_host <= host.available + host.swap, "the build needs", on_host, f"this machine has {_told(host)}"
            )
        return None
    needed = build_memory(bundle)
    has = f"{gpu.name} has {_told(host)}"
    _require(needed <= host.available + host.swap, "the build needs", needed, has)
    _require(memory.total <= host.available, "the engine and its cache need", memory.total, has)
    return int(max(_LEAST_WORKSPACE, host.available - needed))


def _host_bytes(bundle: Bundle) -> float:
    copies = _HOST_COPIES_QUANTISED if PRECISIONS[bundle.manifest.precision].is_quantised else _HOST_COPIES
    return copies * bundle.manifest.files[WEIGHTS_FILE].size_bytes + _HOST_FIXED


def _told(host: HostMemory) -> str:
    swap = f" and {host.swap / GB:.1f} GB of swap" if host.swap else ""
    return f"{host.available / GB:.1f} GB available{swap}"


def _require(fits: bool, what: str, needed: float, has: str) -> None:
    if not fits:
        raise EngineError(
            f"{what} about {needed / GB:.1f} GB, {has}; close other programs, or export with a smaller --context or "
            "precision; for the build alone, swap helps"
        )
