"""Data: documents as sequences of one length, conversations as prompts that end where an answer begins; held-out parts.

A document of text is cut into pieces, whose beginnings rollouts continue. Of a conversation they continue what stands
before each answer.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ppd.documents import left_out
from ppd.errors import ArgumentError
from ppd.formats import Record
from ppd.messages import Message
from ppd.train.text import TextEncoder

MIN_STARTS = 4
HELD_OUT_PERCENT = 5
_MIN_DOCUMENTS = 40
"""With fewer, pieces and prompts are held out, not documents."""
_ANSWER_SHARE = 4
"""A prompt leaves at least one in so many tokens of the length to the answer."""
_Item = TypeVar("_Item")


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


@dataclass(frozen=True)
class Part:
    """What is trained on, or what is held out.

    Attributes:
        pieces: Documents one after the other, EOS behind each, cut: int64 [S, T].
        answered: The same of conversations, up to their last answer: int64 [S, T].
        prompts: Conversations up to where an answer begins, token ids.
        num_too_long: Prompts that were left out because they leave too little room for an answer.
    """

    pieces: Tensor
    answered: Tensor
    prompts: list[list[int]]
    num_too_long: int = 0

    @property
    def text(self) -> Sequences:
        """Everything that somebody else wrote."""
        ids = torch.cat([self.pieces, self.answered])
        count, length = ids.shape
        return Sequences(ids, torch.zeros(count, dtype=torch.int64), torch.full((count,), length))

    @property
    def num_starts(self) -> int:
        """How many rollouts can begin."""
        return len(self.pieces) + len(self.prompts)


@dataclass(frozen=True)
class _Document:
    """A record as the model's template writes it.

    Attributes:
        name: The text that decides whether it is held out.
        text: A text that stands alone.
        answered: A conversation up to its last answer.
        starts: A conversation up to where each answer begins.
    """

    name: str
    text: str | None = None
    answered: str | None = None
    starts: tuple[str, ...] = ()


def split_records(
    records: Sequence[Record], encoder: TextEncoder, length: int, tell: Callable[[str], None] = lambda _: None
) -> tuple[Part, Part]:
    """Training and held-out part of the data.

    A record is held out by the hash of its text.

    Args:
        length: T, tokens of a sequence.
        tell: Called with a line on conversations that cannot be used and are left out.

    Raises:
        ArgumentError: The data is too short, or no conversation can be used.
        TokenizerError: There are conversations and no chat template, or ids without an embedding.
    """
    documents = _usable(records, encoder, tell)
    if len(documents) < _MIN_DOCUMENTS:
        whole = _part(documents, encoder, length)
        kept_pieces, kept_answered, kept_prompts = (
            _first_out(list(found)) for found in (whole.pieces, whole.answered, whole.prompts)
        )
        train, held_out = (
            Part(_stack(kept_pieces[i], length), _stack(kept_answered[i], length), kept_prompts[i], too_long)
            for i, too_long in enumerate((whole.num_too_long, 0))
        )
    else:
        chosen = [_is_held_out(document) for document in documents]
        train, held_out = (
            _part([found for found, out in zip(documents, chosen, strict=True) if out is kind], encoder, length)
            for kind in (False, True)
        )
    if train.num_starts < MIN_STARTS or not held_out.num_starts:
        num_pieces, num_prompts = (
            len(a) + len(b) for a, b in ((train.pieces, held_out.pieces), (train.prompts, held_out.prompts))
        )
        prompts = f" and {num_prompts} prompts that leave room for an answer" if num_prompts or not num_pieces else ""
        none = "" if held_out.num_starts else ", and none to hold out"
        raise ArgumentError(
            f"the data has {num_pieces} pieces of {length} tokens{prompts}{none}; expected at least {MIN_STARTS + 1}, "
            "not all of them equal: give more text, or another --length"
        )
    return train, held_out


def _usable(records: Sequence[Record], encoder: TextEncoder, tell: Callable[[str], None]) -> list[_Document]:
    """The records that can be trained on; those that the template refuses, and where no user speaks, are counted."""
    documents: list[_Document] = []
    reasons: list[str] = []
    for record in records:
        try:
            documents.append(_written(record, encoder))
        except ArgumentError as error:
            reasons.append(f"{record.where}: {error}")
    if reasons:
        line = left_out(reasons, sum(not isinstance(record.document, str) for record in records), "conversations")
        if not documents:
            raise ArgumentError(line)
        tell(line)
    return documents


def _written(record: Record, encoder: TextEncoder) -> _Document:
    if isinstance(record.document, str):
        return _Document(record.document, text=record.document)
    chat = _from_user(record.document)
    if not chat:
        raise ArgumentError("nobody asks in it; expected a user's message")
    render = partial(encoder.render, tools=record.tools)
    until = _until_last_answer(chat)
    answered = render(until, answer_follows=False) if until else None
    starts = tuple(render(start, answer_follows=True) for start in answer_starts(chat))
    last = chat[-1]["role"]
    names = {"assistant": answered, "user": starts[-1] if starts else None}
    return _Document(names.get(last) or render(chat, answer_follows=False), answered=answered, starts=starts)


def _part(documents: Sequence[_Document], encoder: TextEncoder, length: int) -> Part:
    texts = [document.text for document in documents if document.text is not None]
    answered = [document.answered for document in documents if document.answered is not None]
    prompts = encoder.encode([start for document in documents for start in document.starts], special=False)
    fitting = [prompt for prompt in prompts if 0 < len(prompt) <= longest_prompt(length)]
    return Part(
        _cut(encoder.encode(texts, special=True), encoder, length),
        _cut(encoder.encode(answered, special=False), encoder, length),
        fitting,
        len(prompts) - len(fitting),
    )


def longest_prompt(length: int) -> int:
    """Tokens of a prompt that still leaves room for an answer."""
    return length - max(1, length // _ANSWER_SHARE)


def answer_starts(messages: Sequence[Message]) -> list[list[Message]]:
    """A conversation up to every place where the assistant answers a user or a tool, or would answer a user."""
    followers = [message["role"] for message in messages[1:]]
    return [
        list(messages[: i + 1])
        for i, (message, follower) in enumerate(zip(messages, [*followers, None], strict=True))
        if (message["role"] in ("user", "tool") and follower == "assistant")
        or (message["role"] == "user" and follower is None)
    ]


def _from_user(messages: Sequence[Message]) -> list[Message]:
    """What begins with the user, as templates want it, behind a system prompt; nothing if no user speaks."""
    begin = next((i for i, message in enumerate(messages) if message["role"] == "user"), None)
    if begin is None:
        return []
    return [message for message in messages[:begin] if message["role"] == "system"][:1] + list(messages[begin:])


def _until_last_answer(messages: Sequence[Message]) -> list[Message]:
    answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    return list(messages[: answers[-1] + 1]) if answers else []


def _is_held_out(document: _Document) -> bool:
    return int(hashlib.sha256(document.name.encode()).hexdigest(), 16) % 100 < HELD_OUT_PERCENT


def _first_out(found: list[_Item]) -> tuple[list[_Item], list[_Item]]:
    """All but the first twentieth, and that, at least one."""
    split = max(1, len(found) * HELD_OUT_PERCENT // 100)
    return found[split:], found[:split]


def _cut(encoded: Sequence[Sequence[int]], encoder: TextEncoder, length: int) -> Tensor:
    """All texts one after the other, EOS behind each, in pieces: int64 [S, T]."""
    end = list(encoder.eos_ids[:1])
    ids = np.concatenate([np.zeros(0, np.int64), *(np.array([*one, *end], np.int64) for one in encoded)])
    count = len(ids) // length
    return torch.from_numpy(ids[: count * length].reshape(count, length))


def _stack(pieces: Sequence[Tensor], length: int) -> Tensor:
    return torch.stack(list(pieces)) if pieces else torch.zeros(0, length, dtype=torch.int64)
