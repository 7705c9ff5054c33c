"""The decoder of the Llama family, written once: for training, as the reference, and for export.

`Decoder` computes rows: embeddings, positions and a mask in, hidden states out, after whatever past the caller brings
(`ppd.models.past`). `StepGraph` wraps it into the signature of the exported graph.
"""

import torch
from torch import Tensor, nn

from ppd.models.config import ModelConfig, Rope
from ppd.models.guess_heads import guess_heads_of
from ppd.models.linear import Linear
from ppd.models.operators import attend, rotate
from ppd.models.past import GraphCache, NoPast, Past
from ppd.models.prompt_layers import PromptLayer, PromptRows
from ppd.signature import MAX_ROWS, causal_state, max_capacity, num_states

Rotary = tuple[Tensor, Tensor, Tensor]
"""Tables of cosines and sines [positions, D/2], and the position of each row, int64 [B, N]."""


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.sizes, self.head_dim = layer, config.qkv_sizes, config.head_dim
        self.qkv = Linear(config.hidden_size, sum(self.sizes), bias=config.qkv_bias)
        self.o = Linear(config.num_heads * config.head_dim, config.hidden_size, bias=config.output_bias)
        self.q_norm = nn.RMSNorm(config.head_dim, eps=config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = nn.RMSNorm(config.head_dim, eps=config.norm_eps) if config.qk_norm else nn.Identity()

    def forward(
        self, x: Tensor, rotary: Rotary, mask: Tensor | None, past: Past, prompt_rows: PromptRows | None = None
    ) -> Tensor:
        """[B, N, hidden] → [B, N, hidden]; `mask`, `past` and `prompt_rows` as for `Decoder.forward`."""
        joined = self.qkv(x)
        if prompt_rows is not None:
            joined = prompt_rows.projected(self.layer, x, joined)
        parts = joined.split(self.sizes, -1)
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for part in parts)  # [B, heads, N, D]
        q, k = rotate(self.q_norm(q), *rotary), rotate(self.k_norm(k), *rotary)
        # Norms compute in float32 where products are narrower (autocast).
        k, v = past.extend(self.layer, k.to(v.dtype), v)
        attended = attend(q.to(v.dtype), k, v, mask)
        projected: Tensor = self.o(attended.transpose(1, 2).flatten(2))
        return projected


class MLP(nn.Module):
    """SwiGLU feed-forward."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_up = Linear(config.hidden_size, 2 * config.ffn_size, bias=config.mlp_bias)
        self.down = Linear(config.ffn_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, hidden] → [B, N, hidden]."""
        gate, up = self.gate_up(x).chunk(2, -1)
        down: Tensor = self.down(nn.functional.silu(gate) * up)
        return down


class Block(nn.Module):
    """One layer: attention and MLP, each behind an RMS norm and a residual."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.attention = Attention(config, layer)
        self.mlp_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.mlp = MLP(config)
        self.residual_multiplier = config.residual_multiplier
        self.prompt = None if config.prompt_layers is None else PromptLayer(config, config.prompt_layers)

    def forward(
        self, x: Tensor, rotary: Rotary, mask: Tensor | None, past: Past, prompt_rows: PromptRows | None = None
    ) -> Tensor:
        """As `Attention.forward`."""
        x = x + self._scaled(self.attention(self.attention_norm(x), rotary, mask, past, prompt_rows))
        added = self._scaled(self.mlp(self.mlp_norm(x)))
        if prompt_rows is not None:
            added = added + prompt_rows.vectors(self.attention.layer)
        return x + added

    def _scaled(self, x: Tensor) -> Tensor:
        return x if self.residual_multiplier == 1 else x * self.residual_multiplier


class Decoder(nn.Module):
    """Rows in, hidden states out.

    Args:
        context: Tokens that prompt and answer may fill; positions reach C rows beyond.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, config: ModelConfig, context: int) -> None:
        super().__init__()
        self.config, self.context = config, context
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.head = None if config.tied else Linear(config.hidden_size, config.vocab_size, bias=False)
        self.guess_heads = guess_heads_of(config)
        # Tables are made on the CPU whatever the default device is: a module built on "meta" gets real ones.
        cos, sin = rotary_tables(config.rope, config.head_dim, max_capacity(context))
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        mask: Tensor | None = None,
        past: Past | None = None,
        prompt_rows: PromptRows | None = None,
    ) -> Tensor:
        """Run all layers.

        Args:
            x: Embeddings [B, N, hidden].
            positions: int64 [B, N].
            mask: bool [B or 1, 1, N, columns], true where row r sees column c; the past says what the columns are.
                None is causal: the rows are the last columns, and each sees those up to its own.
            past: Keys and values of earlier rows; it may keep these. None: the columns are the rows.
            prompt_rows: Which rows are prompt rows, and what each layer gives them. None: none, or their embeddings
                are all they have.

        Returns:
            Hidden states before the final norm, [B, N, hidden].
        """
        past = NoPast() if past is None else past
        for block in self.blocks:
            x = block(x, (self.cos, self.sin, positions), mask, past, prompt_rows)
        return x

    def prompt_rows(self, places: Tensor) -> PromptRows | None:
        """The prompt rows of a pass, with this decoder's own prompt layers; None if it has none.

        Args:
            places: int64 [B, N], j for prompt row j, 0 for a row of text.
        """
        if self.config.prompt_layers is None:
            return None
        layers = (block.get_submodule("prompt") for block in self.blocks)
        return PromptRows(places, layers, self.embedding.weight.dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """Final norm and LM head: [..., hidden] → [..., V]."""
        return self.project(self.norm(hidden))

    def project(self, x: Tensor) -> Tensor:
        """The LM head alone, behind the final norm: [..., hidden] → [..., V]."""
        logits: Tensor = nn.functional.linear(x, self.embedding.weight) if self.head is None else self.head(x)
        return logits

    def answers(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """As `logits`, and what the guess heads say of the same rows: [..., R, hidden] → [..., R, V], [..., R·m, V]."""
        assert self.guess_heads is not None
        return self.guess_heads.answer(self.norm(hidden), self.project)


class StepGraph(nn.Module):
    """The decoder behind the signature of the exported graph (see `ppd.signature`).

    Args:
        num_distances: m, as many as the decoder has guess heads, if it has any; else there are prompt tokens. Their
            table and those of trees are placeholders until export folds them.
    """

    prompt_tokens: Tensor
    tree_mask: Tensor
    tree_depth: Tensor

    def __init__(self, decoder: Decoder, num_distances: int, num_top_ids: int) -> None:
        super().__init__()
        self.decoder, self.num_top_ids = decoder, num_top_ids
        states, weight = num_states(num_distances), decoder.embedding.weight
        causal_mask = torch.ones(MAX_ROWS, MAX_ROWS, dtype=torch.bool, device="cpu").tril()
        causal_depth = torch.arange(MAX_ROWS, device="cpu")
        if decoder.guess_heads is None:
            table = torch.zeros(num_distances, decoder.config.hidden_size, dtype=weight.dtype, device="cpu")
            self.register_buffer("prompt_tokens", table)
        self.register_buffer("tree_mask", causal_mask.repeat(states, 1, 1))  # [m+2, C, C]
        self.register_buffer("tree_depth", causal_depth.repeat(states, 1))  # [m+2, C]
        self.causal_state = causal_state(num_distances)

    def forward(
        self, input_ids: Tensor, state: Tensor, cache_len: Tensor, head_rows: Tensor, kv: list[Tensor]
    ) -> tuple[Tensor, ...]:
        """Run one step; `ppd.signature` gives the inputs' shapes.

        Returns:
            `top_ids` int64 [1, R, K], with guess heads [1, R·(1+m), K]; `logits` [1, R, V], and the caches
            [1, H, S, D] in the order of `kv`.
        """
        num_rows, capacity = input_ids.shape[1], kv[0].shape[2]
        # Slicing before the state is selected copies N rows of each state instead of all. No row sees one behind it, so
        # that N is no number of the mask's: in the graph it is one of the host's, which a CUDA graph could not hold.
        tree = self.tree_mask[:, :num_rows].index_select(0, state)[0]  # [N, C]
        offset = torch.arange(capacity) - cache_len  # [S]
        in_step = (offset >= 0) & (offset < MAX_ROWS)
        mask = (offset < 0) | (in_step & tree.index_select(1, offset.clamp(0, MAX_ROWS - 1)))  # [N, S]
        positions = cache_len + self.tree_depth[:, :num_rows].index_select(0, state)  # [1, N]
        cache = GraphCache(kv, cache_len)
        places = (input_ids - (self.decoder.config.vocab_size - 1)).clamp(min=0)
        prompt_rows = self.decoder.prompt_rows(places)
        hidden = self.decoder(self._embed(input_ids), positions, mask[None, None], cache, prompt_rows)
        rows = hidden.index_select(1, head_rows)
        if self.decoder.guess_heads is None:
            logits = self.decoder.logits(rows)
            return self._best(logits), logits, *cache.written
        logits, guesses = self.decoder.answers(rows)
        return torch.cat([self._best(logits), self._best(guesses)], 1), logits, *cache.written

    def _best(self, logits: Tensor) -> Tensor:
        return logits.topk(self.num_top_ids, -1).indices

    def _embed(self, input_ids: Tensor) -> Tensor:
        """Ids below V select from the embedding, V.. from the prompt tokens, if there are any."""
        if self.decoder.guess_heads is not None:
            found: Tensor = self.decoder.embedding(input_ids)
            return found
        vocab_size = self.decoder.config.vocab_size
        words = self.decoder.embedding(input_ids.clamp(max=vocab_size - 1))
        prompts = nn.functional.embedding((input_ids - vocab_size).clamp(min=0), self.prompt_tokens)
        return torch.where((input_ids < vocab_size)[..., None], words, prompts)


def rotary_tables(rope: Rope, head_dim: int, num_positions: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of every position, float32 [positions, D/2], on the CPU.

    The arithmetic is float32 in the order that the published models were trained with, so that long positions round
    alike; "llama3" is Llama 3.1's rule.
    """
    channels = torch.arange(0, head_dim, 2, dtype=torch.int64, device="cpu").float()
    frequency = 1.0 / (rope.theta ** (channels / head_dim))  # [D/2], radians per position
    if rope.scaling == "linear":
        frequency = frequency / rope.factor
    elif rope.scaling == "llama3":
        wavelength = 2 * torch.pi / frequency
        keep = (rope.original_context / wavelength - rope.low_freq_factor) / (
            rope.high_freq_factor - rope.low_freq_factor
        )
        keep = keep.clamp(0, 1)
        frequency = (1 - keep) * frequency / rope.factor + keep * frequency
    angles = torch.arange(num_positions, device="cpu").float()[:, None] * frequency
    return angles.cos(), angles.sin()
