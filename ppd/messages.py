"""Messages: what a conversation consists of, in the shapes that people have them and in the one that is read on."""

from collections.abc import Mapping, Sequence
from typing import Any

from ppd.errors import ArgumentError

Message = Mapping[str, Any]
"""One message of a conversation: an object with role and content."""

Tool = Mapping[str, Any]
"""What an assistant may call: an object as in OpenAI's interface."""

_TEXT_PARTS = ("text", "input_text", "output_text")


def plain_message(message: Any) -> Message:
    """A message whose content is text, or an object, such as a tool's result.

    A list of text parts becomes one text. Nothing beside tool calls, and null of an assistant, becomes no text.

    Raises:
        ArgumentError: It is not an object with a role and content, or a part of its content is not text.
    """
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise ArgumentError(f"a message is {message!r:.80}; expected an object with role and content")
    content = message.get("content")
    if isinstance(content, str | Mapping):
        return message
    if isinstance(content, list | tuple):
        return {**message, "content": "\n".join(map(_part, content))}
    is_empty = bool(message.get("tool_calls")) or (message["role"] == "assistant" and "content" in message)
    if content is not None or not is_empty:
        raise ArgumentError(f"a message is {message!r:.80}; expected an object with role and content, a text")
    return {**message, "content": ""}


def asked(messages: Sequence[Message]) -> tuple[list[Message], tuple[str, ...]]:
    """What a user asks in a conversation, whose answers are left out.

    Returns:
        The first question, behind the system prompt if there is one (empty where nothing is asked); and the later ones.
    """
    questions = [i for i, message in enumerate(messages) if message["role"] == "user"]
    if not questions:
        return [], ()
    before = [message for message in messages[: questions[0]] if message["role"] == "system"]
    return [*before, messages[questions[0]]], tuple(messages[i]["content"] for i in questions[1:])


def _part(part: Any) -> str:
    text = part.get("text") if isinstance(part, Mapping) and part.get("type") in _TEXT_PARTS else part
    if not isinstance(text, str):
        kind = part.get("type", part) if isinstance(part, Mapping) else part
        raise ArgumentError(f"a message has a part {kind!r:.40}; expected parts of type text: a model here reads text")
    return text
