"""Sampling whose randomness depends on seed, position and id alone, so that drafting cannot change the outcome.

The token at position t is the argmax over kept ids i of log p(i) + Gumbel(seed, t, i). That is a draw from p (the
Gumbel-max trick), and the same draw whichever row of whichever step computes p.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ppd.errors import EngineError

Probabilities = npt.NDArray[np.float64]

_GAMMA, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_SORTED_AT_FIRST = 1024


@dataclass(frozen=True, slots=True)
class Distribution:
    """A row's processed distribution.

    Attributes:
        ids: Kept ids, int64 [kept].
        log_p: Their log-probabilities, float64 [kept], normalised over the kept ids.
    """

    ids: npt.NDArray[np.int64]
    log_p: Probabilities

    def log_probability(self, token: int) -> float:
        """Log-probability of one id; minus infinity if it was not kept."""
        found = np.flatnonzero(self.ids == token)
        return float(self.log_p[found[0]]) if len(found) else -np.inf

    def entropy(self) -> float:
        """Shannon entropy in nats."""
        return float(-(np.exp(self.log_p) * self.log_p).sum())


def process_logits(
    logits: npt.NDArray[np.floating], temperature: float, top_k: int | None, top_p: float | None
) -> Distribution:
    """Apply temperature, then top-k, then top-p, in float64.

    Args:
        logits: [V].
        temperature: Above 0.
        top_k: Keep the k largest; ids tied with the k-th are kept too.
        top_p: Keep the fewest most probable ids whose sum reaches p.

    Raises:
        EngineError: The logits are not finite numbers.
    """
    best = logits.max()
    if not np.isfinite(best):
        raise EngineError("the engine returned logits that are not finite; run ppd check on the bundle")
    with np.errstate(over="ignore"):  # the best is at 0; how far below it the others sink does not matter
        scores = (logits.astype(np.float64) - best) / temperature
    ids = np.arange(len(scores))
    if top_k is not None and top_k < len(scores):
        ids = np.flatnonzero(scores >= np.partition(scores, -top_k)[-top_k])
    log_p = _log_softmax(scores[ids])
    if top_p is not None and top_p < 1:
        order = _nucleus(log_p, top_p)
        ids, log_p = ids[order], _log_softmax(log_p[order])
    return Distribution(ids, log_p)


def _nucleus(log_p: Probabilities, top_p: float) -> npt.NDArray[np.int64]:
    """Places of the fewest most probable ids that reach `top_p`, most probable first; ties go to the lower place."""
    places = np.arange(len(log_p))
    if (
        len(log_p) > _SORTED_AT_FIRST
    ):  # the nucleus is small, as a rule: sort the likeliest, and the rest only if need be
        places = np.flatnonzero(log_p >= np.partition(log_p, -_SORTED_AT_FIRST)[-_SORTED_AT_FIRST])
        if np.exp(log_p[places]).sum() < top_p:
            places = np.arange(len(log_p))
    order = places[np.argsort(-log_p[places], kind="stable")]
    return order[: 1 + np.searchsorted(np.cumsum(np.exp(log_p[order])), top_p)]


def draw(distribution: Distribution, seed: int, position: int) -> int:
    """Draw the token at a position.

    Args:
        distribution: The row's processed distribution.
        seed: 0 to 2^64 - 1.
        position: Place of the token in prompt + answer, from 0.

    Returns:
        The token's id.
    """
    noise = gumbel_noise(distribution.ids, seed, position)
    return int(distribution.ids[np.argmax(distribution.log_p + noise)])


def gumbel_noise(ids: npt.NDArray[np.int64], seed: int, position: int) -> Probabilities:
    """Standard Gumbel noise of ids at a position: float64, as many as ids, each a function of (seed, position, id).

    The bits are SplitMix64's (Steele, Lea and Flood, 2014): its stream from a start that seed and position determine,
    read at the id-th place, which needs no other place to be computed.
    """
    start = _mix(_mix((seed + _GAMMA) % 2**64) + position * _GAMMA)
    bits = _mix_array(np.uint64(start) + (ids.astype(np.uint64) + np.uint64(1)) * np.uint64(_GAMMA))
    uniform = ((bits >> np.uint64(11)) + 0.5) * 2.0**-53  # in (0, 1), never an end
    return -np.log(-np.log(uniform))


def _mix(z: int) -> int:
    """SplitMix64's finaliser."""
    z %= 2**64
    z = (z ^ (z >> 30)) * _MIX_1 % 2**64
    z = (z ^ (z >> 27)) * _MIX_2 % 2**64
    return z ^ (z >> 31)


def _mix_array(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """`_mix` of an array; arrays of uint64 wrap around silently."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(_MIX_1)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(_MIX_2)
    return z ^ (z >> np.uint64(31))


def _log_softmax(scores: Probabilities) -> Probabilities:
    shifted = scores - scores.max()
    return shifted - np.log(np.exp(shifted).sum())
