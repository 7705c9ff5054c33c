"""Slots: caches of several conversations in one engine, the least recently used of which makes room for a new one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from ppd.runtime.session import Session, num_shared


@runtime_checkable
class ExchangesCaches(Protocol):
    """What an engine offers beyond `Engine`, if it can put a cache aside and take it back."""

    def exchange_cache(self, cache: object | None) -> object:
        """Go on with this cache, or with an empty one; return the present one, which stays as it is."""


_FEW = 4
"""So many tokens are soon read again."""


@dataclass(frozen=True, slots=True)
class _Parked:
    """A cache that was put aside, the tokens in it, and how many of them the last prompt had."""

    cache: object
    held: list[int]
    asked: int


class Slots:
    """The caches of a session: the present one, and those that were put aside.

    Args:
        session: Of an engine that exchanges caches, if there is to be more than one.
        count: How many conversations to keep, at least 1.
    """

    def __init__(self, session: Session, count: int) -> None:
        assert count == 1 or isinstance(session.engine, ExchangesCaches), "the engine has one cache"
        self._session, self._count, self._asked = session, count, 0
        self._parked: list[_Parked] = []  # least recently used first

    @property
    def num_held(self) -> int:
        """Conversations whose rows are kept now."""
        return len(self._parked) + bool(self._session.cache_len)

    def turn_to(self, prompt: Sequence[int]) -> None:
        """Make present the cache that this prompt continues best; else an empty one.

        A prompt continues what it has but for a few tokens, and what was asked last, as when an answer is asked for
        again or comes back in other words. That it shares a beginning with another conversation, such as a system
        prompt, is not enough to take that one's place. Where none is empty, the one that shares most makes room, if it
        is mostly shared, else the least recently used.
        """
        session = self._session
        present = _Parked(None, session.history[: session.cache_len], self._asked)
        slots = [*self._parked, present]
        place = self._place_of(prompt, slots)
        if place != len(slots) - 1:
            self._exchange(place, present)
        self._asked = len(prompt)

    def forget(self) -> None:
        """Forget all conversations."""
        self._parked.clear()
        self._session.forget()

    def _place_of(self, prompt: Sequence[int], slots: Sequence[_Parked]) -> int | None:
        """The place of the slot to go on in; None for an empty one."""
        ids = np.array(prompt, np.int64)
        shared = [num_shared(ids, slot.held) for slot in slots]
        continued = [i for i, slot in enumerate(slots) if _continues(prompt, slot, shared[i])]
        if continued:
            return max(continued, key=lambda i: (shared[i], i))
        if not slots[-1].held:
            return len(slots) - 1
        if len(slots) < self._count:
            return None
        most = max(range(len(slots)), key=lambda i: (shared[i], -i))
        return most if 2 * shared[most] >= len(slots[most].held) else 0

    def _exchange(self, place: int | None, present: _Parked) -> None:
        """Put the present cache aside, and go on with the parked one at a place, or with an empty one."""
        session, engine = self._session, self._session.engine
        assert isinstance(engine, ExchangesCaches), "as in the constructor"
        slot = _Parked(None, [], 0) if place is None else self._parked.pop(place)
        session.forget()  # if this is interrupted, rows are lost and none is taken for another's
        cache = engine.exchange_cache(slot.cache)
        if present.held:
            self._parked.append(_Parked(cache, present.held, present.asked))
        session.history, session.cache_len = list(slot.held), len(slot.held)


def _continues(prompt: Sequence[int], slot: _Parked, shared: int) -> bool:
    """Whether a prompt that shares so much with a slot belongs to its conversation."""
    if 2 * shared >= len(slot.held) > 0 and len(slot.held) - shared <= _FEW:
        return True
    return shared >= slot.asked and (shared > _FEW or shared == len(prompt))
