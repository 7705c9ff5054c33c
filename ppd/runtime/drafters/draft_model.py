"""A draft model: another bundle with the same tokenizer, which decodes the guesses for this one."""

from collections.abc import Callable, Sequence

import numpy as np

from ppd.runtime.drafters.base import Drafter
from ppd.runtime.drafters.chances import Learnt
from ppd.runtime.session import Session
from ppd.runtime.verify import Accepted, verify_greedy
from ppd.signature import CHAIN_LENGTHS

MOST_GUESSES = CHAIN_LENGTHS[-1]
"""Tokens at most that it decodes for a step."""
_MARGINS = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Bounds of the kinds of its guesses: how far its best logit lies above its second."""
_PRIOR = (0.25, 0.30, 0.38, 0.46, 0.54, 0.64, 0.74, 0.84, 0.93)
_PRIOR_OF_ANY = 0.6
_RETURN = 0.1
"""How far another text leads back to that: what was not asked any more is tried again some texts later."""


class DraftModel:
    """Decodes on behind a text, greedily, with its own prompt tokens where they pay.

    Its cache keeps what it wrote and the text took; the rest is overwritten. How often a guess is right is learnt by
    how sure it was.

    Args:
        session: Of the draft model; nothing else may use it.
        drafter: Drafts for the draft model itself.
        vocab_size: Tokens of the model that it guesses for.
        context: Tokens that fit the draft model.

    Attributes:
        tokens: The guesses for the tokens that follow.
        reach: Chance that each guess and all before it are right.
    """

    def __init__(self, session: Session, drafter: Drafter, *, vocab_size: int, context: int) -> None:
        self._session, self._drafter = session, drafter
        self._vocab_size, self._context = min(vocab_size, session.plans.vocab_size), context
        self._by_margin, self._any = Learnt(_PRIOR), Learnt([_PRIOR_OF_ANY])
        self._text: Sequence[int] = ()
        self._size = self._known = self._scanned = 0
        self._is_foreign = False  # whether the text has a token that the draft model does not know
        self._kinds: list[int] = []
        self.tokens: list[int] = []
        self.reach: list[float] = []

    @property
    def chance(self) -> float:
        """How often its next guess is right, before it is known how sure it will be."""
        return self._any.of[0]

    @property
    def num_unseen(self) -> int:
        """Tokens of the judged text that it would have to read before it can guess."""
        return len(self._text) - max(self._known, self._size)

    def judge(self, text: Sequence[int]) -> None:
        """Count the last guesses, now that the text has grown, and forget them."""
        if text is not self._text:
            self._any = Learnt([self.chance + _RETURN * (_PRIOR_OF_ANY - self.chance)])
            self._known = self._session.num_reusable(np.asarray(text, np.int64))
            self._text, self._size, self._scanned, self._is_foreign = text, 0, 0, False
        else:
            came = text[self._size : self._size + len(self.tokens)]
            self._by_margin.judge_chain(self.tokens, self._kinds, came)
            self._any.judge_chain(self.tokens, [0] * len(self.tokens), came)
        self.tokens, self.reach, self._kinds = [], [], []

    def guess(self, text: Sequence[int], pays: Callable[[int, float], bool]) -> None:
        """Guess what follows; nothing where the text does not fit, or has tokens that the draft model does not know.

        Args:
            text: The judged text: all tokens, at least one.
            pays: (guesses so far, chance that all of them are right) → whether to go on.
        """
        if len(text) + MOST_GUESSES >= self._context or self._finds_foreign(text):
            self._size = 0
            return
        known = self._follow(text, self._size)
        self._size = len(text)
        while known and len(self.tokens) < MOST_GUESSES and pays(len(self.tokens), self.reach[-1]):
            known = self._decode()

    def _finds_foreign(self, text: Sequence[int]) -> bool:
        """Whether a token of the text is none of the draft model's; each is looked at once."""
        if not self._is_foreign:
            self._is_foreign = max(text[self._scanned :], default=0) >= self._vocab_size
            self._scanned = len(text)
        return self._is_foreign

    def _follow(self, text: Sequence[int], start: int) -> bool:
        """Bring the cache to the text's end, and take the first guess; as `_take`.

        Args:
            start: So many tokens of the text are surely in the cache.
        """
        session, plans = self._session, self._session.plans
        most = min(session.cache_len, len(text) - 1)
        known = min(start, most)
        while known < most and session.history[known] == text[known]:
            known += 1
        unseen, num_prompts = len(text) - known, self._drafter.num_prompts
        if not start or unseen > MOST_GUESSES:
            session.prefill(text, num_prompts, reuse=True)
            row = len(session.top_ids) - 1 - num_prompts  # the last token's
            best = int(session.top_ids[row, 0])
            session.decide(best)
        else:
            session.rewind(known, text[known])
            session.step(plans.chain(unseen - 1, num_prompts), text[known:])
            row = unseen - 1
            best = int(session.top_ids[row, 0])
            session.commit(Accepted(list(range(unseen)), [*text[known + 1 :], best]), unseen)
        return self._take([best], [row])

    def _decode(self) -> bool:
        """One step of the draft model; as `_take`."""
        session = self._session
        proposal = self._drafter.propose(session.history, session.guesses)
        tokens = [session.history[-1], *proposal.candidates]
        session.step(proposal.plan, tokens)
        accepted = verify_greedy(proposal.plan.rows.children, tokens, session.node_ids())
        goes_on = self._take(accepted.tokens, [session.row_of(node) for node in accepted.nodes])
        session.commit(accepted, len(accepted.tokens))
        return goes_on

    def _take(self, tokens: Sequence[int], rows: Sequence[int]) -> bool:
        """Add guesses, each the best id of its row of the last step; whether none of them is unknown to the model."""
        reach = self.reach[-1] if self.reach else 1.0
        for token, row in zip(tokens, rows, strict=True):
            if token >= self._vocab_size:
                return False
            if len(self.tokens) == MOST_GUESSES:
                break
            kind = self._kind(row)
            reach *= self._by_margin.of[kind]
            self.tokens.append(token)
            self.reach.append(reach)
            self._kinds.append(kind)
        return True

    def _kind(self, row: int) -> int:
        """How sure a row's answer is, 0 to 8."""
        logits, ids = self._session.logits(row), self._session.top_ids[row]
        margin = float(logits[ids[0]] - logits[ids[1]])
        return sum(margin > bound for bound in _MARGINS)
