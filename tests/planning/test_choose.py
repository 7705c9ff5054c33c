"""Choosing a tree, and what it promises, by hand."""

import numpy as np
import pytest

from ppd.measures import RELATIVE, LatencyCurve, Marginals
from ppd.planning.choose import choose_tree, outlook, predicted_speedup
from ppd.planning.search import search_fastest_tree, search_tree
from ppd.tree import Node, Tree

MARGINALS = Marginals(probabilities=[[0.5, 0.2], [0.3, 0.1]], source="made up")
CURVE = LatencyCurve(
    sizes=[1, 2, 3, 4, 5, 6, 7, 8], values=[1, 1.06, 1.12, 1.18, 1.23, 1.28, 1.44, 1.6], unit=RELATIVE, source="made up"
)
ROOT = Node((), 2)
TREE = Tree(
    2,
    {
        0: (ROOT,),
        1: (ROOT, Node((0,), 2)),
        2: (ROOT, Node((0,), 1), Node((1,), 0), Node((0, 0), 0)),
    },
)
"""The example of docs/trees.md: 10/17 of the steps in state 2 with 7 rows, 3.5/17 in states 1 and 0 with 6 and 3."""


def test_the_speed_up_is_tokens_against_the_mean_time_of_the_states() -> None:
    tokens = (10 * 1.85 + 3.5 * 1.5 + 3.5 * 1) / 17
    time = (10 * 1.44 + 3.5 * 1.28 + 3.5 * 1.12) / 17

    assert predicted_speedup(TREE, MARGINALS, CURVE) == pytest.approx(tokens / time)
    slow_root = LatencyCurve(sizes=CURVE.sizes, values=[2.0, *CURVE.values[1:]], unit=RELATIVE, source="made up")
    assert predicted_speedup(TREE, MARGINALS, slow_root) == pytest.approx(2 * tokens / time)


def test_the_fastest_tree_is_chosen() -> None:
    found = choose_tree(MARGINALS, CURVE)

    assert found.tree == search_fastest_tree(MARGINALS.probabilities, CURVE.values).tree
    assert predicted_speedup(found.tree, MARGINALS, CURVE) == pytest.approx(1.328, abs=5e-4)


def test_where_plain_decoding_is_fastest_a_tree_that_drafts_is_still_chosen() -> None:
    poor = Marginals(probabilities=[[0.1], [0.05], [0.01]], source="made up")
    steep = LatencyCurve(sizes=[1, 8], values=[1.0, 8.0], unit=RELATIVE, source="made up")

    found = choose_tree(poor, steep)

    assert found.tree.drafts
    assert predicted_speedup(found.tree, poor, steep) < 1


def test_the_outlook_has_the_best_tree_of_each_size_that_the_curve_reaches() -> None:
    seen = outlook(MARGINALS, CURVE, TREE, (1, 4, 8, 16))

    assert seen.sizes == [1, 4, 8]
    best = [search_tree(MARGINALS.probabilities, n).acceptance_length for n in (1, 4, 8)]
    assert seen.acceptance_lengths == pytest.approx(best)
    assert seen.speedups == pytest.approx(np.array(best) / [1, 1.18, 1.6])
    assert seen.chosen_rows == pytest.approx((10 * 7 + 3.5 * 6 + 3.5 * 3) / 17)
    assert seen.chosen_speedup == predicted_speedup(TREE, MARGINALS, CURVE)
