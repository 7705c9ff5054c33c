"""Plain decoding: the root alone."""

from collections.abc import Sequence

from ppd.runtime.drafters.base import PLAIN, Proposal
from ppd.runtime.engines.base import Ids
from ppd.runtime.plans import Plans


class PlainDrafter:
    """Proposes nothing."""

    num_prompts = 0

    def __init__(self, plans: Plans) -> None:
        self._proposal = Proposal(plans.plain, [], PLAIN)

    def propose(self, history: Sequence[int], guesses: Ids) -> Proposal:  # noqa: ARG002 - as every drafter
        """As `Drafter.propose`."""
        return self._proposal
