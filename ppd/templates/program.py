"""The program that renders chat templates: a process of its own, so that a template that loops or grows can be stopped.

It reads requests from standard input and answers on standard output. It imports Jinja and little else, so that it
starts in a twentieth of a second.
"""

import contextlib
import functools
import io
import json
import signal
import sys
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ppd.templates.frames import BROKEN, LIMIT, REFUSED, TEXT, frame_of, read_frame

_MAX_REASON = 300


class _Generation(Extension):
    """The `{% generation %}` block, which marks the assistant's text for training and changes nothing here."""

    tags = {"generation"}  # noqa: RUF012 - the declaration that Jinja asks for

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


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


@functools.lru_cache(maxsize=8)
def _compiled(template: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().astimezone().strftime(form)
    return environment.from_string(template)


def _render(template: str, variables: dict[str, Any], max_length: int) -> dict[str, str]:
    """The text, or why there is none."""
    text = io.StringIO()
    try:
        for part in _compiled(template).generate(variables):
            if text.tell() + len(part) > max_length:
                return {LIMIT: f"its text has more than {max_length} characters"}
            text.write(part)
        return {TEXT: text.getvalue()}
    except jinja2.TemplateSyntaxError as error:
        return {BROKEN: str(error)[:_MAX_REASON]}
    except MemoryError:
        return {LIMIT: "it takes more memory than it is given"}
    except Exception as error:  # a template is a program: it may fail on these messages in any way
        return {REFUSED: str(error)[:_MAX_REASON]}


def _limit_memory(size_bytes: int) -> None:
    with contextlib.suppress(ImportError, OSError, ValueError):  # Windows has no such limit
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (size_bytes, size_bytes))


def _end_after(seconds: float) -> None:
    """End this process by then, as nobody else may be there to do so; 0 takes it back."""
    if hasattr(signal, "setitimer"):  # not on Windows
        signal.setitimer(signal.ITIMER_REAL, seconds)


def main(max_bytes: int, max_seconds: float, max_length: int) -> None:
    """Answer requests until the other side is gone."""
    _limit_memory(max_bytes)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is meant for the process that asks
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    with contextlib.suppress(EOFError, BrokenPipeError):
        answers.write(frame_of("ready"))
        answers.flush()
        while True:
            template, variables = read_frame(requests)
            _end_after(max_seconds)
            answer = _render(template, variables, max_length)
            _end_after(0)
            answers.write(frame_of(answer))
            answers.flush()
