"""Guesses from text alone: from the prompt and the answer so far, and from a table of the model's own n-grams."""

from collections.abc import Sequence

from ppd.ngrams import NgramTable
from ppd.runtime.drafters.chances import Chances, kind_of_level
from ppd.runtime.drafters.text_index import MAX_LENGTH, TextIndex

_LEAST = 0.04
"""A chain ends where it is less probable than this that it is right so far."""
_SURE = 0.85
"""A match that is right this often is not compared with the table."""


class TextGuesser:
    """Guesses the tokens that follow a text, each from whichever source knows it best, and learns from what came.

    Args:
        lookup: Whether to guess from the text itself.
        table: What to guess from besides; None for nothing.
        most: Tokens to guess at most.

    Attributes:
        tokens: The guesses for the tokens that follow, one after the other.
        reach: Chance that each guess and all before it are right.
        kinds: What each guess is, as `Chances` counts them.
    """

    def __init__(self, *, lookup: bool, table: NgramTable | None, most: int, chances: Chances) -> None:
        self._index = TextIndex() if lookup else None
        self._table, self._most, self._chances = table, most, chances
        self._text: Sequence[int] = ()
        self._start = 0
        self.tokens: list[int] = []
        self.reach: list[float] = []
        self.kinds: list[int] = []

    def guess(self, text: Sequence[int]) -> None:
        """Judge the guesses made before, and guess what follows the text now.

        Args:
            text: All tokens, at least one; the same object as before while it only grows.
        """
        if text is self._text and len(text) >= self._start:
            self._chances.judge_chain(self.tokens, self.kinds, text[self._start :])
        self._text, self._start = text, len(text)
        self.tokens, self.reach, self.kinds = [], [], []
        place = length = 0
        index, table, of = self._index, self._table, self._chances.of
        if index is not None:
            index.follow(text)
            place, length = index.place, index.length
        third, second, first = (-1, -1, *text[-3:])[-3:]
        size, reach = len(text), 1.0
        for _ in range(self._most):
            chance, token, kind = 0.0, -1, 0
            if place:
                token = text[place] if place < size else self.tokens[place - size]
                kind = length
                chance = of[kind]
            if table is not None and chance < _SURE:
                other, level = table.guess(third, second, first)
                its_kind = kind_of_level(level)
                if level and of[its_kind] > chance:
                    if other != token:
                        place = 0
                    token, kind, chance = other, its_kind, of[its_kind]
            reach *= chance
            if reach < _LEAST:
                break
            self.tokens.append(token)
            self.reach.append(reach)
            self.kinds.append(kind)
            third, second, first = second, first, token
            if place:
                place, length = place + 1, min(length + 1, MAX_LENGTH)
            elif index is not None:
                place, length = index.after(second, first), 2
