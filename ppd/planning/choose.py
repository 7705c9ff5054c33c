"""Choosing a tree for known chances and times, and the speed-up over plain decoding that it then predicts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ppd.measures import Floats, LatencyCurve, Marginals
from ppd.planning.chain import chain_from_tree
from ppd.planning.search import SearchResult, search_fastest_tree, search_tree
from ppd.tree import Tree

_LEAST_GAIN = 1e-3
_MOST_FORCED_ROWS = 8


def choose_tree(marginals: Marginals, curve: LatencyCurve, *, by_heads: bool = False) -> SearchResult:
    """The fastest tree; where that is plain decoding, the best that drafts, so that drafting can be forced.

    Args:
        by_heads: Whether guess heads guess, and not prompt tokens.
    """
    p = marginals.probabilities
    fastest = search_fastest_tree(p, curve.curve(), by_heads=by_heads)
    if fastest.acceptance_length > 1 + _LEAST_GAIN and fastest.tree.drafts:
        return fastest
    sizes = range(2, min(_MOST_FORCED_ROWS, curve.sizes[-1]) + 1)
    prompts = 0 if by_heads else 1
    drafting = [search_tree(p, n, root_prompts=prompts, by_heads=by_heads) for n in sizes]
    return max(drafting, key=lambda found: found.acceptance_length / float(curve.at(max(found.num_rows.values()))))


def predicted_speedup(tree: Tree, marginals: Marginals, curve: LatencyCurve) -> float:
    """τ·L(1) / mean L of the steps that decoding with a tree takes."""
    chain = chain_from_tree(tree, marginals.probabilities)
    return float(chain.acceptance_length * curve.at(1) / chain.mean(curve.at(_rows_by_state(tree))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What the best tree of each size predicts, and the tree that was chosen.

    Attributes:
        sizes: N, int.
        acceptance_lengths: τ of the best tree of at most N rows, float64 [sizes].
        speedups: τ·L(1)/L(N) of that tree, float64 [sizes].
        chosen_rows: Mean rows of a step with the chosen tree.
        chosen_speedup: `predicted_speedup` of the chosen tree.
    """

    sizes: Sequence[int]
    acceptance_lengths: Floats
    speedups: Floats
    chosen_rows: float
    chosen_speedup: float


def outlook(marginals: Marginals, curve: LatencyCurve, tree: Tree, sizes: Sequence[int]) -> Outlook:
    """Search the best tree of each size that the curve reaches."""
    sizes = [n for n in sizes if n <= curve.sizes[-1]]
    lengths = np.array(
        [search_tree(marginals.probabilities, n, by_heads=tree.by_heads).acceptance_length for n in sizes]
    )
    chain = chain_from_tree(tree, marginals.probabilities)
    return Outlook(
        sizes=sizes,
        acceptance_lengths=lengths,
        speedups=lengths * curve.at(1) / curve.at(sizes),
        chosen_rows=chain.mean(_rows_by_state(tree)),
        chosen_speedup=predicted_speedup(tree, marginals, curve),
    )


def _rows_by_state(tree: Tree) -> Floats:
    return np.array([rows.num_rows for _, rows in sorted(tree.rows.items())], np.float64)
