"""Chat: messages become text through the model's Jinja template, in the dialect that Hugging Face templates use."""

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from ppd.bundle import DEFAULT_TEMPLATE
from ppd.errors import ArgumentError, TokenizerError
from ppd.messages import Message, plain_message
from ppd.templates.renderer import RENDERER

_WITH_TOOLS = "tool_use"
"""Name of the template for tools, where a model has one of its own."""
_COMMENT, _TOOLS = re.compile(r"\{#.*?#\}", re.DOTALL), re.compile(r"\btools\b")


def plain_messages(messages: Sequence[Message]) -> list[Message]:
    """Messages as templates read them, as `plain_message` makes each.

    Raises:
        ArgumentError: A message is malformed, or there is none.
    """
    if isinstance(messages, str | bytes) or not isinstance(messages, Sequence) or not messages:
        raise ArgumentError(f"messages is {messages!r:.60}; expected a list of objects with role and content")
    return [plain_message(message) for message in messages]


def choose_template(templates: Mapping[str, str], name: object, *, with_tools: bool) -> str:
    """The template of a name; None for the one for tools where there are some, else the default one.

    Raises:
        ArgumentError: There is none of this name, or it takes no tools and some are given.
        TokenizerError: There are only others.
    """
    template = _chosen(templates, name, with_tools=with_tools)
    if with_tools and not _TOOLS.search(_COMMENT.sub("", template)):
        raise ArgumentError("the chat template takes no tools; leave them out, or use a model that was made for tools")
    return template


def _chosen(templates: Mapping[str, str], name: object, *, with_tools: bool) -> str:
    names = ", ".join(sorted(templates))
    if name is not None:
        if not isinstance(name, str) or name not in templates:
            raise ArgumentError(f"chat_template is {name!r:.60}; expected one that the bundle has: {names}")
        return templates[name]
    wanted = _WITH_TOOLS if with_tools and _WITH_TOOLS in templates else DEFAULT_TEMPLATE
    if wanted not in templates:
        raise TokenizerError(
            f"the bundle's chat templates are {names}, and none is the default: choose with "
            f'chat_template_kwargs, such as {{"chat_template": "{min(templates)}"}}'
        )
    return templates[wanted]


def render_chat(
    template: str,
    messages: Sequence[Message],
    special_tokens: Mapping[str, str],
    *,
    answer_follows: bool = True,
    variables: Mapping[str, Any] = MappingProxyType({}),
) -> str:
    """Render messages, ending where the assistant's answer begins, or where they end.

    Args:
        special_tokens: `bos_token`, `eos_token`, … as text, for the template.
        answer_follows: False renders a conversation as it is, without the beginning of another answer.
        variables: More for the template, such as `tools`.

    Returns:
        The prompt's text, special tokens included.

    Raises:
        ArgumentError: The template rejects the messages.
        TokenizerError: The template itself is broken, or takes too much time, memory or text.
    """
    given = {"tools": None, "documents": None, **special_tokens, **variables}  # templates ask whether they are none
    return RENDERER.render(template, {**given, "messages": list(messages), "add_generation_prompt": answer_follows})
