"""Rollouts: the model's own continuations of the data, which is what prompt tokens have to guess when they are used."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ppd.models.decoder import Decoder
from ppd.train.continuing import Sampling, continue_prefixes, sampling_of
from ppd.train.data import Part, Sequences
from ppd.train.sharing import once, share_out

PREFIX_LENGTHS = (32, 64, 96, 128)
"""Tokens of a piece of text that a continuation starts from."""
_OF_ONE_LENGTH = 64
_SECONDS_BETWEEN_LINES = 30.0


@dataclass(frozen=True)
class Workshop:
    """What makes rollouts and questions.

    Attributes:
        accelerator: Its processes share the work out.
        cache: Folder for what is finished, files named after the hash of model, input and settings.
        tell: Called with a line about what was done.
    """

    decoder: Decoder
    accelerator: Accelerator
    cache: Path
    digest: str
    tell: Callable[[str], None] = lambda _: None

    def key(self, *settings: object) -> str:
        """A hash of the weights and everything else that decides what is made."""
        return hashlib.sha256(repr((self.digest, *settings)).encode()).hexdigest()[:24]

    def continue_all(
        self,
        prefixes: Sequence[Sequence[int]],
        length: int,
        stop_ids: Sequence[int],
        sampling: Sampling,
        progress: Callable[[int], None] = lambda _: None,
    ) -> list[list[int]]:
        """`continue_prefixes`, shared out over the processes."""
        num_processes = self.accelerator.num_processes
        return share_out(
            self.accelerator,
            range(len(prefixes)),
            lambda mine: continue_prefixes(
                self.decoder,
                [prefixes[i] for i in mine],
                length,
                stop_ids=stop_ids,
                sampling=sampling.take(mine),
                progress=lambda done: progress(min(len(prefixes), done * num_processes)),
            ),
        )


class Told:
    """Tells how many rollouts are made: on every call as a stage, twice a minute in a line that stays."""

    def __init__(self, name: str, count: int, stage: Callable[[str], None], tell: Callable[[str], None]) -> None:
        self._name, self._count, self._stage, self._tell = name, count, stage, tell
        self._started = self._told = time.monotonic()

    def __call__(self, done: int) -> None:
        """Tell that so many are finished."""
        line, now = f"rollouts ({self._name}): {done} of {self._count}", time.monotonic()
        self._stage(line)
        if now - self._told > _SECONDS_BETWEEN_LINES:
            self._told = now
            self._tell(f"{line} after {now - self._started:.0f} s")


def open_workshop(
    decoder: Decoder, accelerator: Accelerator, cache: Path, tell: Callable[[str], None] = lambda _: None
) -> Workshop:
    """A workshop; the weights are hashed, in the main process, which names the files."""
    digest = _digest(decoder) if accelerator.is_main_process else ""
    return Workshop(decoder, accelerator, cache, digest, tell)


def choose_prefixes(part: Part, count: int, seed: int) -> list[list[int]]:
    """What rollouts continue: prompts as they are, and beginnings of pieces.

    Args:
        count: Number of rollouts, at most one per prompt or piece.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(part.num_starts, generator=generator)[:count].tolist()
    num_pieces, length = part.pieces.shape
    lengths = [some for some in PREFIX_LENGTHS if some <= length // 2] or [max(1, length // 2)]
    return [
        part.pieces[start, : lengths[i // _OF_ONE_LENGTH % len(lengths)]].tolist()
        if start < num_pieces
        else part.prompts[start - num_pieces]
        for i, start in enumerate(chosen)
    ]


def make_rollouts(
    workshop: Workshop,
    prefixes: Sequence[Sequence[int]],
    length: int,
    *,
    temperature: float,
    seed: int,
    progress: Callable[[int], None] = lambda _: None,
) -> Sequences:
    """Continue prefixes up to EOS or a length, or read the continuations made before.

    The file has `ids` [S, T], the position `first` of each prefix's last token, and `end`: the answer is
    ids[first + 1 : end], and if it came to its end before T, ids[end] is the EOS.

    Args:
        length: T.
        temperature: 0 continues greedily; above, tokens are sampled.
        progress: Called with the number of finished ones.
    """
    eos_ids = workshop.decoder.config.eos_ids

    def make() -> Sequences:
        sampling = sampling_of(temperature, len(prefixes), length, seed)
        started = time.monotonic()
        rows = workshop.continue_all(prefixes, length, eos_ids, sampling, progress)
        num_tokens, seconds = sum(map(len, rows)) - sum(map(len, prefixes)), time.monotonic() - started
        workshop.tell(f"{len(rows)} rollouts made in {seconds:.0f} s: {num_tokens:,} tokens of answers")
        return _as_sequences(rows, prefixes, length, eos_ids)

    return once(
        workshop.accelerator,
        path=lambda: (
            workshop.cache / f"rollouts-{workshop.key(prefixes, length, temperature, seed, eos_ids)}.safetensors"
        ),
        read=_read,
        make=make,
        write=lambda made: save({"ids": made.ids, "first": made.first, "end": made.end}),
    )


def _as_sequences(
    rows: Sequence[Sequence[int]], prefixes: Sequence[Sequence[int]], length: int, eos_ids: tuple[int, ...]
) -> Sequences:
    """Rows filled up to the length. EOS is an answer, and what follows it never comes."""
    ids = np.zeros((len(rows), length), np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    ended = [len(row) > len(prefix) and row[-1] in eos_ids for row, prefix in zip(rows, prefixes, strict=True)]
    end = [len(row) - finished for row, finished in zip(rows, ended, strict=True)]
    first = [len(prefix) - 1 for prefix in prefixes]
    return Sequences(torch.from_numpy(ids), torch.tensor(first), torch.tensor(end))


def _read(path: Path) -> Sequences | None:
    try:
        with safe_open(path, framework="pt") as file:
            return Sequences(*(file.get_tensor(name) for name in ("ids", "first", "end")))
    except (OSError, SafetensorError):
        return None  # damaged: made again


def _digest(decoder: Decoder) -> str:
    """Content hash of the weights."""
    digest = hashlib.sha256()
    for name, weight in decoder.named_parameters():
        digest.update(name.encode())
        digest.update(_bytes(weight))
    return digest.hexdigest()


def _bytes(weight: Tensor) -> memoryview:
    content: memoryview = weight.detach().cpu().contiguous().view(torch.uint8).numpy().data
    return content
