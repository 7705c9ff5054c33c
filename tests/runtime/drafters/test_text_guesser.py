"""Guesses from text: where each comes from, how sure it is, and what is learnt from what came."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ppd.ngrams import LEVELS, NgramTable, build_table
from ppd.runtime.drafters.chances import NUM_KINDS, Chances, kind_of_level
from ppd.runtime.drafters.text_guesser import TextGuesser
from ppd.runtime.drafters.text_index import MAX_LENGTH
from tests.strategies import FEW

MOST = 15
LEVEL = int(2.5 / 3.5 * 255)
"""How sure the table is of what it saw three times, and nothing else."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "ngrams.bin"


def table_of(texts: Sequence[Sequence[int]], file: Path) -> NgramTable:
    file.unlink(missing_ok=True)  # a table that is read keeps its own file
    file.write_bytes(build_table([np.array(text, np.int64) for text in texts], 100))
    return NgramTable(file)


def guesser(table: NgramTable | None = None, *, lookup: bool = True, chances: Chances | None = None) -> TextGuesser:
    return TextGuesser(lookup=lookup, table=table, most=MOST, chances=chances or Chances())


def certain(**chances: float) -> Chances:
    """Matches of any length and the table's guesses of any level are right as often as given."""
    made = Chances([chances["lookup"]] * (MAX_LENGTH + 1) + [chances["table"]] * (NUM_KINDS - MAX_LENGTH - 1))
    made.of[0] = 0.0
    return made


def test_what_followed_then_is_guessed_and_a_longer_match_is_surer() -> None:
    made, chances = guesser(), Chances()
    made.guess([1, 2, 3, 4, 5, 1, 2])

    assert made.tokens[:6] == [3, 4, 5, 1, 2, 3]  # on into its own guesses
    assert made.kinds[:4] == [2, 3, 4, 5]
    assert made.reach[:4] == pytest.approx(np.cumprod(chances.of[2:6]))


@pytest.mark.parametrize("text", [[1], [1, 2], [1, 2, 3, 4, 5, 6]])
def test_nothing_is_guessed_without_evidence(text: list[int], file: Path) -> None:
    made = guesser(table_of([[50, 51]] * 3, file))
    made.guess(text)

    assert (made.tokens, made.reach, made.kinds) == ([], [], [])


def test_without_lookup_the_text_itself_is_no_evidence(file: Path) -> None:
    made = guesser(table_of([[50, 51]] * 3, file), lookup=False)
    made.guess([1, 2, 3, 1, 2])
    assert made.tokens == []
    made.guess([1, 2, 3, 1, 2, 50])
    assert made.tokens == [51]


def test_the_table_guesses_on_by_its_own_guesses(file: Path) -> None:
    made = guesser(table_of([[50, 51, 52, 53]] * 3, file))
    made.guess([9, 8, 50])

    assert made.tokens == [51, 52, 53]
    assert made.kinds == [kind_of_level(LEVEL)] * 3


@pytest.mark.parametrize(("text", "expected"), [([5], []), ([0, 0, 5], [6]), ([7, 5], [8]), ([3, 7, 5], [8])])
def test_a_short_text_has_no_token_before_its_first(text: list[int], expected: list[int], file: Path) -> None:
    others = [[5, 10 + i] for i in range(20)]  # so that 5 alone says nothing
    made = guesser(table_of([*[[0, 0, 5, 6]] * 3, *[[7, 5, 8]] * 3, *others * 3], file))
    made.guess(text)

    assert made.tokens == expected


def test_a_chain_goes_on_from_whichever_source_knows_the_next_token(file: Path) -> None:
    made = guesser(table_of([*[[9, 20]] * 3, *[[20, 21]] * 3], file), chances=certain(lookup=0.9, table=0.8))
    made.guess([20, 21, 22, 23, 24, 3, 9])

    assert made.tokens[:6] == [20, 21, 22, 23, 24, 3]
    assert [kind <= MAX_LENGTH for kind in made.kinds[:4]] == [False, False, True, True]
    assert made.kinds[2:5] == [2, 3, 4]
    assert made.reach[:3] == pytest.approx([0.8, 0.64, 0.576])


@pytest.mark.parametrize(("lookup", "table", "expected"), [(0.5, 0.8, [7, 8]), (0.8, 0.5, [3, 4]), (0.86, 0.9, [3, 4])])
def test_of_two_guesses_the_surer_is_taken_and_a_sure_match_is_not_compared(
    lookup: float, table: float, expected: list[int], file: Path
) -> None:
    texts = [*[[2, 7]] * 3, *[[7, 8]] * 3]
    made = guesser(table_of(texts, file), chances=certain(lookup=lookup, table=table))
    made.guess([1, 2, 3, 4, 5, 1, 2])

    assert made.tokens[:2] == expected


def test_a_match_goes_on_where_the_table_agrees(file: Path) -> None:
    made = guesser(table_of([[2, 3]] * 3, file), chances=certain(lookup=0.5, table=0.8))
    made.guess([1, 2, 3, 4, 5, 1, 2])

    assert made.tokens[:3] == [3, 4, 5]
    assert made.kinds[:3] == [kind_of_level(LEVEL), 3, 4]


def test_guesses_are_judged_up_to_the_first_wrong_one() -> None:
    chances, prior = Chances(), Chances().of
    made, text = guesser(chances=chances), [1, 2, 3, 4, 5, 1, 2]
    made.guess(text)
    text += [3, 4, 9, 1, 2]
    made.guess(text)

    assert [chances.of[kind] > prior[kind] for kind in (2, 3, 4)] == [True, True, False]
    assert chances.of[4] < prior[4]
    assert chances.of[5:] == prior[5:]  # guesses behind a wrong one say nothing


def test_another_text_is_not_what_was_guessed() -> None:
    chances = Chances()
    made = guesser(chances=chances)
    made.guess([1, 2, 3, 4, 5, 1, 2])
    made.guess([1, 2, 3, 4, 5, 1, 2, 9])

    assert chances.of == Chances().of


def test_a_kind_that_is_always_wrong_is_not_guessed_any_more() -> None:
    made, text = guesser(), list[int]()
    for i in range(200):
        text += [1, 2, 3 + i]  # what followed the last time never comes again
        made.guess(text)
        text += [1, 2]
        made.guess(text)

    assert made.tokens == []


@FEW
@given(
    text=st.lists(st.integers(0, 4), min_size=1, max_size=40),
    texts=st.lists(st.lists(st.integers(0, 4), min_size=2, max_size=8), min_size=1, max_size=6),
)
def test_every_guess_has_an_occurrence_or_the_table_behind_it(
    text: list[int], texts: list[list[int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    table = table_of(texts, tmp_path_factory.getbasetemp() / "ngrams.bin")
    made = guesser(table)
    made.guess(text)

    assert len(made.tokens) == len(made.reach) == len(made.kinds) <= MOST
    assert all(0.04 <= later <= earlier <= 1 for earlier, later in zip([1.0, *made.reach], made.reach, strict=False))
    for i, (token, kind) in enumerate(zip(made.tokens, made.kinds, strict=True)):
        before = [*text, *made.tokens[:i]]
        if kind > MAX_LENGTH:
            third, second, first = [-1, -1, *before][-3:]
            guessed, level = table.guess(third, second, first)
            assert (guessed, kind_of_level(level)) == (token, kind)
        else:
            tail = [*before[-kind:], token]
            assert any(before[start : start + len(tail)] == tail for start in range(len(before) - kind))


def test_a_chance_becomes_the_share_that_was_right() -> None:
    chances = Chances()
    for i in range(300):
        chances.judge(7, i % 4 == 0)

    assert chances.of[7] == pytest.approx(0.25, abs=0.03)
    assert [a for i, a in enumerate(chances.of) if i != 7] == [b for i, b in enumerate(Chances().of) if i != 7]


def test_what_was_long_ago_counts_less() -> None:
    chances = Chances()
    for i in range(5000):
        chances.judge(3, i < 4000)

    assert chances.of[3] < 0.2


def test_another_text_keeps_the_chances_and_changes_them_sooner() -> None:
    def learnt() -> Chances:
        chances = Chances()
        for _ in range(300):
            chances.judge(7, right=True)
        return chances

    same, other = learnt(), learnt()
    other.begin_text()

    assert other.of == same.of
    for chances in (same, other):
        for _ in range(25):
            chances.judge(7, right=False)
    assert same.of[7] > 0.9
    assert other.of[7] == pytest.approx(0.5, abs=0.01)


def test_a_chance_is_known_for_every_length_and_level() -> None:
    assert len(Chances().of) == NUM_KINDS
    assert Chances().of[0] == 0
    kinds = [kind_of_level(level) for level in range(LEVELS)]
    assert set(kinds) == set(range(MAX_LENGTH + 1, NUM_KINDS))
    assert [Chances().of[kind] for kind in kinds] == sorted(Chances().of[kind] for kind in kinds)
