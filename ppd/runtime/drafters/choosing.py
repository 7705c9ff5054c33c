"""Drafting from every source: at each step, the plan with the most expected tokens for its time."""

from collections.abc import Sequence
from itertools import accumulate

from ppd.ngrams import NgramTable
from ppd.runtime.drafters.base import LOOKUP, MEDUSA, MODEL, PLAIN, PPD, TABLE, Proposal
from ppd.runtime.drafters.chances import Chances
from ppd.runtime.drafters.draft_model import MOST_GUESSES, DraftModel
from ppd.runtime.drafters.prompt_tokens import PromptTokenDrafter
from ppd.runtime.drafters.text_guesser import TextGuesser
from ppd.runtime.drafters.text_index import MAX_LENGTH
from ppd.runtime.drafters.worth import DraftCosts, TreeWorth, Worth
from ppd.runtime.engines.base import Ids
from ppd.runtime.plans import Plans
from ppd.signature import CHAIN_LENGTHS
from ppd.tree import Branch

_MEMORY = 0.99
"""How much of the present rate a step leaves."""
_STRETCH = 64
"""Tokens of a text along which the costs of steps are taken to be the same."""
_WEIGHT = 30.0
"""Plain steps that it starts from."""
_RECENT = 0.98
"""How much of the present share of steps from the text alone a step leaves."""


class ChoosingDrafter:
    """Chooses between plain decoding, a chain of guesses from text, the tree of the model's own guesses, and of both.

    With λ the tokens that are decoded at present in the time of a plain step, a step of E expected tokens and cost L is
    worth E - λ·L: what it gives beyond what its time gives anyway. Plain decoding is always one of the choices, so that
    nothing is guessed without evidence.

    Args:
        sources: Of `PPD`, `MEDUSA`, `LOOKUP`, `TABLE` and `MODEL`, those to draft from.
        table: For the source `TABLE`.
        draft_model: For the source `MODEL`, with its costs.
    """

    def __init__(
        self,
        plans: Plans,
        worth: Worth,
        sources: frozenset[str],
        table: NgramTable | None = None,
        draft_model: tuple[DraftModel, DraftCosts] | None = None,
    ) -> None:
        self._chances = Chances(worth.chances)
        self._guesser = TextGuesser(
            lookup=LOOKUP in sources,
            table=table if TABLE in sources else None,
            most=CHAIN_LENGTHS[-1],
            chances=self._chances,
        )
        self._draft_model = draft_model if MODEL in sources else None
        self._missed = 0.0  # tokens that the draft model would have been worth by now, had it read the text
        self._worth, self._plain = worth, Proposal(plans.plain, [], PLAIN)
        self._place, self._costs = -1, worth.costs_behind(0)
        self._tree: TreeWorth | None = None
        if sources & {PPD, MEDUSA} and worth.tree_tokens:
            rows, more = zip(*((plan.rows.num_rows, worth.more_of(plan)) for plan in plans.by_state), strict=True)
            self._tree = TreeWorth(worth, rows, more, is_given=plans.num_guess_heads > 0)
        self._with_branch = plans.with_branch
        self._prompt_tokens, self._num_prompts = PromptTokenDrafter(plans), plans.num_prompt_tokens
        self._share = 1.0  # of the steps, those that are not from the text alone
        # Prompt rows on a chain's leaf are for the next step's tree; without them comes first, which ties prefer.
        leaves = (0,) if self._tree is None or not self._num_prompts else (0, self._num_prompts)
        self._chains = [(length, leaf, plans.chain(length, leaf)) for length in CHAIN_LENGTHS for leaf in leaves]
        self._history: Sequence[int] = ()
        self._size, self._state, self._cost = 0, 0, 1.0
        self._branch, self._is_chain = -1, False
        self._tokens = self._time = _WEIGHT

    @property
    def num_prompts(self) -> int:
        """As `Drafter.num_prompts`."""
        wanted = self._tree is not None and self._tree.of_guesses(self._num_prompts) > 0
        return self._num_prompts if wanted else 0

    def propose(self, history: Sequence[int], guesses: Ids) -> Proposal:
        """As `Drafter.propose`."""
        if history is self._history:
            self._learn(history[self._size], len(history) - self._size)
        else:
            self._missed, self._place = 0.0, -1
            self._chances.begin_text()
        self._history, self._size = history, len(history)
        if self._size // _STRETCH != self._place:
            self._place = self._size // _STRETCH
            self._costs = self._worth.costs_behind(self._size)
            if self._tree is not None:
                self._tree.look_ahead(self._tokens / self._time, self._costs, self._share)
        guesser, costs, tree = self._guesser, self._costs, self._tree
        guesser.guess(history)
        rate = self._tokens / self._time
        best, chosen = 1 - rate * costs[1], None
        of_guesses = tree.of_guesses(self._num_prompts) if tree is not None else 0.0
        expected = list(accumulate(guesser.reach, initial=1.0))
        source, num_guesses = LOOKUP if guesser.kinds and guesser.kinds[0] <= MAX_LENGTH else TABLE, len(guesser.reach)
        for chain in self._chains:
            length, leaf, _ = chain
            if length > num_guesses:
                break
            value = expected[length] - rate * costs[length + 1 + leaf]
            if leaf:
                value += guesser.reach[length - 1] * of_guesses - rate * self._worth.prompt_rows
            if value > best:
                best, chosen = value, chain
        proposed = self._plain if chosen is None else Proposal(chosen[2], guesser.tokens[: chosen[0]], source)
        self._state = self._branch = -1
        if tree is not None:
            branch, value = self._branch_beside(tree, len(guesses), expected, rate)
            if value > best:
                best, self._state = value, len(guesses)
                proposed = self._prompt_tokens.propose(history, guesses)
                if branch:
                    self._branch = guesser.tokens[0]
                    candidates = proposed.candidates + guesser.tokens[: branch[0]]
                    proposed = Proposal(self._with_branch[self._state][branch], candidates, proposed.source, source)
        self._is_chain = self._state < 0 and proposed is not self._plain
        self._cost = self._worth.cost_of(proposed.plan, costs)
        if self._draft_model is not None:
            proposed = self._ask_model(*self._draft_model, history, best, rate) or proposed
        return proposed

    def _branch_beside(
        self, tree: TreeWorth, state: int, expected: Sequence[float], rate: float
    ) -> tuple[Branch | None, float]:
        """Which branch beside the tree is best, None for none, and what the step is worth.

        Args:
            expected: Tokens of a step with a chain of each length.
        """
        costs, reach = self._costs, self._guesser.reach
        best, value = None, tree.of_step(state, rate, costs)
        for branch, plan in self._with_branch[state].items():
            length = branch[0]
            if length > len(reach):
                break
            found = tree.of_branch(state, branch, reach, expected[length], rate * self._worth.cost_of(plan, costs))
            if found > value:
                best, value = branch, found
        return best, value

    def _ask_model(
        self, model: DraftModel, price: DraftCosts, history: Sequence[int], best: float, rate: float
    ) -> Proposal | None:
        """The draft model's guesses, if they promise more than the best plan without them.

        It has to read the text first. How long the answer will be is not known, so it does when what it would have been
        worth so far is as much as that takes: at worst, a text costs twice what it would have cost to know.
        """
        model.judge(history)
        costs, chance = self._costs, model.chance
        expected = list(accumulate((chance**depth for depth in range(1, MOST_GUESSES + 1)), initial=1.0))
        promised = max(expected[k] - rate * (costs[1 + k] + k * price.guess) for k in CHAIN_LENGTHS)
        if promised <= best:
            return None
        self._missed += promised - best
        if self._missed < rate * price.read * model.num_unseen:
            return None
        model.guess(
            history,
            lambda count, reach: reach * model.chance > rate * (costs[count + 2] - costs[count + 1] + price.guess),
        )
        reached = list(accumulate(model.reach, initial=1.0))
        chains = [chain for chain in self._chains if chain[0] <= len(model.tokens) and not chain[1]]
        if not chains:
            return None
        values = [reached[length] - rate * costs[length + 1] for length, _, _ in chains]
        value, (length, _, plan) = max(zip(values, chains, strict=True), key=lambda found: found[0])
        guessing = len(model.tokens) * price.guess
        if value <= best:  # now that it is known how sure they are; their time is spent
            self._cost += guessing
            return None
        self._cost = costs[length + 1] + guessing
        self._state, self._branch, self._is_chain = -1, -1, True
        return Proposal(plan, model.tokens[:length], MODEL)

    def _learn(self, first: int, num_tokens: int) -> None:
        """Count the tokens that the last step gave, the first of them `first`."""
        self._tokens = self._tokens * _MEMORY + num_tokens
        self._time = self._time * _MEMORY + self._cost
        self._share = self._share * _RECENT + (1 - _RECENT) * (not self._is_chain)
        if self._tree is None:
            return
        if self._state >= 0 and self._branch != first:
            self._tree.judge(self._state, num_tokens, beside=self._branch >= 0)
        else:
            self._tree.pass_by()
