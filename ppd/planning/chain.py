"""What a tree is worth: the Markov chain of states that decoding with it follows, and the tokens per step.

From a state's tree, with p the chance of a guess and P the product of p along a path: f = Σ P over candidates is the
expected number of accepted candidates, e(v) = P(v) - Σ P(children of v) the chance that v is the last accepted node,
and the next state is the number of prompt rows of that node (arXiv 2405.18628, section 3.2).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ppd.measures import Floats, chances_from
from ppd.tree import Tree

_RESTART = 1e-12
"""Chance of starting again in state m, so that the stationary law is the one that prefill leads to."""


@dataclass(frozen=True)
class Chain:
    """The decoding chain of one tree.

    Attributes:
        tokens: Tokens emitted per step in each state, float64 [m+1].
        transitions: Chance of the next state, float64 [m+1, m+1].
        shares: Share of the steps spent in each state, float64 [m+1].
    """

    tokens: Floats
    transitions: Floats
    shares: Floats

    @property
    def acceptance_length(self) -> float:
        """τ: tokens emitted per step."""
        return float(self.shares @ self.tokens)

    def mean(self, per_state: Floats) -> float:
        """The mean over steps of something known per state, such as milliseconds: float64 [m+1]."""
        return float(self.shares @ per_state)


def chain_from_tree(tree: Tree, marginals: npt.ArrayLike) -> Chain:
    """The chain that decoding with a tree follows.

    Args:
        marginals: As in `chances_from`; ranks and distances past them have chance 0.

    Raises:
        ArgumentError: The marginals are not probabilities.
    """
    p, m = chances_from(marginals), tree.num_prompt_tokens
    tokens, transitions = np.ones(m + 1), np.zeros((m + 1, m + 1))
    for state, rows in tree.rows.items():
        reach = np.ones(len(rows.nodes))  # P of each node
        last = np.ones(len(rows.nodes))  # e of each node
        for row, parent in enumerate(rows.parents[1:], start=1):
            reach[row] = reach[parent] * _chance(p, rows.nodes[row].path)
            last[row] = reach[row]
            last[parent] -= reach[row]
        tokens[state] = reach.sum()
        for node, chance in zip(rows.nodes, last, strict=True):
            transitions[state, tree.leads_to(node)] += chance
    return Chain(tokens, transitions, stationary(transitions))


def stationary(transitions: Floats) -> Floats:
    """The stationary distribution, float64 [m+1], of the chain that starts in the last state."""
    size = len(transitions)
    start = np.eye(size)[-1]
    law = np.linalg.solve(np.eye(size) - (1 - _RESTART) * transitions.T, _RESTART * start)
    return np.clip(law, 0, None) / np.clip(law, 0, None).sum()


def _chance(p: Floats, path: tuple[int, ...]) -> float:
    depth, rank = len(path) - 1, path[-1]
    parent = path[-2] if depth and p.shape[1] > 1 else 0
    return float(p[depth, parent, rank]) if depth < len(p) and max(rank, parent) < p.shape[2] else 0.0
