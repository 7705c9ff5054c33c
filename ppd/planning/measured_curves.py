"""Curves L(N)/L(1) that were measured elsewhere: all that is known of a target without figures, the machine itself.

They are data, `measured_curves.json`, each with its source. The curve of the same precision whose model is nearest in
size is taken. Another machine has another curve, so `ppd calibrate` replaces it.
"""

import functools
import json
import math
from pathlib import Path
from typing import NamedTuple

from ppd.measures import RELATIVE, LatencyCurve


class MeasuredOn(NamedTuple):
    """What a curve stands for: target, precision, and the size of the model that was measured."""

    target: str
    precision: str
    num_parameters: int


@functools.cache
def load_curves() -> dict[MeasuredOn, LatencyCurve]:
    """Every curve."""
    data = json.loads((Path(__file__).parent / "data" / "measured_curves.json").read_text("utf-8"))
    return {
        MeasuredOn(curve["target"], curve["precision"], curve["num_parameters"]): LatencyCurve(
            sizes=curve["sizes"],
            values=[float(value) for value in curve["relative_latency"]],
            unit=RELATIVE,
            source=curve["source"],
        )
        for curve in data["curves"]
    }


def nearest_curve(target: str, precision: str, num_parameters: int) -> LatencyCurve | None:
    """The curve of the target and precision whose model is nearest in size, by ratio; None where there is none."""
    curves = load_curves()
    fitting = [on for on in curves if (on.target, on.precision) == (target, precision)]
    nearest = min(fitting, key=lambda on: abs(math.log(on.num_parameters / num_parameters)), default=None)
    return None if nearest is None else curves[nearest]
