"""The roofline estimate of L(N): before a device is at hand, from its preset, every term stated.

A step reads all weights and the cache once, multiplies every row with every weight, and costs a constant besides:
L(N) = overhead + max(bytes / bandwidth, operations / throughput). It assumes that every peak figure is reached.
"""

from ppd.decision import RooflineInfo
from ppd.errors import ArgumentError
from ppd.manifest import ModelInfo
from ppd.measures import MILLISECONDS, LatencyCurve
from ppd.memory import GB, item_bytes_of, kv_bytes_per_row, memory_of, whole_cache, with_workspace
from ppd.precision import PRECISIONS
from ppd.signature import max_capacity
from ppd.targets import Target

OVERHEAD_MS = 0.1
"""Host code and launches per step: an assumption, not measured on any target."""
_MAX_ROWS = 128


def estimate_roofline(target: Target, model: ModelInfo, precision: str, *, cache_len: int) -> RooflineInfo:
    """The terms of a step.

    Args:
        target: Needs bandwidth and throughput.
        precision: A name of `PRECISIONS`.

    Raises:
        ArgumentError: The preset has no figures (the machine itself), or none for the precision.
    """
    if target.bandwidth_gbs is None or precision not in target.throughput_tflops:
        raise ArgumentError(f"target {target.name} has no figures for {precision}; run ppd calibrate on the device")
    per_ms = _bytes_per_ms(target.bandwidth_gbs)
    attention = 4.0 * model.num_layers * model.num_heads * model.head_dim * cache_len
    operations = 2.0 * model.num_parameters + attention
    return RooflineInfo(
        cache_len=cache_len,
        weights_ms=_weights_bytes(model, precision) / per_ms,
        cache_ms=cache_len * kv_bytes_per_row(model, item_bytes_of(_graph_type(target, precision))) / per_ms,
        compute_ms_per_row=operations / (target.throughput_tflops[precision] * 1e9),
        overhead_ms=OVERHEAD_MS,
    )


def curve_from_roofline(roofline: RooflineInfo, source: str) -> LatencyCurve:
    """L(N) up to 128 rows: flat while memory bounds it, then a slope; exact at every N."""
    memory = roofline.weights_ms + roofline.cache_ms
    turn = min(_MAX_ROWS, int(memory / roofline.compute_ms_per_row))  # the last N that memory bounds
    sizes = sorted({1, max(1, turn), min(_MAX_ROWS, turn + 1), _MAX_ROWS})
    values = [roofline.overhead_ms + max(memory, n * roofline.compute_ms_per_row) for n in sizes]
    return LatencyCurve(sizes=sizes, values=values, unit=MILLISECONDS, source=source)


def memory_warning(target: Target, model: ModelInfo, precision: str, context: int) -> str:
    """One line if weights, KV cache and workspace do not fit the target's memory, else empty."""
    need = with_workspace(
        memory_of(
            model,
            weights=_weights_bytes(model, precision),
            item_bytes=item_bytes_of(_graph_type(target, precision)),
            capacity=max_capacity(context),
            head_rows=1,
        )
    )
    if target.holds(need.total):
        return ""
    return (
        f"needs about {need.total / GB:.1f} GB (weights {need.weights / GB:.1f}, KV cache of {context} tokens "
        f"{need.cache / GB:.1f}, workspace {need.workspace / GB:.1f}); {target.name} has {target.memory_gb:g} GB: "
        "choose a smaller precision or --context"
    )


def context_notes(target: Target, model: ModelInfo, precision: str, context: int, wanted: int) -> tuple[str, ...]:
    """What the context of a bundle for an NVIDIA GPU should be known for: that it was cut, and what it costs a step.

    Args:
        wanted: The context without the target's default.
    """
    notes = []
    if context < wanted:
        notes.append(
            f"the context is {context} tokens, {target.name}'s default, of the model's {wanted}: see --context"
        )
    if target.compute_capability is None or target.bandwidth_gbs is None:
        return tuple(notes)
    graph_type = _graph_type(target, precision)
    cache = whole_cache(model, graph_type, max_capacity(context), _weights_bytes(model, precision))
    cache_ms = cache.size_bytes / _bytes_per_ms(target.bandwidth_gbs)
    if cache.is_much and cache_ms >= OVERHEAD_MS:
        notes.append(
            f"TensorRT from 10.15 on, and TensorRT-RTX, read {cache.words}, {cache_ms:.2g} ms at "
            f"{target.bandwidth_gbs:g} GB/s; give a smaller --context if that is enough"
        )
    return tuple(notes)


def _weights_bytes(model: ModelInfo, precision: str) -> float:
    return model.num_parameters * PRECISIONS[precision].bytes_per_weight


def _graph_type(target: Target, precision: str) -> str:
    return target.graph_type(PRECISIONS[precision])


def _bytes_per_ms(bandwidth_gbs: float) -> float:
    return bandwidth_gbs * 1e6
