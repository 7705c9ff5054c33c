"""What a tree is chosen by: the time of a step by its rows, and the chance that a guess is right."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ppd.arguments import number
from ppd.errors import ArgumentError
from ppd.limits import MAX_CONTEXT
from ppd.signature import MAX_ROWS

Floats = npt.NDArray[np.float64]
MILLISECONDS, RELATIVE = "ms", "L(1)"
_Z = 1.96  # 95 %


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyCurve:
    """L(N), the time of a step of N rows.

    Attributes:
        sizes: N, ascending from 1.
        values: L at each of `sizes`; between them it is linear.
        unit: "ms"; or "L(1)", where only the ratio to a step of one row is known.
        source: What was measured where, or what it was estimated from.
    """

    sizes: list[int]
    values: list[float]
    unit: str
    source: str

    def at(self, num_rows: npt.ArrayLike) -> Floats:
        """L at the given numbers of rows, of the same shape."""
        return np.asarray(np.interp(np.asarray(num_rows, np.float64), self.sizes, self.values))

    def curve(self) -> Floats:
        """L(1), L(2), …, float64 [largest size]."""
        return self.at(np.arange(1, self.sizes[-1] + 1))


def curves_from_json(data: Any) -> dict[int, LatencyCurve]:
    """L(N) by the number of cached rows before the step, of a `latency.json`.

    Raises:
        ArgumentError: A key is missing, or a value has another type or shape.
    """
    try:
        sizes, lens, values = data["sizes"], data["cache_lens"], np.array(data["milliseconds"], np.float64)
        whole = all(type(number) is int for number in (*sizes, *lens))
        ascending = whole and sizes[0] == 1 and all(numbers == sorted(set(numbers)) for numbers in (sizes, lens))
        positive = bool((np.isfinite(values) & (values > 0)).all())
        in_range = ascending and sizes[-1] <= MAX_ROWS and lens[0] >= 0 and lens[-1] <= MAX_CONTEXT
        valid = in_range and positive and values.shape == (len(lens), len(sizes))
    except (KeyError, IndexError, TypeError, ValueError, OverflowError) as error:
        raise ArgumentError(f"the times are malformed ({error!s:.200})") from error
    if not valid:
        raise ArgumentError(f"the times are not positive, or not those of ascending sizes from 1 to {MAX_ROWS}")
    return {
        count: LatencyCurve(sizes=sizes, values=row, unit=MILLISECONDS, source="measured on this device")
        for count, row in zip(lens, values.tolist(), strict=True)
    }


def prompt_rows_ms_from_json(data: Any) -> float:
    """What prompt rows add to a step, of a `latency.json`; 0 in one that does not say.

    Raises:
        ArgumentError: It is no time.
    """
    found = number(data.get("prompt_rows_ms", 0.0))
    if found is None or not 0 <= found < float("inf"):
        raise ArgumentError(f"prompt_rows_ms is {data['prompt_rows_ms']!r:.40}; expected milliseconds")
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Marginals:
    """The chance of every guess, whatever stood before it.

    Attributes:
        probabilities: p[d][r], [m][K]: the chance that guess r for distance d + 1 is the token that comes.
        source: The text that they were counted on.
        trials: Tokens compared per distance, [m]; empty if unknown.
    """

    probabilities: list[list[float]]
    source: str
    trials: list[int] = field(default_factory=list)

    @property
    def num_distances(self) -> int:
        """m, the number of distances that are guessed."""
        return len(self.probabilities)

    def intervals(self) -> list[list[tuple[float, float]]]:
        """The 95 % Wilson interval of every p[d][r]; needs `trials`."""
        return [[wilson(p, n) for p in row] for row, n in zip(self.probabilities, self.trials, strict=True)]


def wilson(share: float, trials: int) -> tuple[float, float]:
    """The 95 % Wilson score interval (Wilson 1927) of a chance that was seen as a share of `trials`."""
    if trials == 0:
        return 0.0, 1.0
    z2 = _Z * _Z
    middle = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _Z * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials * trials)) / (1 + z2 / trials)
    return max(0.0, middle - half), min(1.0, middle + half)


def marginals_from_json(data: Any, default_source: str) -> Marginals:
    """Read `marginals`, and `source` and `trials` where present; other keys are ignored.

    Raises:
        ArgumentError: A key is missing, or a value has another type or shape.
    """
    if not isinstance(data, dict) or "marginals" not in data:
        raise ArgumentError("there are no marginals in it")
    chances = chances_from(data["marginals"])
    if chances.shape[1] != 1:
        raise ArgumentError("the marginals have three dimensions; expected [distances][ranks]")
    trials = data.get("trials", [])
    if not isinstance(trials, list) or not all(type(n) is int for n in trials) or len(trials) not in (0, len(chances)):
        raise ArgumentError(f"trials is {trials!r:.40}; expected a whole number per distance")
    return Marginals(
        probabilities=chances[:, 0].tolist(), source=str(data.get("source", default_source)), trials=trials
    )


def chances_from(marginals: npt.ArrayLike) -> Floats:
    """Bring chances into one shape.

    Args:
        marginals: p[d][r] [m, R], the chance that guess r for distance d+1 is the token that comes; or p[d][q][r]
            [m, R, R], given that the parent candidate has rank q (q = 0 for the root's guesses).

    Returns:
        float64 [m, Q, R], with Q = 1 where the parent's rank makes no difference.

    Raises:
        ArgumentError: They are not probabilities, or a row sums to more than 1.
    """
    try:
        p = np.array(marginals, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ArgumentError(f"the marginals are not numbers in rows of equal length ({error!s:.200})") from error
    if p.ndim == 2:
        p = p[:, None, :]
    if p.ndim != 3 or 0 in p.shape or p.shape[1] not in (1, p.shape[2]):
        raise ArgumentError(f"the marginals have shape {np.shape(marginals)}; expected [m, ranks] or [m, ranks, ranks]")
    if not (np.isfinite(p).all() and p.min() >= 0 and p.sum(axis=2).max() <= 1 + 1e-6):
        raise ArgumentError("the marginals must be probabilities from 0 to 1 that sum to at most 1 per distance")
    return p
