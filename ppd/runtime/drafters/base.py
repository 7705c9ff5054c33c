"""What the loop asks of a drafter: the rows of the next step, and guesses for its candidates."""

from collections.abc import Sequence
from typing import Protocol

from ppd.runtime.engines.base import Ids
from ppd.runtime.plans import StepPlan

Proposal = tuple[StepPlan, list[int]]
"""What a step is to verify: its rows (any state of the folded tree, or a chain in the causal state), and the tokens of
their candidates, in row order. Wrong ones cost time and change no token. A plain tuple, as every step makes one."""


class Drafter(Protocol):
    """Proposes candidates for every step of a generation."""

    @property
    def num_prompts(self) -> int:
        """Prompt rows that prefill hangs on the prompt's last token, for the first step's guesses."""

    def propose(self, history: Sequence[int], guesses: Ids) -> Proposal:
        """Propose the next step.

        Args:
            history: Every token decided so far, the prompt first and the root last. It grows; do not change it.
            guesses: int64 [s, K], the best ids of each of the s prompt rows of the node that was accepted last: row j
                guesses the candidates of depth j + 1. Valid during the call.
        """
