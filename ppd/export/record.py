"""The reference: what the PyTorch decoder answers on a fixed text, computed without cache, chunks or trees."""

import numpy as np
import torch

from ppd.errors import ModelError
from ppd.models.decoder import Decoder
from ppd.runtime.recording import Recording, recording_length

_MAX_ROWS_AT_ONCE = 1024
_MAX_LOGITS_BYTES = 1 << 29


def record(decoder: Decoder, prompt_tokens: torch.Tensor | None, num_top_ids: int) -> Recording:
    """Run the decoder over a fixed random text, with all prompt rows or guess heads behind every token.

    Prompt row j behind position p stands at p + j and sees the text up to p and the rows 1..j-1 beside it.

    Args:
        decoder: In fp32.
        prompt_tokens: float32 [m, hidden]; None where the decoder has guess heads.

    Returns:
        The reference, with full logits unless they would take over half a gigabyte.

    Raises:
        ModelError: The model's outputs are not finite.
    """
    heads, vocab_size = decoder.guess_heads, decoder.config.vocab_size
    m = heads.count if heads is not None else 0 if prompt_tokens is None else len(prompt_tokens)
    length = recording_length(m)
    ids = np.random.default_rng(0).integers(0, vocab_size, length)
    num_kept = min(num_top_ids + 1, vocab_size)
    keep_logits = length * (1 + m) * vocab_size * 4 <= _MAX_LOGITS_BYTES
    top_ids, top_logits, logits = [], [], []
    num_at_once = max(1, (_MAX_ROWS_AT_ONCE - length) // m)
    for start in range(0, length, num_at_once):
        hung_on = torch.arange(start, min(start + num_at_once, length))
        if prompt_tokens is None:
            answers = _answers_of_heads(decoder, torch.from_numpy(ids), hung_on)  # [P, 1+m, V]
        else:
            answers = _answers(decoder, torch.from_numpy(ids), hung_on, prompt_tokens)
        if not bool(answers.isfinite().all()):
            raise ModelError(
                "the model answers NaN or infinity in PyTorch itself; the checkpoint is damaged: get it again"
            )
        top = answers.topk(num_kept, -1)
        top_ids.append(top.indices.numpy())
        top_logits.append(top.values.numpy())
        logits += [answers.numpy()] if keep_logits else []
    full = np.concatenate(logits) if keep_logits else None
    return Recording(ids, np.concatenate(top_ids), np.concatenate(top_logits), full)


def _answers(decoder: Decoder, ids: torch.Tensor, hung_on: torch.Tensor, prompt_tokens: torch.Tensor) -> torch.Tensor:
    """Logits of some positions of the text and of the prompt rows behind them, in one forward pass without a cache.

    Args:
        ids: int64 [T], the text.
        hung_on: int64 [P], positions that prompt rows hang on.
        prompt_tokens: float32 [m, hidden].

    Returns:
        [P, 1+m, V].
    """
    length, m = len(ids), len(prompt_tokens)
    text = torch.arange(length)
    after = hung_on.repeat_interleave(m)  # [P·m], the position that each prompt row hangs on
    place = torch.arange(m).repeat(len(hung_on))  # [P·m], its number, from 0
    num_rows = length + len(after)
    mask = torch.zeros(num_rows, num_rows, dtype=torch.bool)
    mask[:length, :length] = text[:, None] >= text
    mask[length:, :length] = after[:, None] >= text
    mask[length:, length:] = (after[:, None] == after) & (place[:, None] >= place)
    positions = torch.cat([text, after + 1 + place])
    with torch.no_grad():
        x = torch.cat([decoder.embedding(ids), prompt_tokens.repeat(len(hung_on), 1)])[None]
        places = torch.cat([torch.zeros_like(text), place + 1])
        hidden = decoder(x, positions[None], mask[None, None], prompt_rows=decoder.prompt_rows(places[None]))
        rows = torch.cat([hidden[0, hung_on, None], hidden[0, length:].view(len(hung_on), m, -1)], 1)
        return decoder.logits(rows)


@torch.no_grad()
def _answers_of_heads(decoder: Decoder, ids: torch.Tensor, hung_on: torch.Tensor) -> torch.Tensor:
    """As `_answers`, with the guess heads of those positions in place of prompt rows."""
    length = len(ids)
    mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
    hidden = decoder(decoder.embedding(ids)[None], torch.arange(length)[None], mask)
    logits, guesses = decoder.answers(hidden[0, hung_on])
    return torch.cat([logits[:, None], guesses.view(len(hung_on), -1, logits.shape[-1])], 1)
