"""Whether a bundle drafts unless told, and what that rests on: a calibration, an estimate, or nothing."""

import types
from dataclasses import dataclass

from ppd.codec import AGAIN
from ppd.errors import BundleError
from ppd.measures import LatencyCurve, Marginals


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationInfo:
    """What calibration measured and chose on a device.

    Attributes:
        engine: Name, version and device.
        machine: Operating system and processor.
        created: ISO 8601.
        num_prompts: Prompts whose acceptance was counted.
        predicted_acceptance_length: τ with the tree at every step, played over the answers to these prompts.
        measured_acceptance_length: τ of the confirming run.
        predicted_speedup: Played over the same answers, at the measured costs of each step.
        measured_speedup: Median of the confirming run's paired ratios.
        speedup_low: Lower end of its 95 % interval; `speedup_high` is the upper.
        remark: Which part of the prediction is off by over 10 %; else empty.
    """

    engine: str
    machine: str
    created: str
    num_prompts: int
    predicted_acceptance_length: float
    measured_acceptance_length: float
    predicted_speedup: float
    measured_speedup: float
    speedup_low: float
    speedup_high: float
    remark: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RooflineInfo:
    """What a target's figures predict: N rows take overhead + max(weights + cache, N · compute per row).

    Attributes:
        cache_len: Cached rows assumed.
        weights_ms: Weights over bandwidth.
        cache_ms: KV cache over bandwidth.
        compute_ms_per_row: Operations of a row over dense throughput.
        overhead_ms: Constant per step.
    """

    cache_len: int
    weights_ms: float
    cache_ms: float
    compute_ms_per_row: float
    overhead_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimateInfo:
    """What is known of a target before a device is at hand; nothing was measured on it.

    Attributes:
        curve: L(N): a roofline, or measured elsewhere.
        roofline: The terms of `curve`; null where it was measured elsewhere.
        marginals: The chances that the tree was chosen by; null if unknown: the tree is then hand-made.
        acceptance_length: τ that the marginals predict; null without them.
        speedup: τ·L(1)/L(N); null without marginals.
        warning: Says that the model does not fit the target's memory; else empty.
    """

    curve: LatencyCurve
    roofline: RooflineInfo | None
    marginals: Marginals | None
    acceptance_length: float | None
    speedup: float | None
    warning: str


CALIBRATED, CALIBRATED_ELSEWHERE, ESTIMATED = "calibrated here", "calibrated elsewhere", "estimated"
UNKNOWN, GIVEN = "unknown", "given"
_RECORDS: dict[str, tuple[type, ...]] = {
    CALIBRATED: (CalibrationInfo,),
    CALIBRATED_ELSEWHERE: (CalibrationInfo,),
    ESTIMATED: (EstimateInfo,),
    UNKNOWN: (EstimateInfo, types.NoneType),
    GIVEN: (types.NoneType,),
}
"""Basis of a decision → its record."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What `draft="auto"` does with the folded tree, and why.

    Attributes:
        draft: Whether the tree's guesses are among the sources that are chosen from step by step; null if it is unknown
            whether they pay: they then are. A tree that the user gave drafts at every step unless this is false.
        basis: "calibrated here", on this device; "calibrated elsewhere", when the prompt tokens were trained;
            "estimated" for the target; "unknown", where acceptance or device is: the tree is then hand-made; "given",
            for a tree that the user chose.
        record: What was measured or estimated; null if nothing was.
    """

    draft: bool | None
    basis: str
    record: CalibrationInfo | EstimateInfo | None

    def __post_init__(self) -> None:
        if not isinstance(self.record, _RECORDS.get(self.basis, ())):
            raise BundleError(
                f"a decision's basis is {self.basis!r:.40} with the record {type(self.record).__name__}, expected "
                f"{', '.join(_RECORDS)} and what belongs to it; {AGAIN}"
            )
