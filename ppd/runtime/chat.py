"""Chat: messages become text through the model's Jinja template, in the dialect that Hugging Face templates use."""

from collections.abc import Mapping, Sequence

from ppd.documents import Message
from ppd.errors import ArgumentError
from ppd.templates.renderer import RENDERER


def check_messages(messages: Sequence[Message]) -> None:
    """Refuse messages that are not objects with a role and content.

    Raises:
        ArgumentError: A message is malformed, or there is none.
    """
    if isinstance(messages, str | bytes) or not isinstance(messages, Sequence) or not messages:
        raise ArgumentError(f"messages is {messages!r:.60}; expected a list of objects with role and content")
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or "content" not in message:
            raise ArgumentError(f"a message is {message!r:.80}; expected an object with role and content")


def render_chat(
    template: str, messages: Sequence[Message], special_tokens: Mapping[str, str], *, answer_follows: bool = True
) -> str:
    """Render messages, ending where the assistant's answer begins, or where they end.

    Args:
        special_tokens: `bos_token`, `eos_token`, … as text, for the template.
        answer_follows: False renders a conversation as it is, without the beginning of another answer.

    Returns:
        The prompt's text, special tokens included.

    Raises:
        ArgumentError: The template rejects the messages.
        TokenizerError: The template itself is broken, or takes too much time, memory or text.
    """
    variables = {**special_tokens, "messages": list(messages), "add_generation_prompt": answer_follows}
    return RENDERER.render(template, variables)
