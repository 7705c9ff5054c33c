"""Packed passes: many groups of prompt rows per sequence, at the price of little more than the prompt rows themselves.

Axis letters besides `ppd.signature`'s: B sequences, T tokens of a sequence, G groups per sequence, m prompt rows of a
group. Group g hangs on position p; its prompt row j stands at p + j, sees the tokens up to p and its own rows 1..j-1.

The keys and values of the tokens do not depend on prompt tokens, so one pass without gradient gives them, and the
teacher as well. Only the prompt rows run with gradient, and no weight requires one.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ppd.models.decoder import Decoder
from ppd.models.past import GrowingCache, SharedPrefix
from ppd.models.prompt_layers import PromptRows


@dataclass(frozen=True)
class Prefix:
    """What the tokens of some sequences leave for prompt rows.

    Attributes:
        ids: The tokens, int64 [B, T].
        cache: Keys and values of every token.
        hidden: Hidden states before the final norm, [B, T, hidden].
    """

    ids: Tensor
    cache: GrowingCache
    hidden: Tensor


@torch.no_grad()
def run_prefix(decoder: Decoder, ids: Tensor) -> Prefix:
    """One causal pass over whole sequences, int64 [B, T]."""
    cache = GrowingCache(ids.shape[1])
    positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    return Prefix(ids, cache, decoder(decoder.embedding(ids).float(), positions, past=cache))


def run_prompt_rows(
    decoder: Decoder, prefix: Prefix, prompt_tokens: Tensor, hung_on: Tensor, layers: Iterable[nn.Module] = ()
) -> Tensor:
    """The pass over prompt rows.

    Args:
        prompt_tokens: [m, hidden], trained.
        hung_on: int64 [B, G], position that each group hangs on.
        layers: Prompt layers, one for each layer of the model; none where embeddings are all that is trained.

    Returns:
        Hidden states before the final norm, [B, G, m, hidden].
    """
    (batch, groups), m = hung_on.shape, len(prompt_tokens)
    positions = positions_ahead(hung_on, m).flatten(1)  # [B, G·m]
    tokens = torch.arange(prefix.hidden.shape[1], device=hung_on.device)
    sees_tokens = hung_on.repeat_interleave(m, 1)[..., None] >= tokens  # [B, G·m, T]
    row = torch.arange(groups * m, device=hung_on.device)
    sees_own = (row[:, None] // m == row // m) & (row[:, None] >= row)  # [G·m, G·m]
    mask = torch.cat([sees_tokens, sees_own.expand(batch, -1, -1)], -1)[:, None]  # [B, 1, G·m, T + G·m]
    x = prompt_tokens.repeat(groups, 1).expand(batch, -1, -1)
    places = row.expand(batch, -1) % m + 1
    made = list(layers)
    prompt_rows = PromptRows(places, made, x.dtype) if made else None
    hidden: Tensor = decoder(x, positions, mask, SharedPrefix(prefix.cache), prompt_rows)
    return hidden.view(batch, groups, m, -1)


def positions_ahead(hung_on: Tensor, num_prompt_tokens: int) -> Tensor:
    """Where each prompt row stands, and whose own answer it imitates: p + j, int64 [B, G, m]."""
    return hung_on[..., None] + 1 + torch.arange(num_prompt_tokens, device=hung_on.device)


def logits_at(decoder: Decoder, hidden: Tensor, positions: Tensor) -> Tensor:
    """Logits of the tokens at some positions, without gradient.

    Args:
        hidden: [B, T, hidden].
        positions: int64 [B, G, m].

    Returns:
        float32 [B, G, m, V].
    """
    with torch.no_grad():
        return decoder.logits(rows_at(hidden, positions)).float()


def rows_at(hidden: Tensor, positions: Tensor) -> Tensor:
    """Hidden states [B, T, hidden] at some positions, int64 [B, …]: [B, …, hidden]."""
    index = positions.flatten(1)[..., None].expand(-1, -1, hidden.shape[-1])
    return hidden.gather(1, index).view(*positions.shape, -1)
