"""An index of a text that grows: where its end stood before, and what followed there."""

from collections.abc import Sequence

_MOST_TRIED = 8
"""Places that are compared when a match has ended: the last that have the same two tokens."""
MAX_LENGTH = 16
"""Lengths of a match are counted up to here."""


class TextIndex:
    """The longest earlier occurrence of a text's end.

    Every pair of tokens remembers where it last ended, and each such place the one before it, as in LZ77. While what
    comes is what came then, a match only moves on; when it ends, the last places of the last pair are compared. So a
    token costs the same however long the text is, and two numbers of memory.

    Attributes:
        place: Where the token after the match stands in the text; 0 where the end was never seen before.
        length: How many tokens before `place` equal those before the text's end, counted up to `MAX_LENGTH`.
    """

    def __init__(self) -> None:
        self._text: Sequence[int] = ()
        self._size = 0
        self.place = self.length = 0
        self._pairs: dict[int, int] = {}  # two tokens → the place after them
        self._single: dict[int, int] = {}  # a token → the place after it
        self._earlier: list[int] = []  # place → the earlier one after the same two tokens

    def follow(self, text: Sequence[int]) -> None:
        """Read what a text has more than at the last call, or all of it where it is another object or shorter."""
        if text is not self._text or len(text) < self._size:
            self._text, self._size = text, 0
            self.place = self.length = 0
            self._pairs, self._single, self._earlier = {}, {}, [0]
        place, length = self.place, self.length
        pairs, single, earlier = self._pairs, self._single, self._earlier
        before = single_before = 0
        for i in range(self._size, len(text)):
            token = text[i]
            if place and text[place] == token:
                place, length = place + 1, min(length + 1, MAX_LENGTH)
            else:
                place = 0
            pair = text[i - 1] << 32 | token if i else -1
            before = pairs.get(pair, 0)
            single_before = single.get(token, 0)
            earlier.append(before)
            pairs[pair] = single[token] = i + 1
        if len(text) > self._size and not place:
            place, length = self._longest(before) if before else (single_before, int(single_before > 0))
        self.place, self.length, self._size = place, length, len(text)

    def after(self, first: int, second: int) -> int:
        """The place after the last occurrence of two tokens; 0 if there is none."""
        return self._pairs.get(first << 32 | second, 0)

    def _longest(self, place: int) -> tuple[int, int]:
        """The longest match, of at least two tokens, among the last places after the text's last two."""
        text, end = self._text, len(self._text)
        best, best_length = place, 2
        for _ in range(_MOST_TRIED):
            length = 2
            while length < MAX_LENGTH and length < place and text[place - length - 1] == text[end - length - 1]:
                length += 1
            if length > best_length:
                best, best_length = place, length
            place = self._earlier[place]
            if not place:
                break
        return best, best_length
