"""Stop texts: where a growing answer ends, special tokens included."""

from collections.abc import Mapping, Sequence


class Stops:
    """Looks for stop texts in a growing answer, and says where the shown text is to be cut.

    Special tokens are not shown. A stop text that has one in it is looked for in the text with special tokens written
    out; any other in what is shown.

    Args:
        special: Id → content of the tokenizer's special tokens.
    """

    def __init__(self, stop: Sequence[str], special: Mapping[int, str]) -> None:
        self._with_special = [text for text in stop if any(content in text for content in special.values())]
        self._plain = [text for text in stop if text not in self._with_special]
        self._special = special if self._with_special else {}
        self._longest = max(map(len, stop), default=0)
        self._shown = self._written = ""
        self._hidden: list[tuple[int, int]] = []  # place in what is written, and length, of every special token

    def add(self, shown: str, token: int | None = None) -> int | None:
        """Add text, then the token that it came with, if that is special.

        Returns:
            Where the first stop text begins in the shown text; None if there is none.
        """
        searched = len(self._shown), len(self._written)
        self._shown += shown
        self._written += shown
        content = self._special.get(-1 if token is None else token)
        if content is not None:
            self._hidden.append((len(self._written), len(content)))
            self._written += content
        plain, written = (max(0, end - self._longest) for end in searched)
        found = [at for stop in self._plain if (at := self._shown.find(stop, plain)) >= 0]
        hidden = [at for stop in self._with_special if (at := self._written.find(stop, written)) >= 0]
        return min([*found, *map(self._place_in_shown, hidden)], default=None)

    def held_back(self) -> int:
        """Characters at the end of the shown text that may become a stop text."""
        plain = max((_overlap(self._shown, stop) for stop in self._plain), default=0)
        written = max((_overlap(self._written, stop) for stop in self._with_special), default=0)
        return max(plain, len(self._shown) - self._place_in_shown(len(self._written) - written))

    def _place_in_shown(self, at: int) -> int:
        return at - sum(min(size, at - start) for start, size in self._hidden if start < at)


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of the text that begins `stop`."""
    sizes = range(min(len(stop) - 1, len(text)), 0, -1)
    return next((size for size in sizes if text.endswith(stop[:size])), 0)
