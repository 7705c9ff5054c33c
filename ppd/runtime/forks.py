"""Forks: where two generations differ, and whether plain decoding itself was undecided there.

A row's logits differ in the last bits between a pass of one row and a pass of several. Where the two best logits are
that close, either token is right; anywhere else a fork is a bug.
"""

from collections.abc import Sequence

import numpy as np

from ppd.runtime.engines.base import Logits
from ppd.runtime.session import Session
from ppd.runtime.verify import Accepted


def first_fork(left: Sequence[int], right: Sequence[int]) -> int | None:
    """Index of the first token that differs, or None. A prefix forks where it ends."""
    for index, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return index
    return None if len(left) == len(right) else min(len(left), len(right))


def plain_logits(session: Session, ids: Sequence[int]) -> Logits:
    """Logits after `ids`, float32 [V], as plain decoding computes them: one row a step.

    Args:
        session: What it held is forgotten.
        ids: Prompt and answer up to the fork.
    """
    session.restart(len(ids))
    for token in ids:
        session.step(session.plans.plain, [token])
        session.commit(Accepted([0], [token]), 1)
    return session.logits(0)


def top_two_gap(session: Session, ids: Sequence[int]) -> float:
    """Gap between the two best logits after `ids`, in plain decoding; arguments as for `plain_logits`."""
    return gap_of(plain_logits(session, ids))


def gap_of(logits: Logits) -> float:
    """Gap between the two best logits."""
    second, first = np.partition(logits, -2)[-2:]
    return float(first - second)
