"""Chances: how often each kind of guess is right, learnt while it guesses."""

from collections.abc import Sequence
from typing import Any

from ppd.errors import ArgumentError
from ppd.ngrams import LEVELS
from ppd.runtime.drafters.text_index import MAX_LENGTH

NUM_LEVELS = 16
"""Kinds of the table's guesses, by how sure it is."""
NUM_KINDS = MAX_LENGTH + 1 + NUM_LEVELS
"""Kinds of guesses: those that continue a match, by its length, 0 to `MAX_LENGTH`; then the table's."""
_PRIOR = (0.0, 0.22, 0.53, 0.63, 0.70, 0.76, 0.80, 0.80, 0.82, 0.83, 0.84, 0.85, 0.87, 0.88, 0.89, 0.91, 0.97)
"""Share of right guesses by the length of the match: SmolLM2-135M's greedy answers to 85 questions of Spec-Bench."""
_WEIGHT = 12.0
"""Guesses that the prior counts for."""
_MEMORY = 400.0
"""Guesses of a kind after which what was seen counts half."""
_LEFT = 25.0
"""Guesses of a kind that all texts before count for in a new one."""


class Learnt:
    """The chance that a guess is right, by its kind.

    Args:
        prior: What each kind's chance is taken to be at the start.

    Attributes:
        of: Kind → chance. Read it, do not keep it: it changes as guesses are judged.
    """

    def __init__(self, prior: Sequence[float]) -> None:
        self.of = list(prior)
        self._right = [chance * _WEIGHT for chance in self.of]
        self._seen = [_WEIGHT] * len(self.of)

    def judge(self, kind: int, right: bool) -> None:
        """Count a guess."""
        seen, rights = self._seen, self._right
        if seen[kind] > _MEMORY:
            seen[kind] *= 0.5
            rights[kind] *= 0.5
        seen[kind] += 1
        rights[kind] += right
        self.of[kind] = rights[kind] / seen[kind]

    def begin_text(self) -> None:
        """Let what was seen count for a few guesses only: another text may be of another kind."""
        for kind, seen in enumerate(self._seen):
            if seen > _LEFT:
                self._seen[kind] = _LEFT
                self._right[kind] = _LEFT * self.of[kind]

    def judge_chain(self, guesses: Sequence[int], kinds: Sequence[int], came: Sequence[int]) -> None:
        """Count guesses for tokens that stand one behind the other, up to the first wrong one.

        Args:
            came: The tokens that came there, as far as they did.
        """
        for guess, kind, token in zip(guesses, kinds, came, strict=False):
            self.judge(kind, guess == token)
            if guess != token:
                break


class Chances(Learnt):
    """Those of guesses from text. Kinds are the lengths of a match, 0 to `MAX_LENGTH`, then the table's levels.

    Args:
        prior: As calibration measured them; empty for a model's of another device.
    """

    def __init__(self, prior: Sequence[float] = ()) -> None:
        super().__init__(list(prior) or [*_PRIOR, *((level + 0.5) / NUM_LEVELS for level in range(NUM_LEVELS))])


def chances_from_json(data: Any) -> list[float]:
    """The chances of an `acceptance.json`, by kind.

    Raises:
        ArgumentError: They are missing, or not as many probabilities as there are kinds.
    """
    found = data.get("chances")
    if not isinstance(found, list) or len(found) != NUM_KINDS or not all(0 <= chance <= 1 for chance in found):
        raise ArgumentError(f"chances is {found!r:.40}; expected {NUM_KINDS} probabilities")
    return found


def kind_of_level(level: int) -> int:
    """The kind of a guess of the table."""
    return MAX_LENGTH + 1 + level * NUM_LEVELS // LEVELS
