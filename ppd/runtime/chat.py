"""Chat: messages become text through the model's Jinja template, in the dialect that Hugging Face templates use."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ppd.errors import ArgumentError, TokenizerError

Message = Mapping[str, Any]


def check_messages(messages: Sequence[Message]) -> None:
    """Refuse messages that are not objects with a role and content.

    Raises:
        ArgumentError: One is not, or there is none.
    """
    if not messages:
        raise ArgumentError("messages is empty; expected at least one object with role and content")
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or "content" not in message:
            raise ArgumentError(f"a message is {message!r:.80}; expected an object with role and content")


def render_chat(template: str, messages: Sequence[Message], special_tokens: Mapping[str, str]) -> str:
    """Render messages, ending where the assistant's answer begins.

    Args:
        template: A Jinja chat template.
        messages: Objects with role and content.
        special_tokens: `bos_token`, `eos_token`, … as text, for the template.

    Returns:
        The prompt's text, special tokens included.

    Raises:
        ArgumentError: The template refuses the messages.
        TokenizerError: The template itself is broken.
    """
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().astimezone().strftime(form)
    try:
        compiled = environment.from_string(template)
        return compiled.render(messages=list(messages), add_generation_prompt=True, **special_tokens)
    except jinja2.TemplateSyntaxError as error:
        raise TokenizerError(
            f"the bundle's chat template is broken ({error}); export again with a working one"
        ) from error
    except jinja2.TemplateError as error:
        raise ArgumentError(f"the chat template refuses the messages: {error}") from error


def _refuse(message: str) -> None:
    raise jinja2.TemplateRuntimeError(message)


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)
