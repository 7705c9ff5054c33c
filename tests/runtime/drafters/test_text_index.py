"""The index of a growing text against a search by definition."""

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from ppd.runtime.drafters.text_index import MAX_LENGTH, TextIndex
from tests.strategies import MANY

MOST_TRIED = 8


@st.composite
def texts(draw: st.DrawFn) -> list[int]:
    """Texts of a few words that repeat themselves, now and then for longer than is counted."""
    word = st.integers(0, draw(st.integers(1, 6)))
    text = draw(st.lists(word, max_size=40))
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(text)))
        text += text[start : start + draw(st.integers(0, 24))]
        text += draw(st.lists(word, max_size=3))
    return text


TEXTS = texts()
CUTS = st.lists(st.integers(1, 8), max_size=60)


def match_at(text: list[int], place: int) -> int:
    """How many tokens before a place equal those before the text's end."""
    length = 0
    while length < place and text[place - 1 - length] == text[-1 - length]:
        length += 1
    return length


def longest(text: list[int]) -> int:
    """The longest earlier occurrence of the text's end, counted up to the limit."""
    return min(MAX_LENGTH, max((match_at(text, place) for place in range(1, len(text))), default=0))


def grown(text: list[int], cuts: list[int]) -> TextIndex:
    """An index that read a text piece by piece, the rest at once."""
    index, read = TextIndex(), list[int]()
    for size in (*cuts, len(text)):
        read += text[len(read) : len(read) + size]
        index.follow(read)
    return index


def repeats_little(text: list[int]) -> bool:
    """Whether every place of a pair is compared."""
    return max(Counter(pairwise(text)).values(), default=0) <= MOST_TRIED


@MANY
@given(text=TEXTS, cuts=CUTS)
@example(text=[*range(20), *range(20)], cuts=[])
def test_the_longest_match_is_found_however_the_text_grew(text: list[int], cuts: list[int]) -> None:
    assume(repeats_little(text))
    index = grown(text, cuts)

    assert (index.length if index.place else 0) == longest(text)


@MANY
@given(text=TEXTS, cuts=CUTS)
def test_a_match_is_what_it_says(text: list[int], cuts: list[int]) -> None:
    index = grown(text, cuts)

    assert 0 <= index.place < max(1, len(text))
    assert bool(index.place) == (longest(text) > 0)
    if index.place:
        assert index.length == min(MAX_LENGTH, match_at(text, index.place)) > 0


@MANY
@given(text=TEXTS, token=st.integers(0, 6))
def test_a_match_goes_on_while_what_comes_is_what_came_then(text: list[int], token: int) -> None:
    index = TextIndex()
    index.follow(text)
    place, length = index.place, index.length
    goes_on = bool(place) and text[place] == token

    text.append(token)
    index.follow(text)

    if goes_on:
        assert (index.place, index.length) == (place + 1, min(length + 1, MAX_LENGTH))


@pytest.mark.parametrize(("others", "length"), [(MOST_TRIED - 1, 3), (MOST_TRIED, 2)])
def test_of_many_places_the_last_ones_are_compared(others: int, length: int) -> None:
    best = [9, 1, 2]
    index = grown([*best, *(token for i in range(others) for token in (10 + i, 1, 2)), *best], [])

    assert index.length == length
    assert index.place == (3 if length == 3 else 3 * (others + 1))


@MANY
@given(text=TEXTS, cuts=CUTS)
def test_the_last_place_after_two_tokens(text: list[int], cuts: list[int]) -> None:
    index = grown(text, cuts)

    found = {pair: end + 2 for end, pair in enumerate(pairwise(text))}
    for first in range(8):
        for second in range(8):
            assert index.after(first, second) == found.get((first, second), 0)


@MANY
@given(first=TEXTS, second=TEXTS, cut=st.integers(0, 60))
def test_another_text_starts_anew(first: list[int], second: list[int], cut: int) -> None:
    index, fresh = TextIndex(), TextIndex()
    index.follow(first)
    index.follow(second)
    fresh.follow(second)
    assert vars(index) == vars(fresh)

    size = len(second)
    del second[cut:]
    index.follow(second)
    if cut < size:
        fresh = TextIndex()
        fresh.follow(second)
    assert vars(index) == vars(fresh)
