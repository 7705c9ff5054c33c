"""Verify: find the longest correct path of a step. Pure: everything about the model comes in as functions of a node."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ppd.runtime.engines.base import Ids
from ppd.runtime.sampling import Distribution

TYPICAL_EPSILON = 0.09
"""Typical acceptance: a candidate more probable than this is always accepted (ε of Medusa, section 2.3.1)."""
TYPICAL_DELTA = 0.3
"""Typical acceptance: scale of the entropy-dependent threshold (δ of Medusa, section 2.3.1)."""


class Accepted(NamedTuple):
    """The outcome of a step.

    Attributes:
        nodes: The root, node 0, and the accepted candidates, ascending.
        tokens: Tokens emitted: the accepted candidates', then the bonus token.
    """

    nodes: list[int]
    tokens: list[int]


def verify_exact(children: Sequence[Sequence[int]], tokens: Sequence[int], choose: Callable[[int], int]) -> Accepted:
    """Follow the model's own choices down the tree; the first that no candidate holds is the bonus token.

    Where several candidates behind the same tokens hold the choice, all are followed.

    Args:
        children: Each node's children.
        choose: Node → the token that plain decoding picks after it.
    """
    paths, emitted = [[0]], list[int]()
    while True:
        token = choose(paths[0][-1])
        emitted.append(token)
        longer = [[*path, child] for path in paths for child in children[path[-1]] if tokens[child] == token]
        if not longer:
            return Accepted(paths[0], emitted)
        paths = longer


def verify_greedy(children: Sequence[Sequence[int]], tokens: Sequence[int], top_ids: Ids) -> Accepted:
    """`verify_exact` for greedy decoding.

    Args:
        top_ids: Best ids of the nodes' rows, [nodes, K].
    """
    best: list[int] = top_ids[:, 0].tolist()
    return verify_exact(children, tokens, best.__getitem__)


def verify_typical(
    children: Sequence[Sequence[int]],
    tokens: Sequence[int],
    distribution: Callable[[int], Distribution],
    draw: Callable[[Distribution, int], int],
) -> Accepted:
    """Accept candidates that are probable enough: p > min(ε, δ·exp(-entropy)).

    This is typical acceptance of Medusa (arXiv 2401.10774, section 2.3.1); it does not keep plain decoding's
    distribution. Of the accepted paths the longest wins, ties by the product of p. The bonus token is drawn as without
    drafting.

    Args:
        children: Each node's children.
        distribution: Node → its processed distribution.
        draw: (distribution, depth) → the token drawn after a node of that depth.
    """
    best_path, best_log_p, best_distribution = [0], 0.0, distribution(0)
    todo = [(best_path, best_log_p, best_distribution)]
    while todo:
        path, log_p, here = todo.pop()
        if (len(path), log_p) > (len(best_path), best_log_p):
            best_path, best_log_p, best_distribution = path, log_p, here
        threshold = math.log(min(TYPICAL_EPSILON, TYPICAL_DELTA * math.exp(-here.entropy())))
        todo += [
            ([*path, child], log_p + child_log_p, distribution(child))
            for child in children[path[-1]]
            if (child_log_p := here.log_probability(tokens[child])) > threshold
        ]
    bonus = draw(best_distribution, len(best_path) - 1)
    return Accepted(best_path, [*(tokens[node] for node in best_path[1:]), bonus])
