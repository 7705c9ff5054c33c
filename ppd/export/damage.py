"""Damage: what the exported weights cost against the checkpoint's own, on a text, in PyTorch."""

from collections.abc import Callable

import torch
from tokenizers import Tokenizer
from torch import Tensor

from ppd.calibrate.calibrate import embedded_prompts
from ppd.export.weights import ExportedWeights, placeholder_decoder, streamed
from ppd.manifest import DamageInfo
from ppd.models.config import ModelConfig
from ppd.models.tokenizer import TokenizerFiles

_NUM_TOKENS = 256
_NUM_LARGE = 96
_LARGE = 200_000_000


def measure_damage(
    weights: ExportedWeights, config: ModelConfig, name: str, tokenizer: TokenizerFiles | None, num_parameters: int
) -> DamageInfo:
    """Run the text once with the checkpoint's weights and once with the exported ones, both in float32.

    Args:
        weights: Both.
        config: The shape.
        name: Of the model; it decides which embedded text is read.
        tokenizer: Its tokenizer; None for random ids.
        num_parameters: A large model reads less text.
    """
    ids, text = _text(config, name, tokenizer, _NUM_LARGE if num_parameters > _LARGE else _NUM_TOKENS)
    original, exported = (_log_probabilities(config, read, ids) for read in (weights.original, weights.exported))
    following = ids[1:, None]
    losses = [-float(log_p[:-1].gather(1, following).mean()) for log_p in (original, exported)]
    divergence = (original.exp() * (original - exported)).sum(-1)
    return DamageInfo(
        text=text,
        num_tokens=len(ids),
        perplexity_before=float(torch.tensor(losses[0]).exp()),
        perplexity=float(torch.tensor(losses[1]).exp()),
        top1_agreement=float((original.argmax(-1) == exported.argmax(-1)).double().mean()),
        mean_kl=float(divergence.mean().clamp(min=0)),
    )


def _text(config: ModelConfig, name: str, tokenizer: TokenizerFiles | None, count: int) -> tuple[Tensor, str]:
    count = min(count, config.context)
    if tokenizer is not None:
        text = "\n".join(embedded_prompts(name))
        ids = Tokenizer.from_str(tokenizer.tokenizer_json).encode(text).ids[:count]
        if len(ids) > 1 and max(ids) < config.vocab_size:
            return torch.tensor(ids), "calibration prompts"
    generator = torch.Generator().manual_seed(0)
    return torch.randint(config.vocab_size, (count,), generator=generator), "random ids"


@torch.no_grad()
def _log_probabilities(config: ModelConfig, read: Callable[[str], Tensor], ids: Tensor) -> Tensor:
    """Of every token after the text so far, float32 [T, V]."""
    count = len(ids)
    with streamed(placeholder_decoder(config, count, torch.float32), read) as decoder:
        mask = torch.ones(count, count, dtype=torch.bool).tril()[None, None]
        hidden = decoder(decoder.embedding(ids)[None], torch.arange(count)[None], mask)
        return decoder.logits(hidden)[0].log_softmax(-1)
