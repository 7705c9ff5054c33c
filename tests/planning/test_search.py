"""The search: published figures, brute force, single moves, and a simulation of decoding."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ppd.errors import ArgumentError, TreeError
from ppd.planning.chain import chain_from_tree
from ppd.planning.search import search_fastest_tree, search_tree
from ppd.tree import Node, Tree

PUBLISHED: dict[str, Any] = json.loads(
    (Path(__file__).parent.parent / "fixtures" / "published_acceptance.json").read_text("utf-8")
)
MOBILELLAMA = PUBLISHED["mobilellama-1.4b-chat"]["marginals"]


@pytest.mark.parametrize(
    ("num_rows", "expected"), [(6, 1.495), (8, 1.570), (12, 1.652), (16, 1.710), (24, 1.798), (32, 1.856), (48, 1.935)]
)
def test_mobilellama_reaches_the_known_optimum(num_rows: int, expected: float) -> None:
    assert search_tree(MOBILELLAMA, num_rows).acceptance_length >= expected - 5e-4


@pytest.mark.parametrize("model", PUBLISHED)
def test_no_published_tree_is_better_than_the_one_found_at_its_size(model: str) -> None:
    for published in PUBLISHED[model]["published_trees"]:
        if published["file_budget"] > 150:
            continue  # the larger ones are the slow test's
        _compare_with_published(model, published)


@pytest.mark.slow
@pytest.mark.parametrize("model", PUBLISHED)
def test_no_large_published_tree_is_better(model: str) -> None:
    for published in PUBLISHED[model]["published_trees"]:
        if published["file_budget"] > 150 and max(published["rows_per_state"]) <= 512:
            _compare_with_published(model, published)


def _compare_with_published(model: str, published: dict[str, Any]) -> None:
    size = max(published["rows_per_state"])
    found = search_tree(PUBLISHED[model]["marginals"], size, root_prompts=3)

    print(f"{model} N = {size}: published {published['tau']}, found {found.acceptance_length:.6f}")
    assert found.acceptance_length >= published["tau"] - 5e-5
    assert max(found.num_rows.values()) <= size
    assert all(tree[0].prompts == 3 for tree in (rows.nodes for s, rows in found.tree.rows.items()))


@st.composite
def marginals(draw: st.DrawFn, max_m: int = 3, max_ranks: int = 4, by_parent: bool = False) -> np.ndarray:
    m, ranks = draw(st.integers(1, max_m)), draw(st.integers(1, max_ranks))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (m, ranks, ranks + 1) if by_parent else (m, ranks + 1)
    p = rng.dirichlet(np.full(ranks + 1, draw(st.sampled_from([0.2, 1.0, 3.0]))), size=shape[:-1])
    return np.array(-np.sort(-p[..., :-1], axis=-1) if draw(st.booleans()) else p[..., :-1])


@settings(max_examples=30, deadline=None)
@given(marginals(), st.integers(1, 20))
def test_more_rows_are_never_worse(p: np.ndarray, num_rows: int) -> None:
    fewer, more = (search_tree(p, n).acceptance_length for n in (num_rows, num_rows + 1))

    assert more >= fewer - 1e-6
    assert fewer >= 1 - 1e-9


def _moves(nodes: tuple[Node, ...], num_rows: int, state: int, m: int, ranks: int) -> list[tuple[Node, ...]]:
    """Every tree one node or one prompt row away, moved, added or taken away, within the rows."""
    paths = {node.path for node in nodes}
    leaves = [n for n in nodes if n.path and not any(q[:-1] == n.path for q in paths if q)]
    smaller: list[tuple[Node, ...]] = [nodes]
    smaller += [tuple(n for n in nodes if n != leaf) for leaf in leaves]
    smaller += [_with_prompts(nodes, i, -1) for i, n in enumerate(nodes) if n.prompts]
    found = []
    for tree in smaller:
        have = {n.path for n in tree}
        new = [(*n.path, r) for n in tree if len(n.path) < state for r in range(ranks) if (*n.path, r) not in have]
        grown = [(*tree, Node(path, k)) for path in new for k in range(m + 1)]
        grown += [_with_prompts(tree, i, 1) for i, n in enumerate(tree) if n.prompts < m]
        found += [tree, *grown]
    return [t for t in found if len(t) + sum(n.prompts for n in t) <= num_rows]


def _with_prompts(nodes: tuple[Node, ...], index: int, change: int) -> tuple[Node, ...]:
    changed = Node(nodes[index].path, nodes[index].prompts + change)
    return (*nodes[:index], changed, *nodes[index + 1 :])


@settings(max_examples=15, deadline=None)
@given(marginals(max_m=3, max_ranks=3, by_parent=False), st.integers(2, 9))
def test_no_single_move_improves_the_tree(p: np.ndarray, num_rows: int) -> None:
    _no_move_improves(p, num_rows)


@settings(max_examples=8, deadline=None)
@given(marginals(max_m=2, max_ranks=3, by_parent=True), st.integers(2, 8))
def test_no_single_move_improves_the_tree_where_the_parent_matters(p: np.ndarray, num_rows: int) -> None:
    _no_move_improves(p, num_rows)


def _no_move_improves(p: np.ndarray, num_rows: int) -> None:
    m, best = len(p), search_tree(p, num_rows)
    for state in best.tree.states:
        for nodes in _moves(best.tree.states[state], num_rows, state, m, p.shape[-1]):
            try:
                moved = Tree(m, dict(best.tree.states) | {state: nodes})
            except TreeError:
                continue  # it leads to a state that the tree leaves out
            assert chain_from_tree(moved, p).acceptance_length <= best.acceptance_length + 1e-6


def _all_trees(state: int, num_rows: int, m: int, ranks: int) -> list[tuple[Node, ...]]:
    paths = [path for depth in range(1, state + 1) for path in itertools.product(range(ranks), repeat=depth)]
    found = []
    for count in range(num_rows):
        for chosen in itertools.combinations(paths, count):
            if all(len(path) == 1 or path[:-1] in chosen for path in chosen):
                found += [
                    tuple(map(Node, ((), *chosen), prompts))
                    for prompts in itertools.product(range(m + 1), repeat=count + 1)
                    if 1 + count + sum(prompts) <= num_rows
                ]
    return found


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("by_parent", [False, True])
def test_brute_force_finds_nothing_better(seed: int, by_parent: bool) -> None:
    m, ranks, num_rows = 2, 2, 4
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(ranks + 1), size=(m, ranks) if by_parent else m)[..., :-1]
    cost = np.cumsum(rng.uniform(0.05, 0.4, num_rows)) + 1
    by_rows, by_time = 1.0, 1 / cost[0]
    for trees in itertools.product(*(_all_trees(state, num_rows, m, ranks) for state in range(m + 1))):
        tree = Tree(m, dict(enumerate(trees)))
        chain = chain_from_tree(tree, p)
        times = np.array([cost[tree.rows[s].num_rows - 1] for s in range(m + 1)])
        by_rows = max(by_rows, chain.acceptance_length)
        by_time = max(by_time, chain.acceptance_length / chain.mean(times))
    found, fastest = search_tree(p, num_rows), search_fastest_tree(p, cost)
    speed = fastest.acceptance_length / fastest.mean_latency_ms

    print(f"gap of τ {by_rows - found.acceptance_length:.2e}, of τ/L {by_time - speed:.2e}")
    assert found.acceptance_length == pytest.approx(by_rows, rel=1e-6)
    assert speed == pytest.approx(by_time, rel=1e-6)


@pytest.mark.parametrize("by_parent", [False, True])
def test_a_simulation_of_decoding_emits_as_many_tokens(by_parent: bool) -> None:
    rng = np.random.default_rng(7)
    p = rng.dirichlet(np.ones(4), size=(3, 3) if by_parent else 3)[..., :-1]
    result, steps, emitted, state = search_tree(p, 14), 40_000, 0, 3
    for _ in range(steps):
        rows = result.tree.rows[state]
        paths, row = {node.path: i for i, node in enumerate(rows.nodes)}, 0
        while True:
            path = rows.nodes[row].path
            if len(path) == state:
                break
            chances = p[len(path)] if not by_parent else p[len(path), path[-1] if path else 0]
            rank = int(np.searchsorted(np.cumsum(chances), rng.random()))
            if (*path, rank) not in paths:
                break
            row = paths[(*path, rank)]
        emitted += len(rows.nodes[row].path) + 1
        state = rows.nodes[row].prompts

    print(f"simulated {emitted / steps:.4f}, computed {result.acceptance_length:.4f}")
    assert emitted / steps == pytest.approx(result.acceptance_length, abs=0.02)


def test_where_rows_cost_too_much_plain_decoding_is_fastest() -> None:
    result = search_fastest_tree(MOBILELLAMA, np.arange(1.0, 17.0))

    assert result.acceptance_length == pytest.approx(1, abs=1e-5)
    assert result.mean_latency_ms == pytest.approx(1, abs=1e-5)


def test_where_rows_cost_nothing_the_fastest_tree_is_the_longest() -> None:
    free, best = search_fastest_tree(MOBILELLAMA, np.ones(24)), search_tree(MOBILELLAMA, 24)

    assert free.acceptance_length == pytest.approx(best.acceptance_length)


def test_noise_in_a_flat_curve_does_not_hide_the_longest_tree() -> None:
    noise = 1 + 0.03 * np.sin(np.arange(64.0) * 7)  # one row is not the fastest step

    found = search_fastest_tree(MOBILELLAMA, noise)

    assert found.acceptance_length > 0.95 * search_tree(MOBILELLAMA, 64).acceptance_length


@example(np.array([[0.4318, 0.0, 0.5289]]), [1.0, 1.0, 1.25])  # two policies that are as good took turns here
@settings(max_examples=30, deadline=None)
@given(marginals(max_m=2), st.lists(st.floats(0.5, 2.0), min_size=3, max_size=12))
def test_no_tree_of_one_size_is_faster_whatever_the_times(p: np.ndarray, latency: list[float]) -> None:
    found = search_fastest_tree(p, latency)

    speed = found.acceptance_length / found.mean_latency_ms
    for num_rows in range(1, len(latency) + 1):
        slowest = search_tree(p, num_rows).acceptance_length / min(latency[num_rows - 1 :])
        assert speed >= slowest * (1 - 1e-5)


@pytest.mark.parametrize("wrong", [[[0.9, 0.2]], [[-0.1]], [[float("nan")]], [], [[0.1], [0.1, 0.2]], [["x"]], 0.3])
def test_marginals_that_are_no_chances_are_refused(wrong: Any) -> None:
    with pytest.raises(ArgumentError, match="marginals"):
        search_tree(wrong, 4)


@pytest.mark.parametrize(("num_rows", "root_prompts"), [(0, None), (513, None), (3, 3), (8, 4), (8, -1)])
def test_sizes_that_no_tree_has_are_refused(num_rows: int, root_prompts: int | None) -> None:
    with pytest.raises(ArgumentError):
        search_tree(MOBILELLAMA, num_rows, root_prompts=root_prompts)


@pytest.mark.parametrize("latency", [[], [0.0], [1.0, float("inf")], [[1.0]]])
def test_times_that_are_none_are_refused(latency: Any) -> None:
    with pytest.raises(ArgumentError, match="latency_ms"):
        search_fastest_tree(MOBILELLAMA, latency)


@settings(max_examples=25, deadline=None)
@given(marginals(max_m=3, max_ranks=4), st.integers(1, 12))
def test_with_guess_heads_the_likeliest_paths_are_taken(p: np.ndarray, num_rows: int) -> None:
    m, ranks = p.shape
    p = -np.sort(-p, axis=-1)  # then a path is never likelier than its parent, and the likeliest form a tree
    paths = (path for depth in range(m + 1) for path in itertools.product(range(ranks), repeat=depth))
    chances = [float(np.prod([p[d, r] for d, r in enumerate(path)])) for path in paths]

    found = search_tree(p, num_rows, by_heads=True)

    assert found.acceptance_length == pytest.approx(sum(sorted(chances, reverse=True)[:num_rows]), abs=1e-6)
    assert found.tree.by_heads
    assert list(found.num_rows) == [m]
    assert found.num_rows[m] <= num_rows


@pytest.mark.parametrize("cost", [0.05, 0.5, 5.0])
def test_with_guess_heads_a_row_is_taken_where_it_pays(cost: float) -> None:
    p = [[0.6, 0.2, 0.05], [0.4, 0.1, 0.05]]
    latency = 1 + cost * np.arange(16)

    found = search_fastest_tree(p, latency, by_heads=True)

    best = max(search_tree(p, n, by_heads=True).acceptance_length / latency[n - 1] for n in range(1, 17))
    assert found.acceptance_length / found.mean_latency_ms == pytest.approx(best, abs=1e-6)


def test_with_guess_heads_no_prompt_rows_can_be_asked_for() -> None:
    with pytest.raises(ArgumentError, match="with 1 guess heads and 4 rows expected 0 to 0"):
        search_tree([[0.5]], 4, root_prompts=1, by_heads=True)
