"""Rollouts: the model's own continuations of the data, which is what prompt tokens have to guess when they are used."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ppd.models.decoder import Decoder
from ppd.models.past import GrowingCache
from ppd.train.data import Sequences

PREFIX_LENGTHS = (32, 64, 96, 128)
"""Tokens of the data that a continuation starts from."""
_AT_ONCE = 64


def make_rollouts(
    decoder: Decoder,
    texts: Sequences,
    *,
    count: int,
    eos_ids: tuple[int, ...],
    temperature: float,
    seed: int,
    cache: Path,
    progress: Callable[[str], None] = lambda _: None,
) -> Sequences:
    """Continue the beginnings of some sequences to their full length, or read the continuations made before.

    Args:
        count: Number of rollouts, at most one per text.
        eos_ids: A continuation counts up to the first of these.
        temperature: 0 continues greedily; above, tokens are sampled.
        seed: Seed of the choice of texts and of sampling.
        cache: Folder for finished rollouts, named after the hash of model, texts and settings.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(texts), generator=generator)[:count]
    ids = texts.ids[chosen]
    prefixes = [length for length in PREFIX_LENGTHS if length <= ids.shape[1] // 2] or [max(1, ids.shape[1] // 2)]
    path = cache / f"rollouts-{_key(decoder, ids, prefixes, temperature, seed, eos_ids)}.safetensors"
    found = _read(path)
    if found is not None:
        return found
    parts: list[Sequences] = []
    for i, start in enumerate(range(0, len(ids), _AT_ONCE)):
        length = prefixes[i % len(prefixes)]
        rows = continue_texts(decoder, ids[start : start + _AT_ONCE, :length], ids.shape[1], temperature, generator)
        parts.append(Sequences(rows, torch.full((len(rows),), length - 1), _ends(rows, length, eos_ids)))
        progress(f"rollouts {min(start + _AT_ONCE, len(ids))} of {len(ids)}")
    made = Sequences(*(torch.cat([getattr(part, name) for part in parts]) for name in ("ids", "first", "end")))
    cache.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    save_file({"ids": made.ids, "first": made.first, "end": made.end}, temporary)
    temporary.replace(path)
    return made


@torch.no_grad()
def continue_texts(
    decoder: Decoder, prefixes: Tensor, length: int, temperature: float, generator: torch.Generator
) -> Tensor:
    """Continue prefixes of one length, in one batch, with a KV cache.

    Args:
        prefixes: int64 [B, P].
        length: T, tokens of the result.
        temperature: 0 for greedy.

    Returns:
        int64 [B, T] on the CPU.
    """
    device = decoder.embedding.weight.device
    batch, start = prefixes.shape
    ids = torch.zeros(batch, length, dtype=torch.int64, device=device)
    ids[:, :start] = prefixes
    done, cache = 0, GrowingCache(length)
    for new in range(start, length):
        positions = torch.arange(done, new, device=device).expand(batch, -1)
        hidden = decoder(decoder.embedding(ids[:, done:new]), positions, past=cache)
        ids[:, new] = _pick(decoder.logits(hidden[:, -1]).float(), temperature, generator)
        done = new
    return ids.cpu()


def _pick(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    if temperature == 0:
        return logits.argmax(-1)
    chances = (logits / temperature).softmax(-1).cpu()
    return torch.multinomial(chances, 1, generator=generator)[:, 0].to(logits.device)


def _ends(ids: Tensor, start: int, eos_ids: tuple[int, ...]) -> Tensor:
    """Tokens before the first EOS behind the prefix, int64 [B]: EOS is an answer, and what follows it never comes."""
    is_end = torch.isin(ids[:, start:], torch.tensor(eos_ids or (-1,)))
    first = is_end.int().argmax(1)
    return torch.where(is_end.any(1), start + first, ids.shape[1])


def _read(path: Path) -> Sequences | None:
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            return Sequences(*(file.get_tensor(name) for name in ("ids", "first", "end")))
    except (OSError, SafetensorError):
        return None  # damaged: made again


def _key(decoder: Decoder, ids: Tensor, *settings: object) -> str:
    """Content hash of the weights, the texts and the settings."""
    digest = hashlib.sha256(repr(settings).encode())
    digest.update(ids.numpy().tobytes())
    for name, weight in decoder.named_parameters():
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:24]
