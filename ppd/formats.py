"""Formats of records: which objects of JSON files are known, and what is text, a question or an answer in them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ppd.errors import ArgumentError

Messages = list[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Record:
    """What an object holds.

    Attributes:
        document: Text, or messages; where there are questions and no answers, the first question alone.
        category: What the object says it belongs to, else the name of its format.
        later: The further questions.
    """

    document: str | Messages
    category: str
    later: tuple[str, ...] = ()


Read = Callable[[dict[str, Any], str], str | Messages]
"""From an object and its place in a file, its document."""

FORMATS = (
    '{"text": …}, {"prompt": …}, {"messages": [{"role", "content"}, …]}, {"conversations": [{"from", "value"}, …]}, '
    '{"turns": [question, …]}, {"question": …} or {"instruction": …}'
)
"""The formats in words."""
_ROLES = {"human": "user", "user": "user", "system": "system"} | dict.fromkeys(
    ("gpt", "assistant", "chatgpt", "bing", "bard", "model"), "assistant"
)


def read_record(record: Any, where: str) -> Record:
    """Read an object in the first format whose keys it has.

    Args:
        where: Its file and line, for errors.

    Raises:
        ArgumentError: It is in no known format, or not as its format wants it.
    """
    if not isinstance(record, dict):
        raise ArgumentError(f"{where} is {record!r:.40}; expected {FORMATS}")
    for keys, holds, name, read in _FORMATS:
        if all(isinstance(record.get(key), holds) for key in keys):
            document = read(record, where)
            category = _text(record, "category", where) or name
            return Record(document, category, tuple(record["turns"][1:]) if "turns" in keys else ())
    raise ArgumentError(f"{where} has the keys {sorted(record)!r:.80}; expected {FORMATS}")


def _conversation(key: str, role: str, content: str) -> Read:
    return lambda record, where: [_message(turn, role, content, f"{where}, {key}") for turn in record[key]]


def _message(turn: Any, role: str, content: str, where: str) -> Mapping[str, Any]:
    known = isinstance(turn, dict) and isinstance(turn.get(role), str) and turn[role] in _ROLES
    if not known or not isinstance(turn.get(content), str):
        raise ArgumentError(f"{where} has the turn {turn!r:.60}; expected {role} (user, assistant, …) and {content}")
    return {"role": _ROLES[turn[role]], "content": turn[content]}


def _first_turn(record: dict[str, Any], where: str) -> Messages:
    turns = record["turns"]
    if not turns or not all(isinstance(turn, str) and turn.strip() for turn in turns):
        raise ArgumentError(f"{where} has the turns {turns!r:.60}; expected a list of questions")
    return [{"role": "user", "content": turns[0]}]


def _answered(asks_in: tuple[str, ...], answer: str) -> Read:
    """Read a question, in one part or several, and its answer if there is one."""

    def read(record: dict[str, Any], where: str) -> Messages:
        asks = "\n\n".join(filter(str.strip, (_text(record, key, where) for key in asks_in)))
        answers = _text(record, answer, where)
        parts = (("user", asks), ("assistant", answers))
        return [{"role": role, "content": text} for role, text in parts if text] if asks else []

    return read


def _text(record: dict[str, Any], key: str, where: str) -> str:
    """A text that may be missing; "" then."""
    text = record.get(key)
    if not isinstance(text, str | None):
        raise ArgumentError(f"{where} has the {key} {text!r:.40}; expected text")
    return text or ""


_FORMATS: tuple[tuple[tuple[str, ...], type, str, Read], ...] = (
    (("text",), str, "text", lambda record, where: _text(record, "text", where)),
    (("messages",), list, "messages", _conversation("messages", "role", "content")),
    (("conversations",), list, "sharegpt", _conversation("conversations", "from", "value")),
    (("turns",), list, "spec-bench", _first_turn),
    (("question",), str, "gsm8k", _answered(("question",), "answer")),
    (("instruction",), str, "alpaca", _answered(("instruction", "input"), "output")),
    (("task_id", "prompt"), str, "humaneval", lambda record, where: _text(record, "prompt", where)),
    (("prompt",), str, "prompt", lambda record, where: _text(record, "prompt", where)),
)
"""Keys that a format is known by, what they hold, the category where a record names none, and the reader."""
