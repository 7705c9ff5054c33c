"""The table of n-grams against counting by definition, and damage to its file."""

import struct
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ppd.errors import ArgumentError, BundleError
from ppd.ngrams import LEVELS, NgramTable, build_table
from tests.damage import flipped
from tests.strategies import FEW, MANY

HEADER = 16
SMALLEST = HEADER + 8 * 16
"""Bytes of a table of 16 entries, of which nine are used."""
TEXTS = st.lists(st.lists(st.integers(0, 5), max_size=12), min_size=1, max_size=6)
Context = tuple[int, ...]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ngrams") / "ngrams.bin"


def table_of(content: bytes, file: Path) -> NgramTable:
    file.unlink(missing_ok=True)  # a table that is read keeps its own file
    file.write_bytes(content)
    return NgramTable(file)


def built(texts: Sequence[Sequence[int]], vocab_size: int = 200, max_bytes: int = 1 << 20) -> bytes:
    return build_table([np.array(text, np.int64) for text in texts], vocab_size, max_bytes)


def counted(texts: Sequence[Sequence[int]]) -> dict[Context, tuple[int, int]]:
    """What follows each context most often, the smallest of equals, and its level; but for those seldom right."""
    followers: dict[Context, Counter[int]] = defaultdict(Counter)
    for text in texts:
        for end in range(1, len(text)):
            for size in range(1, min(3, end) + 1):
                followers[tuple(text[end - size : end])][text[end]] += 1
    found = {}
    for context, counts in followers.items():
        token, count = min(counts.items(), key=lambda item: (-item[1], item[0]))
        level = int((count - 0.5) / (counts.total() + 0.5) * (LEVELS - 1))
        if level >= LEVELS / 10:
            found[context] = token, level
    return found


@MANY
@given(texts=TEXTS)
@example(texts=[[1, 2, 3, 4], [0, 2, 3, 5], [1, 2, 3, 4], [2, 3, 5], [2, 3, 5]])  # the longer context knows better
@example(texts=[[0, i] for i in range(6)] * 3 + [[0, 1, 2]])  # what is right one time in six, and less often
def test_the_surest_guess_of_three_contexts_is_given(texts: list[list[int]], file: Path) -> None:
    expected = counted(texts)
    if not expected:
        return
    table = table_of(built(texts), file)

    for context in np.ndindex(6, 6, 6):
        levels = [expected.get(context[2 - size :], (0, 0)) for size in range(3)]
        best = max(level for _, level in levels)
        longest = [token for token, level in levels if level == best][-1]
        assert table.guess(*context) == (longest, best)


def test_what_was_never_seen_is_not_guessed(file: Path) -> None:
    table = table_of(built([[1, 2, 3, 4]] * 3), file)

    assert table.guess(7, 7, 3) == (4, 182)
    assert table.guess(7, 7, 7) == table.guess(1, 2, 7) == (0, 0)


def test_the_guesses_that_are_right_most_often_stay_where_room_is_short(file: Path) -> None:
    often = [[i, i + 100] for i in range(12) for _ in range(3 + i)]
    often += [[11, 99]] * 5  # less sure than those that are right three times
    content = built(often, max_bytes=SMALLEST)
    table = table_of(content, file)

    assert len(content) == SMALLEST
    assert [i for i in range(12) if table.guess(0, 0, i) != (0, 0)] == list(range(3, 12))
    assert len(built(often, max_bytes=2 * SMALLEST - HEADER)) == 2 * SMALLEST - HEADER


def test_of_equal_guesses_the_shorter_contexts_stay(file: Path) -> None:
    texts = [[10 * i + j for j in range(1, 5)] for i in range(6)]
    table = table_of(built(texts, max_bytes=SMALLEST), file)

    assert sum(table.guess(199, 199, token) != (0, 0) for text in texts for token in text) == 9


def test_the_vocabulary_is_kept_and_has_a_limit(file: Path) -> None:
    most = 1 << 24
    table = table_of(built([[1, most - 1]], most), file)

    assert table.vocab_size == most
    assert table.guess(0, 0, 1)[0] == most - 1
    with pytest.raises(ArgumentError, match="the vocabulary has 16777217"):
        built([[1, 2]], most + 1)


@pytest.mark.parametrize("texts", [[], [[]], [[5]], [[5], [6], []]])
def test_texts_without_two_tokens_in_a_row_are_refused(texts: list[list[int]]) -> None:
    with pytest.raises(ArgumentError, match="no two tokens in a row"):
        built(texts)


CONTENT = built([[i, i + 1, i + 2, i + 3] for i in range(8)], vocab_size=16)


def entries(*values: int, vocab_size: int = 16) -> bytes:
    """A table of these entries."""
    bits = len(values).bit_length() - 1
    return struct.pack(f"<8sII{len(values)}Q", b"PPDNGRM1", bits, vocab_size, *values)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        CONTENT[:10],
        CONTENT[:HEADER],
        CONTENT[:-1],
        CONTENT + b"\0",
        flipped(CONTENT, 0),
        flipped(CONTENT, 8),
        b"PK\x03\x04" + CONTENT[4:],
        struct.pack("<8sII", b"PPDNGRM1", 2**32 - 1, 16),
        entries(1),
        entries(*[1 << 32] * 16),  # no empty entry, at which a search ends
        entries(*[1 << 32] * 11, *[0] * 5),
        entries(1 << 32 | 200 << 24 | 16, *[0] * 15),  # a token that is not in the vocabulary
        entries(*[0] * 16, vocab_size=0),
    ],
    ids=lambda content: f"{len(content)} bytes",
)
def test_what_is_not_a_table_is_refused_in_one_line(content: bytes, file: Path) -> None:
    with pytest.raises(
        BundleError, match=r"ngrams\.bin is not a table of n-grams.*; export the bundle again"
    ) as caught:
        table_of(content, file)
    assert "\n" not in str(caught.value)


def test_a_folder_or_nothing_is_refused_in_one_line(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(BundleError, match="is not a table of n-grams"):
            NgramTable(path)


@FEW
@given(data=st.data())
def test_a_damaged_table_is_refused_or_guesses_words_only(data: st.DataObject, file: Path) -> None:
    changed = bytearray(CONTENT)
    for _ in range(data.draw(st.integers(1, 40))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    size = data.draw(st.just(len(changed)) | st.integers(0, len(changed)))
    try:
        table = table_of(bytes(changed[:size]), file)
    except BundleError:
        return
    assert size == len(CONTENT)
    for context in np.ndindex(4, 4, 12):
        token, level = table.guess(*context)
        assert 0 <= token < table.vocab_size
        assert 0 <= level < LEVELS
