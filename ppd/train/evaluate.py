"""Evaluate guesses: how often the guess of each rank at each distance is the model's own token."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppd.signature import MAX_TOP_IDS
from ppd.train.data import Sequences
from ppd.train.guessers import Guesser
from ppd.train.packed import logits_at, positions_ahead, run_prefix
from ppd.train.weights import products

SAMPLED_TEMPERATURE = 0.8
EVALUATED_AT_ONCE = 8
EVALUATED_GROUPS = 32


@dataclass(frozen=True)
class Accuracy:
    """Marginals on one set of sequences.

    Attributes:
        greedy: p[d][r], the chance that the guess of rank r at distance d is the token that greedy decoding takes
            there, float64 [m, K].
        sampled: The same for decoding at T = 0.8: the model's own chance of that guess, [m, K].
        trials: Groups that were counted.
    """

    greedy: Tensor
    sampled: Tensor
    trials: int

    def to_json(self) -> dict[str, Any]:
        """Numbers as lists."""
        return {
            "greedy": _rounded(self.greedy),
            f"T={SAMPLED_TEMPERATURE}": _rounded(self.sampled),
            "trials": self.trials,
        }


@torch.no_grad()
def evaluate(guesser: Guesser, sequences: Sequences) -> Accuracy:
    """Compare guesses with what the model itself answers behind the text so far (teacher-forced).

    Args:
        sequences: Held-out sequences: rollouts or text.
    """
    decoder, m = guesser.decoder, guesser.count
    ranks = min(MAX_TOP_IDS, decoder.config.vocab_size)
    right = torch.zeros(2, m, ranks, dtype=torch.float64)
    trials = 0
    device = decoder.embedding.weight.device
    for start in range(0, len(sequences), EVALUATED_AT_ONCE):
        some = sequences.take(torch.arange(start, min(start + EVALUATED_AT_ONCE, len(sequences))))
        hung_on, counts = spread_positions(some, m, EVALUATED_GROUPS)
        hung_on, counts = hung_on.to(device), counts.to(device)
        with products(decoder):
            prefix = run_prefix(decoder, some.ids.to(device))
            guesses = guesser.guess(prefix, hung_on).topk(ranks, -1).indices
            own = logits_at(decoder, prefix.hidden, positions_ahead(hung_on, m))  # [B, G, m, V]
        hit = guesses == own.argmax(-1, keepdim=True)
        chance = (own / SAMPLED_TEMPERATURE).softmax(-1).gather(-1, guesses)
        for kind, values in enumerate((hit, chance)):
            right[kind] += values[counts].double().sum(0).cpu()
        trials += int(counts.sum())
    return Accuracy(right[0] / max(1, trials), right[1] / max(1, trials), trials)


def spread_positions(sequences: Sequences, num_prompt_tokens: int, groups: int) -> tuple[Tensor, Tensor]:
    """Positions spread evenly over what counts of each sequence.

    Returns:
        int64 [B, G], and bool [B, G]: which of them count (a short sequence has room for none).
    """
    last = sequences.end - 1 - num_prompt_tokens  # [B], the last position with an answer for every row
    share = torch.linspace(0, 1, groups)
    positions = sequences.first[:, None] + (share * (last - sequences.first)[:, None].clamp(min=0)).long()
    counts = (last >= sequences.first)[:, None].expand_as(positions)
    limit = sequences.ids.shape[1] - 1 - num_prompt_tokens
    return positions.clamp(max=limit), counts & (positions <= limit)


def _rounded(values: Tensor) -> list[list[float]]:
    return [[round(value, 5) for value in row] for row in values.tolist()]
