"""Sampling whose randomness depends on seed, position and id alone, so that drafting cannot change the outcome.

The token at position t is the argmax over kept ids i of log p(i) + Gumbel(seed, t, i). That is a draw from p (the
Gumbel-max trick), and the same draw whichever row of whichever step computes p.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ppd.errors import EngineError

Probabilities = npt.NDArray[np.float64]

_GAMMA, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_FEW = 4096
"""So many values are sorted at once; of more, most are ruled out before."""
_HEAD = 256
"""Ids that reach `top_p` by themselves, as a rule."""
_CHUNK = 8192
"""Values that are computed with at a time: temporaries of this size stay in the cache and cost no page faults."""
_BINS = 4096
_DEPTH = 64.0
"""Natural logarithm of how much less probable than the best an id is before differences stop to matter."""


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
        kept = self.log_p[self.log_p > -_DEPTH * 16]  # e^-1024 is 0 in 64 bits, and nothing times infinity is no number
        return float(-(np.exp(kept) * kept).sum())


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
        raise not_finite()
    if top_k is not None and top_k < len(logits):
        ids = _likeliest(logits, top_k)
        log_p = _scores(logits[ids], best, temperature)
        log_p -= _log_sum_exp(log_p)
    else:
        ids, log_p = _head_or_all(logits, best, temperature, 1.0 if top_p is None else top_p)
    if top_p is not None and top_p < 1:
        places = _nucleus(log_p, top_p)
        ids, log_p = ids[places], log_p[places]
        log_p -= _log_sum_exp(log_p)
    return Distribution(ids, log_p)


def not_finite() -> EngineError:
    """The error about logits that are NaN or infinite."""
    return EngineError(
        "the engine's logits are not finite: the weights are damaged, or the numbers too large for 16 bits; run ppd "
        "check on the bundle, or export with --precision fp32"
    )


def _head_or_all(
    logits: npt.NDArray[np.floating], best: np.floating, temperature: float, top_p: float
) -> tuple[npt.NDArray[np.int64], Probabilities]:
    """Ids and log-probabilities, normalised over all: the likeliest ids, where they reach `top_p`, or all of them."""
    parts = [_scores(logits[start : start + _CHUNK], best, temperature) for start in range(0, len(logits), _CHUNK)]
    log_sum = math.log(sum(float(np.exp(part).sum()) for part in parts))
    if len(logits) > _FEW:
        ids = _likeliest(logits, _HEAD)
        log_p = _scores(logits[ids], best, temperature)
        log_p -= log_sum
        if np.exp(log_p).sum() > top_p:
            return ids, log_p
    log_p = np.concatenate(parts)
    log_p -= log_sum
    return np.arange(len(logits)), log_p


def _scores(logits: npt.NDArray[np.floating], best: np.floating, temperature: float) -> Probabilities:
    """Logits relative to the best and to the temperature, in float64."""
    scores = logits.astype(np.float64)
    scores -= best
    with np.errstate(over="ignore"):  # the best is at 0; how far below it the others sink does not matter
        scores /= temperature
    return scores


def _likeliest(logits: npt.NDArray[np.floating], count: int) -> npt.NDArray[np.int64]:
    """Ids of the `count` largest logits, and of those that tie with the last, ascending: int64 [at least count].

    The maxima of blocks come first: what is below the `count`-th of them is not among the largest, and goes unsorted.
    """
    num_blocks = len(logits) // 64
    ids = np.arange(len(logits))
    if num_blocks > count:
        maxima = logits[: num_blocks * 64].reshape(64, num_blocks).max(axis=0)
        ids = np.flatnonzero(logits >= np.partition(maxima, -count)[-count])
    found = logits[ids]
    return ids[found >= np.partition(found, -count)[-count]]


def _nucleus(log_p: Probabilities, top_p: float) -> npt.NDArray[np.int64]:
    """Places of the fewest most probable ids that reach `top_p`; ties go to the lower place."""
    above, within, reached = np.arange(0), np.arange(len(log_p)), 0.0
    if len(log_p) > _FEW:
        above, within, reached = _bin_reaching(log_p, top_p)
    order = within[np.argsort(-log_p[within], kind="stable")]
    count = 1 + np.searchsorted(reached + np.cumsum(np.exp(log_p[order])), top_p)
    return np.concatenate([above, order[:count]])


def _bin_reaching(log_p: Probabilities, top_p: float) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], float]:
    """Sort ids into bins of probability: places above the bin where `top_p` is reached, in it, and the sum above it."""
    below = log_p.max() - log_p
    depth = min(float(below.max()), _DEPTH) or 1.0
    np.minimum(below, depth, out=below)
    below *= _BINS / depth
    bins = below.astype(np.int32)
    mass = np.cumsum(np.bincount(bins, np.exp(log_p), _BINS + 1))  # of the bins down to each
    last = int(np.searchsorted(mass, top_p))
    return np.flatnonzero(bins < last), np.flatnonzero(bins == last), float(mass[last - 1]) if last else 0.0


def draw(distribution: Distribution, seed: int, position: int) -> int:
    """Draw the token at a position.

    Args:
        seed: 0 to 2^64 - 1.
        position: Position of the token in prompt + answer, from 0.
    """
    best, token = -math.inf, -1
    for start in range(0, len(distribution.ids), _CHUNK):
        ids = distribution.ids[start : start + _CHUNK]
        scores = distribution.log_p[start : start + _CHUNK] + gumbel_noise(ids, seed, position)
        place = scores.argmax()
        if token < 0 or scores[place] > best:
            best, token = scores[place], int(ids[place])
    return token


def gumbel_noise(ids: npt.NDArray[np.int64], seed: int, position: int) -> Probabilities:
    """Standard Gumbel noise of ids at a position: float64, as many as ids, each a function of (seed, position, id).

    The bits are SplitMix64's (Steele, Lea and Flood, 2014): its stream from a start that seed and position determine,
    read at the id-th place, which needs no other place to be computed.
    """
    start = _mix(_mix((seed + _GAMMA) % 2**64) + position * _GAMMA)
    bits = _mix_array(np.uint64(start) + (ids.astype(np.uint64) + np.uint64(1)) * np.uint64(_GAMMA))
    uniform = ((bits >> np.uint64(11)) + 0.5) * 2.0**-53
    np.minimum(uniform, 1 - 2.0**-53, out=uniform)  # in (0, 1), never an end: the largest rounds to 1
    return -np.log(-np.log(uniform))


def _mix(z: int) -> int:
    """SplitMix64's finaliser."""
    z %= 2**64
    z = (z ^ (z >> 30)) * _MIX_1 % 2**64
    z = (z ^ (z >> 27)) * _MIX_2 % 2**64
    return z ^ (z >> 31)


def _mix_array(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """`_mix` of an array, in place; arrays of uint64 wrap around silently."""
    z ^= z >> np.uint64(30)
    z *= np.uint64(_MIX_1)
    z ^= z >> np.uint64(27)
    z *= np.uint64(_MIX_2)
    z ^= z >> np.uint64(31)
    return z


def _log_sum_exp(scores: Probabilities) -> float:
    best = scores.max()
    return float(best + np.log(np.exp(scores - best).sum()))
