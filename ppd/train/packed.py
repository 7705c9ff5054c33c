"""Packed passes: many groups of prompt rows per sequence, at the price of little more than the prompt rows themselves.

Axis letters besides `ppd.signature`'s: B sequences, T tokens of a sequence, G groups per sequence, m prompt rows of a
group. Group g hangs on position p; its prompt row j stands at p + j, sees the tokens up to p and its own rows 1..j-1.

The keys and values of the tokens do not depend on prompt tokens, so one pass without gradient gives them, and the
teacher as well. Only the prompt rows run with gradient, and none of the weights asks for one.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from ppd.models.decoder import Attention, Block, Decoder


@dataclass(frozen=True)
class Prefix:
    """What the tokens of some sequences leave for prompt rows.

    Attributes:
        kv: Per layer, keys (rotated) and values of every token, [B, H, T, D].
        hidden: Before the final norm, [B, T, hidden].
    """

    kv: list[tuple[Tensor, Tensor]]
    hidden: Tensor


@torch.no_grad()
def run_prefix(decoder: Decoder, ids: Tensor) -> Prefix:
    """One causal pass over whole sequences.

    Args:
        decoder: The model, frozen.
        ids: int64 [B, T].
    """
    x, kv = decoder.embedding(ids), []
    positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    for block in blocks_of(decoder):
        q, k, v = project(block.attention, block.attention_norm(x), decoder, positions)
        kv.append((k, v))
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + block.attention.o(merge(attended))
        x = x + block.mlp(block.mlp_norm(x))
    return Prefix(kv, x)


def run_prompt_rows(decoder: Decoder, prefix: Prefix, prompt_tokens: Tensor, hung_on: Tensor) -> Tensor:
    """The pass over prompt rows.

    Args:
        decoder: The model, frozen.
        prefix: Of the same sequences.
        prompt_tokens: [m, hidden], trained.
        hung_on: int64 [B, G], position that each group hangs on.

    Returns:
        Hidden states before the final norm, [B, G, m, hidden].
    """
    (batch, groups), m = hung_on.shape, len(prompt_tokens)
    place = torch.arange(m, device=hung_on.device)
    positions = (hung_on[..., None] + 1 + place).flatten(1)  # [B, G·m]
    tokens = torch.arange(prefix.hidden.shape[1], device=hung_on.device)
    sees_tokens = hung_on.repeat_interleave(m, 1)[..., None] >= tokens  # [B, G·m, T]
    group = torch.arange(groups, device=hung_on.device).repeat_interleave(m)
    own = place.repeat(groups)
    sees_own = (group[:, None] == group) & (own[:, None] >= own)  # [G·m, G·m]
    mask = torch.cat([sees_tokens, sees_own.expand(batch, -1, -1)], -1)[:, None]  # [B, 1, G·m, T + G·m]
    x = prompt_tokens.repeat(groups, 1).expand(batch, -1, -1)
    for block, (past_k, past_v) in zip(blocks_of(decoder), prefix.kv, strict=True):
        q, k, v = project(block.attention, block.attention_norm(x), decoder, positions)
        k, v = torch.cat([past_k, k.to(past_k.dtype)], 2), torch.cat([past_v, v.to(past_v.dtype)], 2)
        attended = functional.scaled_dot_product_attention(q.to(k.dtype), k, v, mask, enable_gqa=True)
        x = x + block.attention.o(merge(attended))
        x = x + block.mlp(block.mlp_norm(x))
    return x.view(batch, groups, m, -1)


def positions_ahead(hung_on: Tensor, num_prompt_tokens: int) -> Tensor:
    """Positions whose own answer each prompt row imitates: p + j, int64 [B, G, m]."""
    return hung_on[..., None] + 1 + torch.arange(num_prompt_tokens, device=hung_on.device)


def logits_at(decoder: Decoder, hidden: Tensor, positions: Tensor) -> Tensor:
    """Logits of the tokens at some positions, without gradient.

    Args:
        decoder: The model.
        hidden: [B, T, hidden].
        positions: int64 [B, G, m].

    Returns:
        float32 [B, G, m, V].
    """
    with torch.no_grad():
        index = positions.flatten(1)[..., None].expand(-1, -1, hidden.shape[-1])
        return decoder.logits(hidden.gather(1, index)).float().view(*positions.shape, -1)


def blocks_of(decoder: Decoder) -> list[Block]:
    """The layers, typed."""
    return [cast("Block", block) for block in decoder.blocks]


def rotate(x: Tensor, decoder: Decoder, positions: Tensor) -> Tensor:
    """Rotary embedding of [B, heads, N, D] at positions int64 [B, N], halves paired."""
    cos, sin = (table[positions][:, None].to(x.dtype) for table in (decoder.cos, decoder.sin))  # [B, 1, N, D/2]
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def project(attention: Attention, x: Tensor, decoder: Decoder, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys (rotated) and values of one layer: [B, heads, N, D] from normalised [B, N, hidden]."""

    def split(t: Tensor, heads: int) -> Tensor:
        return t.view(*t.shape[:2], heads, attention.head_dim).transpose(1, 2)

    q, k, v = attention.qkv(x).split(attention.sizes, -1)
    q = rotate(attention.q_norm(split(q, attention.heads)), decoder, positions)
    k = rotate(attention.k_norm(split(k, attention.kv_heads)), decoder, positions)
    v = split(v, attention.kv_heads)
    return q.to(v.dtype), k.to(v.dtype), v


def merge(attended: Tensor) -> Tensor:
    """[B, heads, N, D] → [B, N, heads·D]."""
    return attended.transpose(1, 2).flatten(2)
