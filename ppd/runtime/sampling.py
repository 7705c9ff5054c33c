"""Sampling whose randomness depends on seed, position and id alone, so that drafting cannot change the outcome.

The token at position t is the argmax over kept ids i of log p(i) + Gumbel(seed, t, i). That is a draw from p (the
Gumbel-max trick), and the same draw whichever row of whichever step computes p.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ppd.errors import EngineError

Probabilities = npt.NDArray[np.float64]


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
    scores = logits.astype(np.float64) / temperature
    if not np.isfinite(scores.max()):
        raise EngineError("the engine returned logits that are not finite; run ppd check on the bundle")
    ids = np.arange(len(scores))
    if top_k is not None and top_k < len(scores):
        ids = np.flatnonzero(scores >= np.partition(scores, -top_k)[-top_k])
    log_p = _log_softmax(scores[ids])
    if top_p is not None and top_p < 1:
        order = np.argsort(-log_p, kind="stable")
        kept = 1 + np.searchsorted(np.cumsum(np.exp(log_p[order])), top_p)
        ids, log_p = ids[order[:kept]], _log_softmax(log_p[order[:kept]])
    return Distribution(ids, log_p)


def draw(distribution: Distribution, vocab_size: int, seed: int, position: int) -> int:
    """Draw the token at a position.

    Args:
        distribution: The row's processed distribution.
        vocab_size: V.
        seed: 0 to 2^64 - 1.
        position: Place of the token in prompt + answer, from 0.

    Returns:
        The token's id.
    """
    noise = gumbel_noise(vocab_size, seed, position)[distribution.ids]
    return int(distribution.ids[np.argmax(distribution.log_p + noise)])


def gumbel_noise(vocab_size: int, seed: int, position: int) -> Probabilities:
    """Standard Gumbel noise of every id at a position, float64 [V], from the counter-based generator Philox 4x64.

    The raw output is used, which NumPy keeps stable between versions.
    """
    bits = np.random.Philox(key=seed, counter=position << 128).random_raw(vocab_size)
    uniform = ((bits >> np.uint64(11)) + 0.5) * 2.0**-53  # in (0, 1), never an end
    return -np.log(-np.log(uniform))


def _log_softmax(scores: Probabilities) -> Probabilities:
    shifted = scores - scores.max()
    return shifted - np.log(np.exp(shifted).sum())
