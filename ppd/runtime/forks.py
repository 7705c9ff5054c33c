"""Forks: where two generations differ, and whether plain decoding itself was undecided there.

A row's logits differ in the last bits between a pass of one row and a pass of several. Where the two best logits are
that close, either token is right; anywhere else a fork is a bug.
"""

from collections.abc import Sequence

import numpy as np

from ppd.runtime.engines import Engine
from ppd.signature import causal_state


def first_fork(left: Sequence[int], right: Sequence[int]) -> int | None:
    """Index of the first token that differs, or None. A prefix forks where it ends."""
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return None if len(left) == len(right) else min(len(left), len(right))


def top_two_gap(engine: Engine, num_prompt_tokens: int, ids: Sequence[int]) -> float:
    """Gap between the two best logits after `ids`, in plain decoding.

    Args:
        engine: The engine; its cache is overwritten.
        num_prompt_tokens: m of the bundle.
        ids: Prompt and answer up to the fork.
    """
    engine.restart(len(ids))
    state, last = causal_state(num_prompt_tokens), np.zeros(1, np.int64)
    for position, token in enumerate(ids):
        engine.run(np.array([token], np.int64), state, position, last)
    second, first = np.partition(engine.logits(0), -2)[-2:]
    return float(first - second)
