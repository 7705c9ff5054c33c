"""A table of n-grams: what a model says after one, two or three of its own tokens.

The file is a hash table of 64-bit entries that is read where it lies, memory-mapped. An entry holds half of an n-gram's
hash, how sure its guess is, and the guess. Entries are found from the place that the hash's upper bits name onwards.
"""

import mmap
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ppd.errors import ArgumentError, BundleError

Hashes = npt.NDArray[np.uint64]
ORDERS = (3, 2, 1)
"""Tokens of context, the most first."""
LEVELS = 256
"""How sure a guess is comes as a whole number below this."""
_MAGIC, _HEADER = b"PPDNGRM1", struct.Struct("<8sII")
MAX_BYTES = _HEADER.size + (2 << 20)
"""Default limit of a table's size: 2 MB of entries, which are a power of two in number."""
_FACTORS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9)
_FINISH, _MASK = 0xD6E8FEB86659FD93, (1 << 64) - 1
_TOKEN_BITS = 24
_MAX_LOAD = 0.6
_LEAST_LEVEL = 26
"""Guesses that are right less often than one time in ten are left out."""


class NgramTable:
    """A table that is read where it lies.

    Raises:
        BundleError: The file is not one, or is damaged.
    """

    def __init__(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            magic, bits, vocab_size = _HEADER.unpack_from(content)
        except (OSError, ValueError, struct.error) as error:
            raise BundleError(f"{path} is not a table of n-grams ({error}); export the bundle again") from error
        if magic != _MAGIC or bits > 40 or len(content) != _HEADER.size + (8 << bits):
            raise BundleError(f"{path} is not a table of n-grams, or is cut off; export the bundle again")
        entries = np.frombuffer(content, "<u8", offset=_HEADER.size)
        # A search ends at an empty entry; and a guess is a row of the embedding.
        if np.count_nonzero(entries) > _MAX_LOAD * len(entries) or int((entries & 0xFFFFFF).max()) >= vocab_size:
            raise BundleError(f"{path} is not a table of n-grams, or is damaged; export the bundle again")
        self.vocab_size = vocab_size
        self._shift, self._last = 64 - bits, (1 << bits) - 1
        self._entries = memoryview(content)[_HEADER.size :].cast("Q")

    def guess(self, third: int, second: int, first: int) -> tuple[int, int]:
        """The surest guess after the last three tokens of a text, the very last one being `first`.

        Args:
            third: -1 where the text has no such token; so with `second`.

        Returns:
            The token and how sure it is, 0 to `LEVELS` - 1; (0, 0) if there is none.
        """
        best = token = 0
        base = first * _FACTORS[0]
        for mixed in (
            base + 1,
            base + second * _FACTORS[1] + 2,
            base + second * _FACTORS[1] + third * _FACTORS[2] + 3,
        ):
            key = mixed * _FINISH & _MASK
            place, check = key >> self._shift, key & 0xFFFFFFFF
            while entry := self._entries[place]:
                if entry >> 32 == check:
                    if entry >> _TOKEN_BITS & 0xFF >= best:
                        best, token = entry >> _TOKEN_BITS & 0xFF, entry & 0xFFFFFF
                    break
                place = place + 1 & self._last
        return token, best


def build_table(texts: Iterable[npt.NDArray[np.integer]], vocab_size: int, max_bytes: int = MAX_BYTES) -> bytes:
    """Count what follows every n-gram of some texts.

    Args:
        texts: Token ids, int [T] each.
        max_bytes: The surest and most frequent n-grams are kept.

    Raises:
        ArgumentError: There is no pair of tokens in the texts, or the vocabulary has more than 2^24 words.
    """
    if vocab_size > 1 << _TOKEN_BITS:
        raise ArgumentError(f"a table of n-grams takes up to {1 << _TOKEN_BITS} words; the vocabulary has {vocab_size}")
    parts = [np.asarray(text, np.uint64) for text in texts]
    found = [_best_guesses(parts, order) for order in reversed(ORDERS)]
    keys, tokens, levels, counts = (np.concatenate(columns) for columns in zip(*found, strict=True))
    bits = max(4, (int(len(keys) / _MAX_LOAD)).bit_length())
    while _HEADER.size + (8 << bits) > max_bytes and bits > 4:
        bits -= 1
    # A guess is worth how often it is right; ties go to the shorter n-gram, which comes first.
    order = np.argsort(-(levels * counts), kind="stable")[: int((1 << bits) * _MAX_LOAD)]
    if not len(order):
        raise ArgumentError("the texts hold no two tokens in a row; expected some answers of the model")
    table = np.zeros(1 << bits, np.uint64)
    for key, token, level in zip(keys[order].tolist(), tokens[order].tolist(), levels[order].tolist(), strict=True):
        place = key >> (64 - bits)
        while table[place]:
            place = (place + 1) & ((1 << bits) - 1)
        table[place] = (key & 0xFFFFFFFF) << 32 | level << _TOKEN_BITS | token
    return _HEADER.pack(_MAGIC, bits, vocab_size) + table.astype("<u8").tobytes()


def _best_guesses(texts: list[Hashes], order: int) -> tuple[Hashes, ...]:
    """The best guess after every n-gram of an order: its key, the token, its level, and how often it was right."""
    pairs = list(_followed(texts, order))
    if not pairs:
        return tuple(np.zeros(0, np.uint64) for _ in range(4))
    keys, tokens = (np.concatenate(column) for column in zip(*pairs, strict=True))
    by_pair = np.lexsort((tokens, keys))
    keys, tokens = keys[by_pair], tokens[by_pair]
    starts = np.flatnonzero(np.r_[True, (keys[1:] != keys[:-1]) | (tokens[1:] != tokens[:-1])])
    counts = np.diff(np.r_[starts, len(keys)])
    keys, tokens = keys[starts], tokens[starts]
    by_count = np.lexsort((-counts, keys))
    keys, tokens, counts = keys[by_count], tokens[by_count], counts[by_count]
    heads = np.flatnonzero(np.r_[True, keys[1:] != keys[:-1]])
    totals = np.add.reduceat(counts, heads)
    best = counts[heads]
    levels = ((best - 0.5) / (totals + 0.5) * (LEVELS - 1)).astype(np.uint64)
    kept = (levels >= _LEAST_LEVEL) & (keys[heads] & np.uint64(0xFFFFFFFF) > 0)
    return keys[heads][kept], tokens[heads][kept], levels[kept], best[kept].astype(np.uint64)


def _followed(texts: list[Hashes], order: int) -> Iterator[tuple[Hashes, Hashes]]:
    """Keys of the n-grams of each text, and the tokens that followed."""
    for text in texts:
        if len(text) > order:
            mixed = np.full(len(text) - order, order, np.uint64)
            for back in range(order):
                mixed += text[order - 1 - back : len(text) - 1 - back] * np.uint64(_FACTORS[back])
            yield mixed * np.uint64(_FINISH), text[order:]
