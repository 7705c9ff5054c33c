"""What a calibration leaves in a bundle beside the manifest: `latency.json` and `acceptance.json`."""

import dataclasses
import json
from dataclasses import dataclass

import numpy as np

from ppd.bundle import ACCEPTANCE_FILE, LATENCY_FILE, Bundle
from ppd.calibrate.latency import Latency
from ppd.codec import AGAIN, decode, parse_json
from ppd.decision import CalibrationInfo
from ppd.errors import BundleError
from ppd.json_files import parse
from ppd.measures import Marginals, curves_from_json, marginals_from_json, prompt_rows_ms_from_json
from ppd.runtime.drafters.chances import chances_from_json

_ARRAYS = ("sizes", "cache_lens", "milliseconds", "host_ms", "head_share")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was measured on a device: how often guesses are right, and what steps cost.

    Attributes:
        marginals: Of the prompt tokens' guesses.
        chances: Of guesses from text, by kind as in `ppd.runtime.drafters.chances.Chances.of`.
    """

    marginals: Marginals
    chances: list[float]
    latency: Latency


@dataclass(frozen=True, slots=True, kw_only=True)
class TogetherInfo:
    """What all sources of a bundle give together, chosen step by step, beside a calibration of its tree.

    Attributes:
        sources: Those that were there.
        predicted_acceptance_length: τ, played over the answers that acceptance was counted on.
        measured_acceptance_length: τ of the confirming run.
        predicted_speedup: Played over the same answers, at the measured costs of each step.
        measured_speedup: Median of the confirming run's paired ratios.
        speedup_low: Lower end of its 95 % interval; `speedup_high` is the upper.
    """

    sources: list[str]
    predicted_acceptance_length: float
    measured_acceptance_length: float
    predicted_speedup: float
    measured_speedup: float
    speedup_low: float
    speedup_high: float


def files_from_measured(
    measured: Measured, info: CalibrationInfo | None = None, together: TogetherInfo | None = None
) -> dict[str, str]:
    """Role → text, each with the calibration that it belongs to, once there is one."""
    marginals, latency = measured.marginals, measured.latency
    acceptance = {
        "marginals": marginals.probabilities,
        "intervals": marginals.intervals(),
        "trials": marginals.trials,
        "source": marginals.source,
        "chances": measured.chances,
    }
    times = {name: getattr(latency, name).tolist() for name in _ARRAYS}
    times |= {"prompt_rows_ms": latency.prompt_rows_ms, "rounds": latency.rounds, "stable": latency.stable}
    about = {} if info is None else {"measured": dataclasses.asdict(info)}
    acceptance |= {} if together is None else {"together": dataclasses.asdict(together)}
    return {ACCEPTANCE_FILE: json.dumps(acceptance | about), LATENCY_FILE: json.dumps(times | about)}


def measured_from_bundle(bundle: Bundle) -> Measured:
    """Read the two files of a calibrated bundle.

    Raises:
        BundleError: A file is missing or malformed.
    """
    acceptance, times = (bundle.read_bytes(role) for role in (ACCEPTANCE_FILE, LATENCY_FILE))
    try:
        read = parse(times)
        curves_from_json(read)  # or an error
        latency = Latency(
            sizes=np.array(read["sizes"], np.int64),
            cache_lens=np.array(read["cache_lens"], np.int64),
            milliseconds=np.array(read["milliseconds"], np.float64),
            prompt_rows_ms=prompt_rows_ms_from_json(read),
            host_ms=np.array(read["host_ms"], np.float64),
            head_share=np.array(read["head_share"], np.float64),
            rounds=read["rounds"],
            stable=read["stable"],
        )
        accepted = parse(acceptance)
        marginals = marginals_from_json(accepted, "this device")
        return Measured(marginals=marginals, chances=chances_from_json(accepted), latency=latency)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise BundleError(
            f"{bundle.folder}: the record of its calibration is damaged ({error!s:.200}); {AGAIN}"
        ) from error


def together_from_bundle(bundle: Bundle) -> TogetherInfo | None:
    """What all sources of a calibrated bundle give together; None where that was not measured.

    Raises:
        BundleError: The file is malformed.
    """
    where = f"{bundle.folder}: the record of its calibration"
    read = parse_json(bundle.read_bytes(ACCEPTANCE_FILE), where)
    if not isinstance(read, dict) or "together" not in read:
        return None
    return decode(TogetherInfo, read["together"], f"{where}: together")
