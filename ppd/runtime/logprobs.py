"""Log probabilities of an answer's tokens, as the model gives them: before temperature, top-k and top-p."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ppd.runtime.engines.base import Logits

MAX_TOP_LOGPROBS = 20
"""Tokens at most that are told beside the chosen one."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """How probable a token was where it stands.

    Attributes:
        logprob: Its natural logarithm.
        top: The most probable ids there with theirs, the best first.
    """

    token_id: int
    logprob: float
    top: Sequence[tuple[int, float]]


def token_logprob(logits: Logits, token: int, num_top: int) -> TokenLogprob:
    """The log probability of a token, computed in float64 as samples are.

    Args:
        logits: float32 [V], the row's behind which the token stands.
        num_top: How many of the most probable ids to tell; ties go to the lower id.
    """
    scores = logits.astype(np.float64)
    scores -= scores.max()
    log_sum = math.log(float(np.exp(scores).sum()))
    count = min(num_top, len(scores))
    best: list[int] = []
    if count:
        least = np.partition(scores, -count)[-count]
        likely = np.flatnonzero(scores >= least)
        best = likely[np.argsort(-scores[likely], kind="stable")][:count].tolist()
    return TokenLogprob(token, float(scores[token]) - log_sum, [(i, float(scores[i]) - log_sum) for i in best])
