"""Curves L(N)/L(1) that were measured elsewhere: all that is known of a target without figures, the machine itself.

They are data, `measured_curves.json`, each with its source. The curve of the same precision whose model is nearest in
size is taken. Another machine has another curve, so `ppd calibrate` replaces it.
"""

import functools
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredCurve:
    """One curve.

    Attributes:
        target: The target that it stands for.
        precision: As run.
        num_parameters: Of the model that was measured.
        sizes: N, rows of a step, ascending from 1.
        relative_latency: L(N)/L(1) at each.
        source: Model, machine, and the command or document that gave it.
    """

    target: str
    precision: str
    num_parameters: int
    sizes: list[int]
    relative_latency: list[float]
    source: str

    def curve(self) -> npt.NDArray[np.float64]:
        """L(1), L(2), … in units of L(1), float64 [largest size]: linear between sizes."""
        return np.interp(np.arange(1, self.sizes[-1] + 1), self.sizes, self.relative_latency)


@functools.cache
def load_curves() -> tuple[MeasuredCurve, ...]:
    """Every curve."""
    data = json.loads((Path(__file__).parent / "data" / "measured_curves.json").read_text("utf-8"))
    return tuple(MeasuredCurve(**fields) for fields in data["curves"])


def nearest_curve(target: str, precision: str, num_parameters: int) -> MeasuredCurve | None:
    """The curve of the target and precision whose model is nearest in size, by ratio; None where there is none."""
    fitting = [c for c in load_curves() if (c.target, c.precision) == (target, precision)]
    return min(fitting, key=lambda c: abs(math.log(c.num_parameters / num_parameters)), default=None)
