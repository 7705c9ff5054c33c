"""Drafting from every source: at each step, the plan with the most expected tokens for its time."""

from collections.abc import Sequence

from ppd.ngrams import NgramTable
from ppd.runtime.drafters.base import LOOKUP, PLAIN, PPD, TABLE, Proposal
from ppd.runtime.drafters.chances import Chances
from ppd.runtime.drafters.prompt_tokens import PromptTokenDrafter
from ppd.runtime.drafters.text_guesser import TextGuesser
from ppd.runtime.drafters.text_index import MAX_LENGTH
from ppd.runtime.drafters.worth import TreeWorth, Worth
from ppd.runtime.engines.base import Ids
from ppd.runtime.plans import Plans
from ppd.signature import CHAIN_LENGTHS

_MEMORY = 0.99
"""How much of the present rate a step leaves."""
_STRETCH = 64
"""Tokens of a text along which the costs of steps are taken to be the same."""
_WEIGHT = 30.0
"""Plain steps that it starts from."""


class ChoosingDrafter:
    """Chooses between plain decoding, a chain of guesses from text, and the tree of the prompt tokens' guesses.

    With λ the tokens that are decoded at present in the time of a plain step, a step of E expected tokens and cost L is
    worth E - λ·L: what it gives beyond what its time gives anyway. Plain decoding is always one of the choices, so that
    nothing is guessed without evidence.

    Args:
        sources: Of `PPD`, `LOOKUP` and `TABLE`, those to draft from.
        table: For the source `TABLE`.
    """

    def __init__(self, plans: Plans, worth: Worth, sources: frozenset[str], table: NgramTable | None) -> None:
        self._guesser = TextGuesser(
            lookup=LOOKUP in sources,
            table=table if TABLE in sources else None,
            most=CHAIN_LENGTHS[-1],
            chances=Chances(worth.chances),
        )
        self._worth, self._plain = worth, Proposal(plans.plain, [], PLAIN)
        self._place, self._costs = -1, worth.costs_behind(0)
        self._tree: TreeWorth | None = None
        if PPD in sources and worth.tree_tokens:
            self._tree = TreeWorth(worth, [plan.rows.num_rows for plan in plans.by_state])
        self._prompt_tokens, self._num_prompts = PromptTokenDrafter(plans), plans.num_prompt_tokens
        self._bare = {length: plans.chain(length) for length in CHAIN_LENGTHS}
        self._with_prompts = {length: plans.chain(length, plans.num_prompt_tokens) for length in CHAIN_LENGTHS}
        self._history: Sequence[int] = ()
        self._size, self._state, self._cost = 0, 0, 1.0
        self._tokens = self._time = _WEIGHT

    @property
    def num_prompts(self) -> int:
        """As `Drafter.num_prompts`."""
        wanted = self._tree is not None and self._tree.of_guesses(1.0, self._worth.costs_behind(0)) > 0
        return self._num_prompts if wanted else 0

    def propose(self, history: Sequence[int], guesses: Ids) -> Proposal:
        """As `Drafter.propose`."""
        if history is self._history:
            self._learn(len(history) - self._size)
        self._history, self._size = history, len(history)
        if self._size // _STRETCH != self._place:
            self._place = self._size // _STRETCH
            self._costs = self._worth.costs_behind(self._size)
        guesser, costs, tree = self._guesser, self._costs, self._tree
        guesser.guess(history)
        rate = self._tokens / self._time
        best, expected = 1 - rate * costs[1], 1.0
        length, plans = 0, self._bare
        of_guesses = tree.of_guesses(rate, costs) if tree is not None else 0.0
        for count, reach in enumerate(guesser.reach, 1):
            expected += reach
            if count in self._bare:
                worth = expected - rate * costs[count + 1]
                if worth > best:
                    best, length, plans = worth, count, self._bare
                if of_guesses > 0:
                    worth = expected + reach * of_guesses - rate * costs[count + 1 + self._num_prompts]
                    if worth > best:
                        best, length, plans = worth, count, self._with_prompts
        self._state = -1
        if tree is not None and tree.of_step(len(guesses), rate, costs) > best:
            proposed = self._prompt_tokens.propose(history, guesses)
            self._state = len(guesses)
        elif length:
            source = LOOKUP if guesser.kinds[0] <= MAX_LENGTH else TABLE
            proposed = Proposal(plans[length], guesser.tokens[:length], source)
        else:
            proposed = self._plain
        self._cost = costs[proposed.plan.rows.num_rows]
        return proposed

    def _learn(self, num_tokens: int) -> None:
        """Count the tokens that the last step gave."""
        self._tokens = self._tokens * _MEMORY + num_tokens
        self._time = self._time * _MEMORY + self._cost
        if self._tree is not None and self._state >= 0:
            self._tree.judge(self._state, num_tokens)
