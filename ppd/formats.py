"""Formats of records: which objects of JSON files are known, and what is text, a question or an answer in them."""

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ppd.errors import ArgumentError
from ppd.messages import Message, Tool, plain_message

Document = str | list[Message]
"""Text, or the messages of a conversation for the model's chat template."""


@dataclass(frozen=True, slots=True)
class Record:
    """What an object, or a text file or a line of it, holds.

    Attributes:
        document: Where there are questions and no answers, the first question alone.
        category: What the object says it belongs to, else the name of its format.
        later: The further questions.
        where: Its file and line, for messages.
        tools: What a conversation's assistant may call; None if the object names none.
    """

    document: Document
    category: str
    later: tuple[str, ...] = ()
    where: str = field(default="", compare=False)
    tools: list[Tool] | None = None


class UnusableError(ArgumentError):
    """A record of a known format cannot be used; those beside it may be."""


Read = Callable[[dict[str, Any], str], Document]
"""From an object and its place in a file, its document."""

FORMATS = (
    '{"text": …}, {"prompt": …}, {"messages": [{"role", "content"}, …]}, {"conversations": [{"from", "value"}, …]}, '
    '{"turns": [question, …]}, {"question": …} or {"instruction": …}'
)
"""The formats in words."""
_ROLES = {
    "human": "user",
    "user": "user",
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard", "model"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation"), "tool"),
}
_KEPT = ("tool_calls", "tool_call_id", "name", "reasoning_content")
"""Of a message, besides role and content."""


def read_record(record: Any, where: str) -> Record:
    """Read an object in the first format whose keys it has.

    Args:
        where: Its file and line, for errors.

    Raises:
        UnusableError: It is not as its format wants it.
        ArgumentError: It is in no known format.
    """
    if not isinstance(record, dict):
        raise ArgumentError(f"{where} is {record!r:.40}; expected {FORMATS}")
    for keys, holds, name, read in _FORMATS:
        if all(isinstance(record.get(key), holds) for key in keys):
            document = read(record, where)
            category = _text(record, "category", where) or name
            later = tuple(record["turns"][1:]) if "turns" in keys else ()
            tools = None if isinstance(document, str) else _tools(record, where)
            _require_unicode((document, category, later, tools), where)
            return Record(document, category, later, where, tools)
    raise ArgumentError(f"{where} has the keys {sorted(record)!r:.80}; expected {FORMATS}")


def _require_unicode(found: Any, where: str) -> None:
    """Refuse half a character (a lone surrogate), which JSON can write and UTF-8 cannot."""
    try:
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start : error.start + 1]
        raise UnusableError(f"{where} has half a character, {half!r}; expected text that is valid Unicode") from error


def _conversation(key: str, role: str, content: str) -> Read:
    return lambda record, where: [_message(turn, role, content, f"{where}, {key}") for turn in record[key]]


def _message(turn: Any, role: str, content: str, where: str) -> Message:
    name = turn.get(role) if isinstance(turn, dict) else None
    known = isinstance(name, str) and name.lower() in _ROLES
    if not known or (turn.get(content) is None and not turn.get("tool_calls")):
        raise UnusableError(f"{where} has the turn {turn!r:.60}; expected {role} (user, assistant, …) and {content}")
    kept = {field: turn[field] for field in _KEPT if turn.get(field)}
    try:
        return plain_message({"role": _ROLES[str(name).lower()], "content": turn.get(content), **kept})
    except ArgumentError as error:
        raise UnusableError(f"{where}: {error}") from error


def _first_turn(record: dict[str, Any], where: str) -> Document:
    turns = record["turns"]
    if not turns or not all(isinstance(turn, str) and turn.strip() for turn in turns):
        raise UnusableError(f"{where} has the turns {turns!r:.60}; expected a list of questions")
    return [{"role": "user", "content": turns[0]}]


def _answered(asks_in: tuple[str, ...], answer: str) -> Read:
    """Read a question, in one part or several, and its answer if there is one."""

    def read(record: dict[str, Any], where: str) -> Document:
        asks = "\n\n".join(filter(str.strip, (_text(record, key, where) for key in asks_in)))
        answers = _text(record, answer, where)
        parts = (("user", asks), ("assistant", answers))
        return [{"role": role, "content": text} for role, text in parts if text] if asks else []

    return read


def _tools(record: dict[str, Any], where: str) -> list[Tool] | None:
    """The tools beside the messages, as in OpenAI's format for fine-tuning; some files have that list as a text."""
    tools = record.get("tools")
    if isinstance(tools, str) and tools.strip():
        with contextlib.suppress(ValueError, RecursionError):  # refused below
            tools = json.loads(tools)
    if tools and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        raise UnusableError(f"{where} has the tools {tools!r:.60}; expected a list of objects")
    return tools or None


def _text(record: dict[str, Any], key: str, where: str) -> str:
    """A text that may be missing; "" then."""
    text = record.get(key)
    if not isinstance(text, str | None):
        raise UnusableError(f"{where} has the {key} {text!r:.40}; expected text")
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
