"""Slots: caches of several conversations in one engine, the least recently used of which makes room for a new one."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from operator import eq
from typing import Protocol, runtime_checkable

from ppd.runtime.session import Session


@runtime_checkable
class ExchangesCaches(Protocol):
    """What an engine offers beyond `Engine`, if it can put a cache aside and take it back."""

    def exchange_cache(self, cache: object | None) -> object:
        """Go on with this cache, or with an empty one; return the present one, which stays as it is."""


@dataclass(frozen=True, slots=True)
class _Parked:
    """A cache that was put aside, and the tokens in it."""

    cache: object
    held: list[int]


class Slots:
    """The caches of a session: the present one, and those that were put aside.

    Args:
        session: Of an engine that exchanges caches, if there is to be more than one.
        count: How many conversations to keep, at least 1.
    """

    def __init__(self, session: Session, count: int) -> None:
        assert count == 1 or isinstance(session.engine, ExchangesCaches), "the engine has one cache"
        self._session, self._count = session, count
        self._parked: list[_Parked] = []  # least recently used first

    @property
    def num_held(self) -> int:
        """Conversations whose rows are kept now."""
        return len(self._parked) + bool(self._session.cache_len)

    def turn_to(self, prompt: Sequence[int]) -> None:
        """Make present the cache that this prompt continues; else an empty one, or the least recently used.

        A prompt continues what is mostly in it, and what it is wholly in, as when an answer is asked for again. That it
        shares a beginning with another conversation, such as a system prompt, is not enough to take that one's place.
        """
        session = self._session
        held = session.history[: session.cache_len]
        if not held or _continues(prompt, held):
            return
        found = [place for place, slot in enumerate(self._parked) if _continues(prompt, slot.held)]
        if found:
            self._exchange(max(found, key=lambda place: _shared(prompt, self._parked[place].held)), held)
        elif len(self._parked) + 1 < self._count:
            self._exchange(None, held)
        elif self._parked:
            self._exchange(0, held)

    def forget(self) -> None:
        """Forget all conversations."""
        self._parked.clear()
        self._session.forget()

    def _exchange(self, place: int | None, held: list[int]) -> None:
        """Put the present cache aside, and go on with the parked one at a place, or with an empty one."""
        session, engine = self._session, self._session.engine
        assert isinstance(engine, ExchangesCaches), "as in the constructor"
        slot = _Parked(None, []) if place is None else self._parked.pop(place)
        session.forget()  # if this is interrupted, rows are lost and none is taken for another's
        self._parked.append(_Parked(engine.exchange_cache(slot.cache), held))
        session.history, session.cache_len = list(slot.held), len(slot.held)


def _continues(prompt: Sequence[int], held: Sequence[int]) -> bool:
    shared = _shared(prompt, held)
    return 2 * shared >= len(held) or shared >= len(prompt) - 1


def _shared(prompt: Sequence[int], held: Sequence[int]) -> int:
    """Tokens at the beginning that both have."""
    return sum(1 for _ in takewhile(bool, map(eq, prompt, held)))
