import math
from collections.abc import Callable, Mapping

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ppd.runtime.sampling import Distribution
from ppd.runtime.verify import TYPICAL_DELTA, TYPICAL_EPSILON, verify_exact, verify_typical
from ppd.tree import Tree
from tests.strategies import trees

#      0
#    1   4        tokens 10; 11 12; ...
#   2 3
CHILDREN = [(1, 4), (2, 3), (), (), ()]
TOKENS = [10, 11, 12, 13, 14]


def test_of_candidates_with_the_same_token_the_one_that_leads_on_is_taken() -> None:
    children, tokens = ((1, 2, 3), (), (4,), (5,), (), (6,), ()), [0, 11, 11, 11, 12, 12, 13]
    choices = {0: 11, 1: 12, 2: 12, 3: 12, 4: 13, 5: 13, 6: 99}

    accepted = verify_exact(children, tokens, choices.__getitem__)

    assert (accepted.nodes, accepted.tokens) == ([0, 3, 5, 6], [11, 12, 13, 99])


def test_first_miss_is_the_bonus_token() -> None:
    accepted = verify_exact(CHILDREN, TOKENS, lambda row: {0: 11, 1: 99}[row])
    assert accepted.nodes == [0, 1]
    assert accepted.tokens == [11, 99]


def test_nothing_accepted_still_emits_one_token() -> None:
    accepted = verify_exact(CHILDREN, TOKENS, lambda _: 0)
    assert accepted.nodes == [0]
    assert accepted.tokens == [0]


def test_whole_path_and_bonus_behind_a_leaf() -> None:
    accepted = verify_exact(CHILDREN, TOKENS, lambda row: {0: 11, 1: 13, 3: 22}[row])
    assert accepted.nodes == [0, 1, 3]
    assert accepted.tokens == [11, 13, 22]


@given(tree=trees(), data=st.data())
def test_rows_ascend_and_tokens_follow_the_choices(tree: Tree, data: st.DataObject) -> None:
    rows = tree.rows[tree.num_prompt_tokens]
    tokens = data.draw(st.lists(st.integers(0, 3), min_size=len(rows.nodes), max_size=len(rows.nodes)))
    choices = data.draw(st.lists(st.integers(0, 3), min_size=len(rows.nodes), max_size=len(rows.nodes)))
    texts: list[tuple[int, ...]] = [()]
    for node, parent in list(enumerate(rows.parents))[1:]:
        texts.append((*texts[parent], tokens[node]))
    by_text: dict[tuple[int, ...], int] = {}  # behind equal tokens the model answers the same

    def choose(node: int) -> int:
        return by_text.setdefault(texts[node], choices[node])

    accepted = verify_exact(rows.children, tokens, choose)
    assert accepted.nodes == sorted(accepted.nodes)
    assert accepted.tokens == [choose(node) for node in accepted.nodes]
    for parent, row in zip(accepted.nodes, accepted.nodes[1:], strict=False):
        assert rows.parents[row] == parent
        assert tokens[row] == choose(parent)
    assert not any(tokens[child] == accepted.tokens[-1] for child in rows.children[accepted.nodes[-1]])


def distribution(probabilities: dict[int, float]) -> Distribution:
    ids = np.array(sorted(probabilities))
    return Distribution(ids, np.log([probabilities[i] for i in ids.tolist()]))


def test_typical_takes_the_longest_path() -> None:
    # token 14 is the more probable first token, but only 11 leads further
    rows = {0: {11: 0.2, 14: 0.8}, 1: {12: 0.1, 13: 0.9}, 2: {1: 1.0}, 3: {1: 1.0}, 4: {1: 1.0}}
    accepted = verify_typical(CHILDREN, TOKENS, lambda row: distribution(rows[row]), lambda d, _: int(d.ids[0]))
    assert accepted.nodes == [0, 1, 3]
    assert accepted.tokens == [11, 13, 1]


def test_typical_breaks_ties_by_probability() -> None:
    flat = [(1, 2), (), ()]
    rows = {0: {5: 0.4, 6: 0.6}, 1: {1: 1.0}, 2: {2: 1.0}}
    accepted = verify_typical(flat, [0, 5, 6], lambda row: distribution(rows[row]), lambda d, _: int(d.ids[0]))
    assert accepted.nodes == [0, 2]
    assert accepted.tokens == [6, 2]


def rows_of(rows: Mapping[int, dict[int, float]]) -> Callable[[int], Distribution]:
    return lambda row: distribution(rows[row])


def test_typical_threshold() -> None:
    chain = [(1,), ()]
    for p, expected in ((0.089, [0]), (0.091, [0, 1])):  # low entropy: ε decides
        rows = {0: {5: p, 6: 1 - p}, 1: {1: 1.0}}
        assert TYPICAL_DELTA * math.exp(-distribution(rows[0]).entropy()) > TYPICAL_EPSILON
        assert verify_typical(chain, [0, 5], rows_of(rows), lambda *_: 0).nodes == expected
    n = 40  # high entropy: δ·exp(-H) = 0.3 / 40 decides
    for p, expected in ((0.006, [0]), (0.009, [0, 1])):
        rows = {0: {5: p} | {100 + i: (1 - p) / n for i in range(n)}, 1: {1: 1.0}}
        threshold = TYPICAL_DELTA * math.exp(-distribution(rows[0]).entropy())
        assert (p > threshold) == (expected == [0, 1])
        assert verify_typical(chain, [0, 5], rows_of(rows), lambda *_: 0).nodes == expected


def test_typical_refuses_ids_that_were_filtered_out() -> None:
    accepted = verify_typical([(1,), ()], [0, 7], lambda _: distribution({5: 1.0}), lambda d, _: int(d.ids[0]))
    assert accepted.nodes == [0]
    assert accepted.tokens == [5]
