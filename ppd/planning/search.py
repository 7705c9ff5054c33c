"""The best tree for given marginals: most tokens per step for a number of rows, or most tokens per millisecond.

Decoding is a semi-Markov decision process: in each state a tree is chosen, it emits 1 + f tokens, takes the time of its
rows, and leads to the states that its prompt rows name. Policy iteration solves it: the values h of the states and the
gain g (tokens per unit of time) of the present trees follow from linear equations, and then every state takes the tree
that maximises

    1 + f(T) + Σ e(v)·h(k(v)) - g·L(rows).

That inner problem is solved exactly. A candidate's subtree enters only multiplied by its path's chance, so the best
value V_d(n) of a subtree of n rows at depth d, per unit of that chance, needs only the V_{d+1} of its children:

    V_d(n) = max over k of h(k) + Σ over chosen children r of p[d][r]·(1 + V_{d+1}(n_r) - h(k)),  n = 1 + k + Σ n_r,

a knapsack over ranks. No exchange of nodes or prompt rows can improve on it. With L = 1 for every size, g is τ. Where
guess heads guess, k is 0 for every node, and its h that of state m, the only one.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ppd.arguments import whole
from ppd.errors import ArgumentError
from ppd.measures import Floats, chances_from
from ppd.planning.chain import Chain, chain_from_tree
from ppd.signature import MAX_ROWS
from ppd.tree import Node, NodePath, Tree

_RESTART = 1e-7
"""Chance of starting again in state m per step, in the equations for h: they have one solution for every policy."""
_MAX_ROUNDS = 100
_EQUAL = 1e-11
"""Values closer than this are equal; the smaller tree is then taken."""


@dataclass(frozen=True)
class SearchResult:
    """The best tree.

    Attributes:
        tree: Without its unreachable states.
        acceptance_length: τ, tokens per step that the marginals predict.
        num_rows: Rows of each reachable state.
        mean_latency_ms: Mean time of a step; 1 if no times were given.
    """

    tree: Tree
    acceptance_length: float
    chain: Chain
    num_rows: dict[int, int]
    mean_latency_ms: float
    rounds: int


@dataclass(frozen=True)
class _Choice:
    """The best subtrees at one depth below a parent of one rank: by n, values, prompt rows, and children's rows.

    Attributes:
        values: V(n), float64 [N+1]; V(0) is -inf.
        prompts: The best k, int [N+1].
        taken: Per k, rows given to rank r when n rows are left for ranks r.., int [m+1, R, N+1]; None without children.
        children: The choices one depth further, by rank (one for all where ranks make no difference).
    """

    values: Floats
    prompts: npt.NDArray[np.int64]
    taken: npt.NDArray[np.int64] | None
    children: tuple["_Choice", ...]


def search_tree(
    marginals: npt.ArrayLike, num_rows: int, *, root_prompts: int | None = None, by_heads: bool = False
) -> SearchResult:
    """The tree with most tokens per step among those of at most `num_rows` rows in every state.

    Args:
        marginals: p[d][r] [m, R] or p[d][q][r] [m, R, R], see `chances_from`.
        num_rows: N, prompt rows included.
        root_prompts: Prompt rows that every state's root must have; None to choose them, 0 included.
        by_heads: Whether guess heads guess, so that nodes need no prompt rows, and have none.

    Raises:
        ArgumentError: The marginals are not probabilities, or `num_rows` or `root_prompts` is out of range.
    """
    number = whole(num_rows)
    if number is None or not 1 <= number <= MAX_ROWS:
        raise ArgumentError(f"num_rows is {num_rows!r:.40}; expected a whole number from 1 to {MAX_ROWS}")
    return _search(chances_from(marginals), np.ones(number), root_prompts, by_heads=by_heads)


def search_fastest_tree(
    marginals: npt.ArrayLike, latency_ms: npt.ArrayLike, *, root_prompts: int | None = None, by_heads: bool = False
) -> SearchResult:
    """The tree with most tokens per millisecond; states may differ in size. Plain decoding is among the answers.

    Args:
        marginals: As for `search_tree`.
        latency_ms: Time of a step of 1, 2, … rows, float [N]; no tree has more than N rows. Where more rows take less
            time, that time counts for fewer rows too: a larger tree is never worse, and V(n) is of at most n rows.
        root_prompts: As for `search_tree`; so is `by_heads`.

    Raises:
        ArgumentError: As for `search_tree`, or a time is not above 0.
    """
    cost = np.array(latency_ms, np.float64)
    if cost.ndim != 1 or not 1 <= len(cost) <= MAX_ROWS or not (np.isfinite(cost).all() and cost.min() > 0):
        raise ArgumentError(f"latency_ms has shape {cost.shape}; expected 1 to {MAX_ROWS} times above 0")
    cost = np.minimum.accumulate(cost[::-1])[::-1]
    return _search(chances_from(marginals), cost, root_prompts, by_heads=by_heads)


def _search(p: Floats, cost: Floats, root_prompts: int | None, *, by_heads: bool) -> SearchResult:
    m, most = len(p), 0 if by_heads else min(len(p), len(cost) - 1)
    first = most if root_prompts is None else whole(root_prompts)
    if first is None or not 0 <= first <= most:
        raise ArgumentError(
            f"root_prompts is {root_prompts!r:.40}; with {m} {'guess heads' if by_heads else 'prompt tokens'} and "
            f"{len(cost)} rows expected 0 to {most}"
        )
    states = (m,) if by_heads else range(m + 1)
    policy: dict[int, tuple[Node, ...]] = {s: (Node((), first),) for s in states}
    gain, values = _evaluate(policy, p, cost, by_heads=by_heads)
    rounds, changed = 0, True
    while changed and rounds < _MAX_ROUNDS:
        rounds += 1
        leading_to = values[m:] if by_heads else values
        found = {s: _best_tree(s, leading_to, gain, p, cost, root_prompts) for s in states}
        # A state keeps its tree unless another is better, and not only as good: else two policies could take turns.
        least = 10 * _RESTART * max(1.0, float(np.abs(values).max()))
        better = {s: nodes for s, (nodes, value) in found.items() if value > values[s] + least}
        changed = bool(better)
        policy = policy | better
        gain, values = _evaluate(policy, p, cost, by_heads=by_heads)
    return _result(policy, p, cost, rounds, by_heads=by_heads)


def _evaluate(policy: dict[int, tuple[Node, ...]], p: Floats, cost: Floats, *, by_heads: bool) -> tuple[float, Floats]:
    """Gain g and values h [m+1] of a policy: h(s) + g·L(s) = tokens(s) + Σ Pr(s→k)·h(k), h(m) = 0."""
    m = len(p)
    tree = Tree(m, policy, by_heads)
    chain, times = chain_from_tree(tree, p), _times(tree, cost)
    equations = np.eye(m + 1) - (1 - _RESTART) * chain.transitions
    equations[:, m] = times  # h(m) is 0, so that its column is free for g
    solution = np.linalg.solve(equations, chain.tokens)
    return float(solution[m]), np.append(solution[:m], 0.0)


def _best_tree(
    state: int, values: Floats, gain: float, p: Floats, cost: Floats, root_prompts: int | None
) -> tuple[tuple[Node, ...], float]:
    """The nodes that maximise a state's value, and that value; of equals, those of the fewest rows.

    Args:
        values: h of the state that a node with k prompt rows leads to, for each k that is allowed, [m+1] or [1].
    """
    root = _choose(0, 0, state, values, p, len(cost), root_prompts)
    score = root.values[1:] - gain * cost
    best = score.max()
    rows = int(np.argmax(score >= best - _EQUAL * max(1.0, abs(best)))) + 1
    nodes: list[Node] = []
    _collect(root, rows, (), nodes)
    return tuple(nodes), float(1 + score[rows - 1])


def _choose(depth: int, rank: int, state: int, h: Floats, p: Floats, size: int, prompts: int | None = None) -> _Choice:
    """V_d for a node of this depth and rank, in the tree of a state; `prompts` forces its prompt rows."""
    m, ranks = len(h) - 1, p.shape[2]
    allowed = range(m + 1) if prompts is None else (prompts,)
    values, best_k = np.full(size + 1, -np.inf), np.zeros(size + 1, np.int64)
    taken: npt.NDArray[np.int64] | None = None
    children: tuple[_Choice, ...] = ()
    if depth < state:
        num_kinds = ranks if p.shape[1] > 1 and depth + 1 < state else 1
        children = tuple(_choose(depth + 1, r, state, h, p, size) for r in range(num_kinds))
        taken = np.zeros((m + 1, ranks, size + 1), np.int64)
    chances = p[depth, rank if p.shape[1] > 1 else 0] if depth < state else np.zeros(0)
    for k in allowed:
        room = size - k  # rows of the node itself and its children
        if room < 1:
            continue
        below = np.zeros(size + 1)
        if taken is not None:
            below = _share_rows(chances, float(h[k]), children, taken[k])
        total = h[k] + below[:room]  # at n = k + 1, …, size
        better = total > values[k + 1 :] + _EQUAL
        values[k + 1 :][better], best_k[k + 1 :][better] = total[better], k
    return _Choice(values, best_k, taken, children)


def _share_rows(chances: Floats, h: float, children: tuple[_Choice, ...], taken: npt.NDArray[np.int64]) -> Floats:
    """Most value of children within n rows, float64 [N+1]; fills `taken`. A child's value falls by its parent's h."""
    best = np.zeros(taken.shape[1])
    size = len(best)
    index = np.arange(size)[:, None] - np.arange(size)[None, :]  # rows left after a child of so many
    for rank in reversed(range(len(chances))):
        child = children[rank if len(children) > 1 else 0]
        gains = chances[rank] * (1 + child.values - h) if chances[rank] > 0 else np.full(size, -np.inf)
        gains[0] = 0.0  # the rank is left out
        sums = np.where(index >= 0, best[index] + gains[None, :], -np.inf)  # [rows, rows of the child]
        taken[rank] = sums.argmax(axis=1)
        best = sums[np.arange(size), taken[rank]]
    return best


def _collect(choice: _Choice, rows: int, path: NodePath, nodes: list[Node]) -> None:
    prompts = int(choice.prompts[rows])
    nodes.append(Node(path, prompts))
    left = rows - 1 - prompts
    if choice.taken is None:
        return
    for rank, by_rows in enumerate(choice.taken[prompts]):
        if given := int(by_rows[left]):
            _collect(choice.children[rank if len(choice.children) > 1 else 0], given, (*path, rank), nodes)
            left -= given


def _result(
    policy: dict[int, tuple[Node, ...]], p: Floats, cost: Floats, rounds: int, *, by_heads: bool
) -> SearchResult:
    whole = Tree(len(p), policy, by_heads)
    reached, todo = set(), {len(p)}
    while todo:
        reached |= todo
        todo = {whole.leads_to(node) for state in todo for node in policy[state]} - reached
    tree = dataclasses.replace(whole, states={state: policy[state] for state in sorted(reached)})
    chain = chain_from_tree(tree, p)
    num_rows = {state: tree.rows[state].num_rows for state in tree.states}
    return SearchResult(tree, chain.acceptance_length, chain, num_rows, chain.mean(_times(whole, cost)), rounds)


def _times(tree: Tree, cost: Floats) -> Floats:
    """The time of a step by state, float64 [m+1]."""
    return np.array([cost[rows.num_rows - 1] for _, rows in sorted(tree.rows.items())])
