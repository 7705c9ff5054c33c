"""The tree of the present state, filled with what the last accepted node's prompt rows or guess heads guessed."""

from collections.abc import Sequence

import numpy as np

from ppd.runtime.drafters.base import MEDUSA, PPD, Proposal
from ppd.runtime.engines.base import Ids
from ppd.runtime.plans import Plans, StepPlan


class PromptTokenDrafter:
    """Fills the tree's candidates with guesses, by depth and rank."""

    def __init__(self, plans: Plans) -> None:
        self.num_prompts, self._source = plans.num_prompt_tokens, MEDUSA if plans.num_guess_heads else PPD
        self._by_state = [(plan, _guess_index(plan, plans.num_top_ids)) for plan in plans.by_state]

    def propose(self, history: Sequence[int], guesses: Ids) -> Proposal:  # noqa: ARG002 - as every drafter
        """As `Drafter.propose`."""
        plan, index = self._by_state[len(guesses)]
        # "clip", because "raise" would look at every index first; they are in range.
        return Proposal(plan, guesses.take(index, mode="clip").tolist(), self._source)


def _guess_index(plan: StepPlan, num_top_ids: int) -> Ids:
    """Place of each candidate's guess in the flattened guesses [s, K]: int64 [candidates]."""
    places = [(len(node.path) - 1) * num_top_ids + node.path[-1] for node in plan.rows.nodes[1:]]
    return np.array(places, np.int64)
