"""Plans of a step: which rows it has and what each may see, made once per bundle."""

from dataclasses import dataclass

import numpy as np

from ppd.manifest import Manifest
from ppd.runtime.engines.base import Ids
from ppd.signature import causal_state
from ppd.tree import Node, Rows, Tree, order_rows


@dataclass(frozen=True, slots=True)
class StepPlan:
    """A step made ready: everything about its rows that does not change from step to step.

    Attributes:
        state: Which folded tree the rows follow, or the causal state.
        input_ids: int64 [N]; prompt rows hold their ids, each step fills in the nodes' tokens.
        node_rows: Where the nodes are among the rows: a slice, or int64 [nodes] where they have a branch.
        head_rows: int64 [R], the rows that go through the LM head: all of them, or the first.
    """

    state: int
    rows: Rows
    input_ids: Ids
    node_rows: slice | Ids
    head_rows: Ids


class Plans:
    """The plans of a bundle: those of its tree, one per state and with branches, and those of the causal state.

    Attributes:
        num_distances: m, how many distances are guessed.
        num_prompt_tokens: m where prompt tokens guess, else 0.
        num_guess_heads: m where guess heads do, else 0.
        by_state: The tree of each state.
        with_branch: The same with a branch: for each state, plans by the branch, ascending.
    """

    def __init__(self, manifest: Manifest, tree: Tree) -> None:
        self.num_distances, self.vocab_size = manifest.num_distances, manifest.model.vocab_size
        self.num_prompt_tokens, self.num_guess_heads = manifest.prompt_tokens.count, manifest.num_guess_heads
        self.num_top_ids = manifest.num_top_ids
        self.causal_state = causal_state(self.num_distances)
        self.chunk_size = manifest.max_rows - self.num_prompt_tokens
        self.by_state = [self.of_rows(state, rows) for state, rows in sorted(tree.rows.items())]
        self.with_branch = [
            {branch: self.of_rows(state, rows) for branch, rows in branched.items()}
            for state, branched in sorted(tree.branched.items())
        ]
        self.plain = self.chain(0)

    def of_rows(self, state: int, rows: Rows, num_head_rows: int | None = None) -> StepPlan:
        """The plan of rows that follow a folded tree; all go through the LM head, or the first `num_head_rows`."""
        has_branch = rows.num_in_tree < len(rows.nodes)
        node_rows = np.array(rows.node_rows, np.int64) if has_branch else slice(len(rows.nodes))
        return StepPlan(
            state, rows, rows.input_ids(self.vocab_size), node_rows, np.arange(num_head_rows or rows.num_rows)
        )

    def chain(self, num_candidates: int, num_prompts: int = 0, num_head_rows: int | None = None) -> StepPlan:
        """The root and candidates one behind the other in the causal state, with prompt rows on the last."""
        inner = [Node((0,) * depth, 0) for depth in range(num_candidates)]
        rows = order_rows((*inner, Node((0,) * num_candidates, num_prompts)))
        return self.of_rows(self.causal_state, rows, num_head_rows)
