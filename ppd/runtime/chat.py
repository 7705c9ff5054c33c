"""Chat: messages become text through the model's Jinja template, in the dialect that Hugging Face templates use."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ppd.bundle import DEFAULT_TEMPLATE
from ppd.errors import ArgumentError, TokenizerError
from ppd.messages import Message, plain_message

_WITH_TOOLS = "tool_use"
"""Name of the template for tools, where a model has one of its own."""


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
        ArgumentError: There is none of this name.
        TokenizerError: There are only others.
    """
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
        TokenizerError: The template itself is broken.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().astimezone().strftime(form)
    try:
        compiled = environment.from_string(template)
        given = {"tools": None, "documents": None, **special_tokens, **variables}  # templates ask whether they are none
        return compiled.render({**given, "messages": list(messages), "add_generation_prompt": answer_follows})
    except jinja2.TemplateSyntaxError as error:
        raise TokenizerError(
            f"the bundle's chat template is broken ({error}); export again with a working one"
        ) from error
    except Exception as error:  # a template is a program: it may fail on these messages in any way
        raise ArgumentError(f"the chat template refuses the messages: {error}") from error


def _refuse(message: str) -> None:
    raise jinja2.TemplateRuntimeError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The `tojson` of Hugging Face templates, which does not escape HTML as Jinja's own does."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class _Generation(Extension):
    """The `{% generation %}` block, which marks the assistant's text for training and changes nothing here."""

    tags = {"generation"}  # noqa: RUF012 - the declaration that Jinja asks for

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
