"""Continuing: what the model itself puts behind some prefixes, many at a time.

Prefixes of similar length form a batch, padded on the left. What all of them begin with runs once. Rows that are
finished leave the batch, so that a row costs what its own text is long.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ppd.models.decoder import Decoder
from ppd.models.past import GrowingCache
from ppd.train.memory import rollouts_at_once
from ppd.train.weights import products

_NUCLEUS = 1024
"""So many of the likeliest tokens at most are drawn from where `top_p` is below 1."""


@dataclass(frozen=True)
class Sampling:
    """How a token is picked. With temperature 0 the likeliest is.

    Attributes:
        top_p: Only the likeliest tokens that together have this chance are drawn from.
        draws: float32 [prefixes, T], uniform in [0, 1): the token at position t of prefix i depends on [i, t] alone,
            whatever batch or process it falls into. None with temperature 0.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    draws: Tensor | None = None

    def take(self, index: Sequence[int]) -> "Sampling":
        """For some of the prefixes."""
        draws = None if self.draws is None else self.draws[torch.tensor(index, dtype=torch.int64)]
        return Sampling(self.temperature, self.top_p, draws)

    def pick(self, logits: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
        """The next token of some rows.

        Args:
            logits: float32 [B, V].
            rows: int64 [B], the prefix that each row continues.
            positions: int64 [B], where the token will stand.
        """
        if self.draws is None:
            return logits.argmax(-1)
        last = self.draws.shape[1] - 1  # a finished row that has not left yet stands behind it
        draw = self.draws[rows.cpu(), positions.cpu().clamp(max=last)].to(logits.device)[:, None]
        chances, ids = (logits / self.temperature).softmax(-1), None
        if self.top_p < 1:
            chances, ids = chances.topk(min(_NUCLEUS, chances.shape[-1]), -1)
            chances = chances * (chances.cumsum(-1) - chances < self.top_p)
        below = chances.cumsum(-1)
        total = below[:, -1:]
        index = torch.minimum((below <= draw * total).sum(-1), (below < total).sum(-1))[:, None]
        return (index if ids is None else ids.gather(-1, index))[:, 0]


GREEDY = Sampling()


def sampling_of(temperature: float, count: int, length: int, seed: int, *, top_p: float = 1.0) -> Sampling:
    """The draws that a seed gives for `count` prefixes."""
    if temperature == 0:
        return GREEDY
    return Sampling(temperature, top_p, torch.rand(count, length, generator=torch.Generator().manual_seed(seed)))


@torch.no_grad()
def continue_prefixes(
    decoder: Decoder,
    prefixes: Sequence[Sequence[int]],
    length: int,
    *,
    stop_ids: Sequence[int] = (),
    sampling: Sampling = GREEDY,
    progress: Callable[[int], None] = lambda _: None,
) -> list[list[int]]:
    """Continue prefixes up to a stop id or a length.

    Args:
        prefixes: Each shorter than `length`.
        length: T, tokens of prefix and continuation together.
        progress: Called after every step with the number of finished ones.

    Returns:
        Prefix and continuation of each; a stop id is kept as the last one.
    """
    order = sorted(range(len(prefixes)), key=lambda i: len(prefixes[i]))
    weight = decoder.embedding.weight
    at_once = rollouts_at_once(decoder.config, length, weight.dtype.itemsize, weight.device)
    made: dict[int, list[int]] = {}
    for start in range(0, len(order), at_once):
        some = order[start : start + at_once]
        with products(decoder):
            batch = _continue(
                decoder,
                [prefixes[i] for i in some],
                length,
                stop_ids,
                sampling.take(some),
                partial(_add, progress, start),
            )
        made |= zip(some, batch, strict=True)
    return [made[i] for i in range(len(prefixes))]


def _continue(
    decoder: Decoder,
    prefixes: list[Sequence[int]],
    length: int,
    stop_ids: Sequence[int],
    sampling: Sampling,
    progress: Callable[[int], None],
) -> list[list[int]]:
    """One batch. Slot i holds the row of prefix `rows[i]`, `pads[i]` columns behind the shared ones are empty."""
    device = decoder.embedding.weight.device
    lengths = torch.tensor([len(prefix) for prefix in prefixes], device=device)
    shared, longest = _shared_length(prefixes), int(lengths.max())
    pads = longest - lengths
    stops = torch.tensor(tuple(stop_ids) or (-1,), device=device)
    cache = GrowingCache(longest + length - int(lengths.min()))
    hidden = _prefill(decoder, prefixes, shared, pads, cache)
    made = [list(prefix) for prefix in prefixes]
    rows, columns = torch.arange(len(prefixes), device=device), longest
    goes_on = torch.ones_like(rows, dtype=torch.bool)
    while True:
        tokens = sampling.pick(decoder.logits(hidden).float(), rows, lengths)
        for row, token in zip(rows[goes_on].tolist(), tokens[goes_on].tolist(), strict=True):
            made[row].append(token)
        lengths, columns = lengths + goes_on, columns + 1
        goes_on = goes_on & ~torch.isin(tokens, stops) & (lengths < length)
        num_left = int(goes_on.sum())
        progress(len(prefixes) - num_left)
        if not num_left:
            return made
        if (size := _batch_size(num_left)) < len(rows):
            kept = _filled_up(goes_on, size)
            cache.keep(kept)
            rows, lengths, pads, tokens, goes_on = (found[kept] for found in (rows, lengths, pads, tokens, goes_on))
        mask = _visible(torch.arange(columns, device=device), shared, pads)[:, None, None] if pads.any() else None
        x = decoder.embedding(tokens[:, None]).float()
        hidden = decoder(x, lengths[:, None] - 1, mask, cache)[:, 0]


def _add(progress: Callable[[int], None], before: int, done: int) -> None:
    progress(before + done)


def _prefill(decoder: Decoder, prefixes: list[Sequence[int]], shared: int, pads: Tensor, cache: GrowingCache) -> Tensor:
    """Read the prefixes: what they share once, the rest padded on the left; hidden states of the last, [B, hidden]."""
    device, longest = pads.device, max(map(len, prefixes))
    if shared:
        ids = torch.tensor([prefixes[0][:shared]], device=device)
        decoder(decoder.embedding(ids).float(), torch.arange(shared, device=device)[None], past=cache)
        cache.repeat(len(prefixes))
    ids = torch.tensor([[0] * (longest - len(prefix)) + list(prefix[shared:]) for prefix in prefixes], device=device)
    columns = torch.arange(longest, device=device)
    own = columns[shared:]
    mask = None
    if pads.any():
        mask = _visible(columns, shared, pads)[:, None] & (columns <= own[:, None])  # [B, rows, columns]
        mask = (mask | (columns == own[:, None]))[:, None]  # padding sees itself, or its softmax would be no number
    positions = (own - pads[:, None]).clamp(min=0)
    hidden: Tensor = decoder(decoder.embedding(ids).float(), positions, mask, cache)
    return hidden[:, -1]


def _visible(columns: Tensor, shared: int, pads: Tensor) -> Tensor:
    """Which columns are not padding, bool [B, columns]."""
    return (columns < shared) | (columns >= shared + pads[:, None])


def _shared_length(prefixes: list[Sequence[int]]) -> int:
    """Tokens that all begin with; at least one is left to each."""
    limit = min(map(len, prefixes)) - 1
    first = prefixes[0]
    return next((i for i in range(limit) if any(prefix[i] != first[i] for prefix in prefixes)), limit)


def _batch_size(count: int) -> int:
    """The size of a batch for so many rows: an eighth more at most, for kernels are prepared for every new size."""
    unit: int = 2 ** max(0, count.bit_length() - 4)
    return -(-count // unit) * unit


def _filled_up(goes_on: Tensor, size: int) -> Tensor:
    """Which slots go on in a smaller batch, int64 [size]: those behind it take places of finished rows inside it."""
    index = torch.arange(size, device=goes_on.device)
    behind = torch.nonzero(goes_on[size:])[:, 0] + size
    index[torch.nonzero(~goes_on[:size])[: len(behind), 0]] = behind
    return index
