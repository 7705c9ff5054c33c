"""Sequences: documents as token ids, cut to one length; a part of them held out."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from ppd.documents import Document, read_documents
from ppd.errors import ArgumentError, TokenizerError
from ppd.models.config import ModelConfig
from ppd.models.hub import ModelSource
from ppd.models.tokenizer import read_tokenizer
from ppd.runtime.chat import render_chat

MIN_SEQUENCES = 4
_HELD_OUT_PERCENT = 5
_MIN_DOCUMENTS = 40
"""With fewer, sequences are held out, not documents."""
_DOCUMENTS_AT_ONCE = 512


@dataclass(frozen=True)
class Sequences:
    """Sequences of one length, and where prompt rows may hang.

    Attributes:
        ids: int64 [S, T].
        first: int64 [S], the first position that a group may hang on.
        end: int64 [S], tokens that count; a group's rows and their answers lie before it.
    """

    ids: Tensor
    first: Tensor
    end: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, index: Tensor) -> "Sequences":
        """The sequences at these indices."""
        return Sequences(self.ids[index], self.first[index], self.end[index])


def read_sequences(
    source: ModelSource, config: ModelConfig, paths: Sequence[Path], length: int
) -> tuple[Sequences, Sequences]:
    """Training and held-out sequences of the data.

    Documents, each with the special tokens that the tokenizer adds and EOS behind it, stand one after the other and are
    cut into pieces of `length` tokens. A document is held out by the hash of its text.

    Args:
        source: Its tokenizer and chat template are used.
        paths: As for `read_documents`.

    Raises:
        ArgumentError: The data cannot be read, or is too short.
        TokenizerError: The model has no tokenizer, no chat template for conversations, or no embedding for some of the
            tokenizer's ids.
    """
    files = read_tokenizer(source.path, source.entry)
    if files is None:
        raise TokenizerError(f"{source.name} has no tokenizer; put its tokenizer.json beside config.json")
    tokenizer = Tokenizer.from_str(files.tokenizer_json)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    documents = read_documents(paths)
    texts = [_as_text(document, files.chat_template, files.special_tokens) for document in documents]
    held_out = [_is_held_out(text) for text in texts]
    if len(texts) < _MIN_DOCUMENTS:
        train = _cut(_encode(tokenizer, texts, config, source), length)
        split = max(1, len(train) * _HELD_OUT_PERCENT // 100)
        parts = train[split:], train[:split]
    else:
        chosen = ([t for t, out in zip(texts, held_out, strict=True) if out is kind] for kind in (False, True))
        parts = tuple(_cut(_encode(tokenizer, some, config, source), length) for some in chosen)  # type: ignore[assignment]
    if len(parts[0]) < MIN_SEQUENCES or not len(parts[1]):
        raise ArgumentError(
            f"the data has {sum(map(len, parts))} pieces of {length} tokens; expected at least {MIN_SEQUENCES + 1}: "
            "give more text, or a smaller --length"
        )
    return _whole(parts[0]), _whole(parts[1])


def _whole(ids: Tensor) -> Sequences:
    count, length = ids.shape
    return Sequences(ids, torch.zeros(count, dtype=torch.int64), torch.full((count,), length))


def _as_text(document: Document, template: str | None, special_tokens: dict[str, str]) -> tuple[str, bool]:
    """Text, and whether the tokenizer adds its special tokens (a chat template brings them)."""
    if isinstance(document, str):
        return document, True
    if template is None:
        raise TokenizerError("the data has conversations and the model has no chat template; give plain text")
    # A conversation often opens with the assistant; templates want the user first.
    roles = [message["role"] for message in document]
    begin = next((i for i, role in enumerate(roles) if role == "user"), len(roles))
    messages = [message for message in document[:begin] if message["role"] == "system"][:1] + document[begin:]
    try:
        return render_chat(template, messages, special_tokens, answer_follows=roles[-1] == "user"), False
    except ArgumentError as error:
        raise ArgumentError(f"a conversation of {len(messages)} messages: {error}; leave it out, or fix it") from error


def _is_held_out(text: tuple[str, bool]) -> bool:
    return int(hashlib.sha256(text[0].encode()).hexdigest(), 16) % 100 < _HELD_OUT_PERCENT


def _encode(
    tokenizer: Tokenizer, texts: Sequence[tuple[str, bool]], config: ModelConfig, source: ModelSource
) -> np.ndarray:
    """All texts one after the other, EOS behind each: int64 [tokens]."""
    end = list(config.eos_ids[:1])
    parts = [np.zeros(0, np.int64)]
    for special in (True, False):
        some = [text for text, adds in texts if adds is special]
        for start in range(0, len(some), _DOCUMENTS_AT_ONCE):
            encoded = tokenizer.encode_batch(some[start : start + _DOCUMENTS_AT_ONCE], add_special_tokens=special)
            parts += [np.array([*e.ids, *end], np.int64) for e in encoded]
    ids = np.concatenate(parts)
    if len(ids) and ids.max() >= config.vocab_size:
        raise TokenizerError(
            f"the tokenizer of {source.name} gives id {ids.max()}, the model has {config.vocab_size} embeddings; "
            "use the tokenizer that belongs to it"
        )
    return ids


def _cut(ids: np.ndarray, length: int) -> Tensor:
    count = len(ids) // length
    return torch.from_numpy(ids[: count * length].reshape(count, length))
