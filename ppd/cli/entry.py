"""Entry points: bad input becomes one line and exit code 1."""

import io
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import typer

from ppd.cli import (  # noqa: F401 - importing a module registers its commands
    bench,
    build,
    calibrate,
    chat,
    check,
    compare,
    export,
    generate,
    inspect,
    models,
    refold,
    targets,
    train,
)
from ppd.cli.app import app
from ppd.errors import PPDError


def main() -> None:
    """Entry point of `ppd`."""
    _run(app)


def export_main() -> None:
    """Entry point of `ppd-export`, the same command as `ppd export`."""
    command = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    command.command(name="ppd-export")(export.export)
    _run(command)


def _run(command: Callable[..., Any]) -> None:
    """Run a command; bad input becomes one line and exit code 1. Typer turns Ctrl-C into 130 and misuse into 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character is no reason to stop
    try:
        try:
            command()
        finally:
            sys.stdout.flush()
    except PPDError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:  # the reader of our output went away
        _discard_output()
        sys.exit(1)
    except OSError as error:  # a path that no system call takes, or an output that cannot be written
        _discard_output()
        name = f"{error.filename!s:.80}: " if error.filename else ""
        print(f"error: {name}{error.strerror or error}; check the path and the free space", file=sys.stderr)
        sys.exit(1)


def _discard_output() -> None:
    """Discard buffered output, which the interpreter would otherwise fail to write once more at its end."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
