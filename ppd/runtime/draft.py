"""Draft: fill a state's rows with the root and the guesses of the last accepted node's prompt rows."""

from dataclasses import dataclass

import numpy as np

from ppd.runtime.engines.base import Ids
from ppd.signature import causal_state
from ppd.tree import Node, Rows, Tree, order_rows


@dataclass(frozen=True, slots=True)
class Plan:
    """A state made ready for drafting: everything about its rows that does not change from step to step.

    Attributes:
        state: What the graph is told.
        rows: The rows.
        input_ids: int64 [N]; prompt rows hold their ids, the nodes are filled in by each step.
        head_rows: int64 [N]; every row goes through the LM head.
        candidates: int64 [candidates], the candidates' part of `input_ids`.
        guess_index: int64 [candidates], place of each candidate's guess in the flattened guesses [s, K].
    """

    state: int
    rows: Rows
    input_ids: Ids
    head_rows: Ids
    candidates: Ids
    guess_index: Ids

    def fill(self, root: int, guesses: Ids) -> list[int]:
        """Fill `input_ids`.

        Args:
            root: The token already decided.
            guesses: int64 [s, K], for each distance the best ids of the prompt row that guessed it.

        Returns:
            The nodes' tokens, root first.
        """
        self.input_ids[0] = root
        if not len(self.candidates):
            return [root]
        # "clip", because "raise" would copy through a buffer; the indices are in range.
        guesses.reshape(-1).take(self.guess_index, out=self.candidates, mode="clip")
        return [root, *self.candidates.tolist()]


def plans_from_tree(tree: Tree, vocab_size: int, num_top_ids: int) -> list[Plan]:
    """One plan per state 0..m."""
    return [_plan(state, rows, vocab_size, num_top_ids) for state, rows in sorted(tree.rows.items())]


def plain_plan(num_prompt_tokens: int, vocab_size: int, num_top_ids: int) -> Plan:
    """Plain decoding: the root alone, in the causal state."""
    return _plan(causal_state(num_prompt_tokens), order_rows((Node((), 0),)), vocab_size, num_top_ids)


def _plan(state: int, rows: Rows, vocab_size: int, num_top_ids: int) -> Plan:
    index = [(len(node.path) - 1) * num_top_ids + node.path[-1] for node in rows.nodes[1:]]
    input_ids = rows.input_ids(vocab_size)
    candidates = input_ids[1 : len(rows.nodes)]
    return Plan(state, rows, input_ids, np.arange(rows.num_rows), candidates, np.array(index, np.int64))
