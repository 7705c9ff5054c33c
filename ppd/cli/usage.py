"""Misuse of a command, in words that help."""

import re
from typing import Any

from typer.core import TyperCommand

_HINT = (
    '; a PROMPT that begins with - stands behind --: ppd generate BUNDLE -- "-5 + 3 =", or comes from standard input'
)
_NUMBER = re.compile(r"Input should be a valid (number|integer)\b.*", re.DOTALL)
_NUMBERS = {"number": "expected a number", "integer": "expected a whole number"}


class PlainCommand(TyperCommand):
    """A command whose misuse is told in our words."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command line.

        What Typer's validation says of a number becomes what a flag expects, and what is missing is told with its help.
        """
        try:
            return super().parse_args(ctx, args)
        except Exception as error:  # Typer may bring its own click, so the class of the error has no name here
            if isinstance(message := getattr(error, "message", None), str):
                error.message = _NUMBER.sub(lambda found: _NUMBERS[found[1]], message)  # type: ignore[attr-defined]
            if type(error).__name__ == "MissingParameter" and not message:
                error.message = getattr(error.param, "help", None) or ""  # type: ignore[attr-defined]
            raise


class PromptCommand(PlainCommand):
    """A command with a prompt, which may look like an option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command line; what is taken for an option and looks like text gets a hint."""
        try:
            return super().parse_args(ctx, args)
        except Exception as error:  # as above
            option = getattr(error, "option_name", None)
            if isinstance(option, str) and not re.fullmatch(r"--[a-z][a-z-]*", option):
                error.message += _HINT  # type: ignore[attr-defined]
            raise
