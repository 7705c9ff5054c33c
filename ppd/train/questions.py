"""Questions that a chat model asks itself: what it writes where its template has the user speak. No data is needed."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ppd.errors import ArgumentError, TokenizerError
from ppd.messages import Message
from ppd.train.continuing import sampling_of
from ppd.train.data import longest_prompt
from ppd.train.rollouts import Workshop
from ppd.train.sharing import once
from ppd.train.text import TextEncoder

LONGEST = 96
"""Tokens of a question; a longer one counts as unterminated."""
_TEMPERATURE, _TOP_P = 1.0, 0.9
_TRIES_AT_ONCE = 1024
_TRIES_PER_QUESTION, _MORE_TRIES = 4, 256
_MARKER = "ppd-marks-the-question"
_SHORTEST, _FEWEST_WORDS = 4, 2
_LARGEST_SHARE = 0.4
"""Of a question's tokens that one token may be."""
_REPEATED_SHARE = 0.3
"""Of a question's 3-grams that may have stood in it before."""
_SHARED_SHARE = 0.6
"""Of a question's 3-grams that one earlier question may have."""


@dataclass(frozen=True)
class UserTurn:
    """Where a template has the user speak.

    Attributes:
        prefix: Token ids before the user's words, a system prompt that the template adds included.
        stop_ids: Tokens that end the user's turn.
        stop_text: Text that ends it where the template has no token for that; else None.
        num_around: Tokens of a prompt that are not the user's.
    """

    prefix: list[int]
    stop_ids: tuple[int, ...]
    stop_text: str | None
    num_around: int


def user_turn(encoder: TextEncoder) -> UserTurn:
    """Find it by rendering a marker.

    Raises:
        TokenizerError: The model has no chat template, or one that does not repeat what the user says.
    """
    if encoder.template is None:
        raise TokenizerError(f"{encoder.name} has no chat template, so it cannot ask itself; give --data PATH")
    text = encoder.render([{"role": "user", "content": _MARKER}], answer_follows=True)
    before, found, after = text.partition(_MARKER)
    if not found or not after.strip():
        raise TokenizerError(
            f"the chat template of {encoder.name} does not show where the user's words end; give --data PATH"
        )
    prefix, suffix = encoder.encode([before, after.strip()], special=False)
    ends_by_token = suffix[0] in encoder.special_ids()
    return UserTurn(
        prefix=prefix or list(encoder.eos_ids[:1]),
        stop_ids=tuple(sorted({*encoder.eos_ids, suffix[0]})) if ends_by_token else encoder.eos_ids,
        stop_text=None if ends_by_token else after.strip(),
        num_around=len(prefix) + len(suffix),
    )


@dataclass
class Sieve:
    """Keeps questions worth answering, and counts why others were refused.

    Attributes:
        kept: In the order in which they came.
        refused: Number by reason.
    """

    encoder: TextEncoder
    turn: UserTurn
    kept: list[str] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._with_gram: dict[tuple[str, ...], list[int]] = {}
        self._special = self.encoder.special_ids()

    def add(self, ids: Sequence[int]) -> None:
        """Keep or refuse what was sampled behind the prefix."""
        text, reason = self._text(ids)
        words = text.casefold().split()
        grams = _grams(words)
        reason = reason or self._degenerate(ids, words) or self._known(grams)
        if reason:
            self.refused[reason] += 1
            return
        for gram in set(grams):
            self._with_gram.setdefault(gram, []).append(len(self.kept))
        self.kept.append(text)

    def _text(self, ids: Sequence[int]) -> tuple[str, str | None]:
        """What the user said, and why it is no question."""
        ended = bool(ids) and ids[-1] in self.turn.stop_ids
        said = ids[:-1] if ended else ids
        text = self.encoder.decode(said)
        if self.turn.stop_text is not None and self.turn.stop_text in text:
            return text.partition(self.turn.stop_text)[0].strip(), None
        if not ended:
            return text, "unterminated"
        is_broken = "\N{REPLACEMENT CHARACTER}" in text or not self._special.isdisjoint(said)
        return text.strip(), "not text" if is_broken else None

    def _degenerate(self, ids: Sequence[int], words: list[str]) -> str | None:
        if len(ids) <= _SHORTEST or len(words) < _FEWEST_WORDS:
            return "too short"
        grams = _grams([str(i) for i in ids])
        repeated = 1 - len(set(grams)) / len(grams)
        largest = max(Counter(ids).values()) / len(ids)
        return "repeats itself" if repeated > _REPEATED_SHARE or largest > _LARGEST_SHARE else None

    def _known(self, grams: list[tuple[str, ...]]) -> str | None:
        """Whether an earlier question shares most of the 3-grams."""
        own = set(grams)
        shared = Counter(i for gram in own for i in self._with_gram.get(gram, ()))
        most = shared.most_common(1)
        return "too much like another" if most and most[0][1] > _SHARED_SHARE * len(own) else None


def _grams(words: Sequence[str]) -> list[tuple[str, ...]]:
    """All 3-grams; of fewer words, the words."""
    return [tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2))]


def write_questions(
    workshop: Workshop, encoder: TextEncoder, count: int, length: int, seed: int
) -> list[list[Message]]:
    """Let the model write questions, or read those it wrote before; each is a conversation of one message.

    The file is JSON lines as `ppd train --data` reads them.

    Args:
        length: Tokens of a sequence; a question leaves room for its answer.

    Raises:
        TokenizerError: As for `user_turn`.
        ArgumentError: Too few of what it wrote are questions, or there is no room for one.
    """
    turn = user_turn(encoder)
    longest = min(LONGEST, longest_prompt(length) - turn.num_around)
    if longest <= _SHORTEST:
        raise ArgumentError(f"the chat template takes {turn.num_around} tokens of {length}; give a larger --length")
    settings = (turn, count, longest, seed, _TEMPERATURE, _TOP_P, _REPEATED_SHARE, _SHARED_SHARE)
    texts = once(
        workshop.accelerator,
        path=lambda: workshop.cache / f"questions-{workshop.key(*settings)}.jsonl",
        read=_read,
        make=lambda: _write(workshop, encoder, turn, count, longest, seed),
        write=lambda made: "".join(json.dumps({"messages": _asked(text)}) + "\n" for text in made).encode(),
    )
    return [_asked(text) for text in texts]


def _write(workshop: Workshop, encoder: TextEncoder, turn: UserTurn, count: int, longest: int, seed: int) -> list[str]:
    sieve = Sieve(encoder, turn)
    length, tries = len(turn.prefix) + longest, 0
    most_tries = _TRIES_PER_QUESTION * count + _MORE_TRIES
    while len(sieve.kept) < count and tries < most_tries:
        number = min(_TRIES_AT_ONCE, most_tries - tries, count - len(sieve.kept) + 16)
        own = (seed * most_tries + tries) % (1 << 64)  # as large as a generator takes
        sampling = sampling_of(_TEMPERATURE, number, length, own, top_p=_TOP_P)
        for row in workshop.continue_all([turn.prefix] * number, length, turn.stop_ids, sampling):
            sieve.add(row[len(turn.prefix) :])
        tries += number
        workshop.tell(f"questions: {min(count, len(sieve.kept))} of {count}")
    reasons = ", ".join(f"{number} {reason}" for reason, number in sieve.refused.most_common()) or "none"
    if len(sieve.kept) < count:
        raise ArgumentError(
            f"{encoder.name} wrote {len(sieve.kept)} questions in {tries} tries, expected {count} (refused: "
            f"{reasons}); give --data PATH, or fewer --rollouts"
        )
    workshop.tell(f"questions: {count} in {tries} tries (refused: {reasons})")
    return sieve.kept[:count]


def _asked(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def _read(path: Path) -> list[str] | None:
    try:
        lines = path.read_text("utf-8").splitlines()
        return [json.loads(line)["messages"][0]["content"] for line in lines]
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return None  # damaged: made again
