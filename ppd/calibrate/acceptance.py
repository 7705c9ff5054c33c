"""Acceptance: at which rank of the prompt rows' guesses the coming tokens stand, measured on plain decoding's text."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ppd.errors import ArgumentError
from ppd.runtime.model import Model
from ppd.signature import causal_state

_Z = 1.96  # 95 %


@dataclass(frozen=True)
class Acceptance:
    """What was counted.

    Attributes:
        hits: How often the token at distance d stood at rank r, int64 [m, K].
        trials: Tokens compared per distance, int64 [m].
        num_prompts: Prompts that were decoded.
    """

    hits: npt.NDArray[np.int64]
    trials: npt.NDArray[np.int64]
    num_prompts: int

    @property
    def marginals(self) -> npt.NDArray[np.float64]:
        """p[d][r], float64 [m, K]."""
        return self.hits / np.maximum(self.trials, 1)[:, None]

    def intervals(self) -> list[list[tuple[float, float]]]:
        """The 95 % Wilson interval of every p[d][r]."""
        return [[wilson(int(h), int(n)) for h in row] for row, n in zip(self.hits, self.trials, strict=True)]


def wilson(hits: int, trials: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a chance (Wilson 1927)."""
    if trials == 0:
        return 0.0, 1.0
    p, z2 = hits / trials, _Z * _Z
    middle = (p + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _Z * math.sqrt(p * (1 - p) / trials + z2 / (4 * trials * trials)) / (1 + z2 / trials)
    return max(0.0, middle - half), min(1.0, middle + half)


def measure_acceptance(
    model: Model, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, seconds: float
) -> Acceptance:
    """Decode prompts plainly; then give every token of the answers once more, the prompt rows behind it.

    Args:
        model: The model.
        prompts: Token ids of each prompt.
        max_new_tokens: Tokens decoded per prompt.
        seconds: No prompt begins later than this, the first excepted.

    Raises:
        ArgumentError: No answer was long enough to compare a single token.
    """
    m = model.bundle.manifest.prompt_tokens.count
    hits = np.zeros((m, model.bundle.manifest.num_top_ids), np.int64)
    trials, used, deadline = np.zeros(m, np.int64), 0, time.perf_counter() + seconds
    for ids in prompts:
        if used and time.perf_counter() > deadline:
            break
        answer = model.generate(list(ids), max_new_tokens=max_new_tokens, draft=False).token_ids
        for ranks in answer_ranks(model, ids, answer):
            for distance, rank in enumerate(ranks):
                trials[distance] += 1
                if rank is not None:
                    hits[distance, rank] += 1
        used += 1
    if not trials[0]:
        raise ArgumentError("every answer ended at once, so no guess can be compared; give other --prompts")
    return Acceptance(hits, trials, used)


def answer_ranks(model: Model, prompt: Sequence[int], answer: Sequence[int]) -> Iterator[list[int | None]]:
    """Give every token of an answer once more, the prompt rows behind it, and look up where the coming tokens stood.

    Args:
        model: The model; its cache is overwritten.
        prompt: Token ids.
        answer: What plain decoding wrote behind them.

    Yields:
        For each token but the last two: the rank of the coming token at each distance from 1 on (at most m, fewer at
        the end of the answer); None where it is not among the best ids.
    """
    manifest, engine = model.bundle.manifest, model.engine
    m = manifest.prompt_tokens.count
    state, prompt_rows = causal_state(m), manifest.model.vocab_size + np.arange(m)
    engine.restart(len(prompt) + m)
    chunk = manifest.max_rows - m
    for start in range(0, len(prompt), chunk):
        engine.run(np.array(prompt[start : start + chunk], np.int64), state, start, np.zeros(1, np.int64))
    for place in range(len(answer) - 2):  # prompt row j behind token `place` guesses the token j + 1 places ahead
        rows = np.concatenate([[answer[place]], prompt_rows])
        top_ids = engine.run(rows, state, len(prompt) + place, np.arange(m + 1))
        right = [top_ids[j] == answer[place + 1 + j] for j in range(1, min(m, len(answer) - 2 - place) + 1)]
        yield [int(where.argmax()) if where.any() else None for where in right]
        engine.commit(len(prompt) + place, [0])
