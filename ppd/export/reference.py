"""The reference: what the PyTorch decoder answers on a fixed text, computed without cache, chunks or trees."""

import numpy as np
import torch

from ppd.models.decoder import Decoder
from ppd.runtime.check import Reference

_MAX_REFERENCE_ROWS = 1024


def record_reference(decoder: Decoder, prompt_tokens: torch.Tensor, num_top_ids: int) -> Reference:
    """Run the decoder once over a fixed random text, with all prompt rows behind every token.

    Prompt row j behind position p stands at p + j and sees the text up to p and the rows 1..j-1 beside it.

    Args:
        decoder: The model, fp32.
        prompt_tokens: float32 [m, hidden].
        num_top_ids: K.

    Returns:
        The reference, with full logits.
    """
    m, vocab_size = len(prompt_tokens), decoder.config.vocab_size
    # Half the text is the prompt of the tree steps, the rest has to hold the longest path and a token after it.
    length = max(2 * (m + 4), min(64, _MAX_REFERENCE_ROWS // (1 + m)))
    ids = np.random.default_rng(0).integers(0, vocab_size, length)
    text, step = torch.arange(length), torch.arange(m)
    after = text.repeat_interleave(m)  # [T·m], the position that each prompt row hangs on
    place = step.repeat(length)  # [T·m], its number, from 0
    positions = torch.cat([text, after + 1 + place])
    mask = torch.zeros(length * (1 + m), length * (1 + m), dtype=torch.bool)
    mask[:length, :length] = text[:, None] >= text
    mask[length:, :length] = after[:, None] >= text
    mask[length:, length:] = (after[:, None] == after) & (place[:, None] >= place)
    words = decoder.embedding(torch.from_numpy(ids))
    with torch.no_grad():
        x = torch.cat([words, prompt_tokens.repeat(length, 1)])[None]
        hidden, _ = decoder(x, positions[None], mask[None, None])
        logits = decoder.logits(hidden)[0]  # [T·(1+m), V]
    by_place = torch.cat([logits[:length, None], logits[length:].view(length, m, -1)], 1)  # [T, 1+m, V]
    top = by_place.topk(min(num_top_ids + 1, vocab_size), -1)
    return Reference(ids, top.indices.numpy(), top.values.numpy(), by_place.numpy())
