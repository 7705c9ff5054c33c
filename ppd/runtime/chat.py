"""Chat: messages become text through the model's Jinja template, in the dialect that Hugging Face templates use."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ppd.documents import Message
from ppd.errors import ArgumentError, TokenizerError


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
        return compiled.render(messages=list(messages), add_generation_prompt=answer_follows, **special_tokens)
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
