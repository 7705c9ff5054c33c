"""What a tree is worth: the Markov chain of states that decoding with it follows, and the tokens per step.

From a state's tree, with p the chance of a guess and P the product of p along a path: f = Σ P over candidates is the
expected number of accepted candidates, e(v) = P(v) - Σ P(children of v) the chance that v is the last accepted node,
and the next state is the number of prompt rows of that node (arXiv 2405.18628, section 3.2).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ppd.errors import ArgumentError
from ppd.tree import Tree

Floats = npt.NDArray[np.float64]
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


def check_marginals(marginals: npt.ArrayLike) -> Floats:
    """Bring marginals into one form.

    Args:
        marginals: p[d][r] [m, R], the chance that guess r for distance d+1 is the token that comes; or p[d][q][r]
            [m, R, R], given that the parent candidate has rank q (q = 0 for the root's guesses).

    Returns:
        float64 [m, Q, R], with Q = 1 where the parent's rank makes no difference.

    Raises:
        ArgumentError: They are no chances, or a row sums to more than 1.
    """
    try:
        p = np.array(marginals, np.float64)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"the marginals are not numbers in rows of equal length ({error})") from error
    if p.ndim == 2:
        p = p[:, None, :]
    if p.ndim != 3 or 0 in p.shape or p.shape[1] not in (1, p.shape[2]):
        raise ArgumentError(f"the marginals have shape {np.shape(marginals)}; expected [m, ranks] or [m, ranks, ranks]")
    if not (np.isfinite(p).all() and p.min() >= 0 and p.sum(axis=2).max() <= 1 + 1e-6):
        raise ArgumentError("the marginals are no chances; expected 0 to 1, with at most 1 in sum per distance")
    return p


def chain_from_tree(tree: Tree, marginals: npt.ArrayLike) -> Chain:
    """The chain that decoding with a tree follows.

    Args:
        tree: The tree.
        marginals: As in `check_marginals`; ranks and distances past them have chance 0.

    Raises:
        ArgumentError: The marginals are no chances.
    """
    p, m = check_marginals(marginals), tree.num_prompt_tokens
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
            transitions[state, node.prompts] += chance
    return Chain(tokens, transitions, stationary(transitions))


def stationary(transitions: Floats) -> Floats:
    """The stationary law, float64 [m+1], of the chain that starts in the last state."""
    size = len(transitions)
    start = np.eye(size)[-1]
    law = np.linalg.solve(np.eye(size) - (1 - _RESTART) * transitions.T, _RESTART * start)
    return np.clip(law, 0, None) / np.clip(law, 0, None).sum()


def _chance(p: Floats, path: tuple[int, ...]) -> float:
    depth, rank = len(path) - 1, path[-1]
    parent = path[-2] if depth and p.shape[1] > 1 else 0
    return float(p[depth, parent, rank]) if depth < len(p) and max(rank, parent) < p.shape[2] else 0.0
