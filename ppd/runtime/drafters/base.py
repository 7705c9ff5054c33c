"""What the loop asks of a drafter: the rows of the next step, and guesses for its candidates."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from ppd.runtime.engines.base import Ids
from ppd.runtime.plans import StepPlan

PLAIN, PPD, MEDUSA, LOOKUP, TABLE, MODEL = "plain", "ppd", "medusa", "lookup", "table", "model"
"""Where guesses come from: nowhere; prompt tokens; Medusa's heads; the text so far; the model's own n-grams; a draft
model."""


class Proposal(NamedTuple):
    """What a step is to verify.

    Attributes:
        plan: Its rows: any state of the folded tree, with a branch or without, or a chain in the causal state.
        candidates: Tokens of its candidates, in row order. Wrong ones cost time and change no token.
        source: Whose guesses they are, for statistics.
        branch: Whose those of the branch are.
    """

    plan: StepPlan
    candidates: list[int]
    source: str
    branch: str = ""

    def source_of(self, node: int) -> str:
        """Whose guess a candidate is; the root counts for the tree."""
        return self.source if node < self.plan.rows.num_in_tree else self.branch


class Drafter(Protocol):
    """Proposes candidates for every step of a generation."""

    @property
    def num_prompts(self) -> int:
        """Prompt rows that prefill hangs on the prompt's last token, for the first step's guesses."""

    def propose(self, history: Sequence[int], guesses: Ids) -> Proposal:
        """Propose the next step.

        Args:
            history: Every token decided so far, the prompt first and the root last. It grows; do not change it.
            guesses: int64 [s, K], the best ids of each of the s prompt rows of the node that was accepted last, or of
                its m guess heads: row j guesses the candidates of depth j + 1. Valid during the call.
        """
