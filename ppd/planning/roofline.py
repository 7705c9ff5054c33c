"""The roofline estimate of L(N): before a device is at hand, from its preset, every term stated.

A step reads all weights and the cache once, multiplies every row with every weight, and costs a constant besides:
L(N) = overhead + max(bytes / bandwidth, operations / throughput). It assumes that every peak figure is reached.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ppd.errors import ArgumentError
from ppd.manifest import ModelInfo
from ppd.precision import PRECISIONS
from ppd.targets import Target

OVERHEAD_MS = 0.1
"""Host code and launches per step: an assumption, not measured on any target."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEstimate:
    """The terms of one step.

    Attributes:
        num_rows: N.
        weights_ms: Weights over bandwidth.
        cache_ms: KV cache over bandwidth.
        compute_ms: Operations over throughput.
        overhead_ms: Constant.
    """

    num_rows: int
    weights_ms: float
    cache_ms: float
    compute_ms: float
    overhead_ms: float

    @property
    def latency_ms(self) -> float:
        """L(N)."""
        return self.overhead_ms + max(self.weights_ms + self.cache_ms, self.compute_ms)

    @property
    def bound(self) -> str:
        """What bounds the step: "memory" or "compute"."""
        return "memory" if self.weights_ms + self.cache_ms >= self.compute_ms else "compute"


def estimate_steps(
    target: Target, model: ModelInfo, precision: str, *, cache_len: int, max_rows: int = 128
) -> list[StepEstimate]:
    """The estimate for N = 1, 2, …, `max_rows`.

    Args:
        target: The device; it needs bandwidth and throughput.
        model: The shape.
        precision: As run.
        cache_len: Cached rows.
        max_rows: The largest N.

    Raises:
        ArgumentError: The preset has no figures (the machine itself), or none for the precision.
    """
    if target.bandwidth_gbs is None or precision not in target.throughput_tflops:
        raise ArgumentError(f"target {target.name} has no figures for {precision}; run ppd calibrate on the device")
    per_ms = target.bandwidth_gbs * 1e6  # bytes per millisecond
    weights = model.num_parameters * PRECISIONS[precision].bytes_per_weight / per_ms
    cache = cache_len * kv_bytes_per_row(model, target, precision) / per_ms
    attention = 4.0 * model.num_layers * model.num_heads * model.head_dim * cache_len
    operations = 2.0 * model.num_parameters + attention
    return [
        StepEstimate(
            num_rows=n,
            weights_ms=weights,
            cache_ms=cache,
            compute_ms=n * operations / (target.throughput_tflops[precision] * 1e9),
            overhead_ms=OVERHEAD_MS,
        )
        for n in range(1, max_rows + 1)
    ]


def curve_from_steps(steps: list[StepEstimate]) -> npt.NDArray[np.float64]:
    """L(1), L(2), …, milliseconds, float64 [N], as the search takes it."""
    return np.array([step.latency_ms for step in steps])


def kv_bytes_per_row(model: ModelInfo, target: Target, precision: str) -> float:
    """Bytes that one cached row has over all layers, in the graph's type."""
    size = 2 if target.graph_type(PRECISIONS[precision]) == "float16" else 4
    return 2.0 * model.num_layers * model.num_kv_heads * model.head_dim * size


def memory_warning(target: Target, model: ModelInfo, precision: str, context: int) -> str | None:
    """One line if weights, KV cache and workspace do not fit the target's memory, else None.

    The workspace is taken as a tenth of the weights.
    """
    if target.memory_gb is None:
        return None
    weights = model.num_parameters * PRECISIONS[precision].bytes_per_weight / 1e9
    cache = context * kv_bytes_per_row(model, target, precision) / 1e9
    need = 1.1 * weights + cache
    if need <= target.memory_gb:
        return None
    return (
        f"needs about {need:.1f} GB (weights {weights:.1f}, KV cache of {context} tokens {cache:.1f}, workspace "
        f"{0.1 * weights:.1f}); {target.name} has {target.memory_gb:g} GB: choose a smaller precision or --context"
    )
