"""Entry points: bad input becomes one line and exit code 1."""

import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import typer

from ppd.cli import (  # noqa: F401 - importing a module registers its commands
    bench,
    build,
    calibrate,
    chat,
    check,
    compare,
    doctor,
    export,
    generate,
    inspect,
    models,
    refold,
    selftest,
    serve,
    targets,
    train,
)
from ppd.cli.app import app, one_line
from ppd.cli.usage import PlainCommand
from ppd.errors import PPDError

_STDERR = 2


def main() -> None:
    """Entry point of `ppd`."""
    _run(app)


def export_main() -> None:
    """Entry point of `ppd-export`, the same command as `ppd export`."""
    command = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    command.command(name="ppd-export", cls=PlainCommand)(export.export)
    _run(command)


def _run(command: Callable[..., Any]) -> None:
    """Run a command; bad input becomes one line and exit code 1. Typer turns Ctrl-C into 130 and misuse into 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a character is no reason to stop
    try:
        try:
            with _only_our_words():
                command()
        finally:
            sys.stdout.flush()
    except PPDError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        sys.exit(1)
    except MemoryError:
        print("error: there is not enough memory; close other programs, or take a smaller model", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:  # the reader of our output went away
        _discard_output()
        sys.exit(1)
    except OSError as error:  # a path that no system call takes, or an output that cannot be written
        _discard_output()
        name = f"{error.filename!s:.80}: " if error.filename else ""
        print(
            f"error: {one_line(f'{name}{error.strerror or error}; check the path and the free space')}",
            file=sys.stderr,
        )
        sys.exit(1)


@contextmanager
def _only_our_words() -> Iterator[None]:
    """Keep off standard error what native libraries log there themselves, beside the error that they raise."""
    before = sys.stderr
    if before is not sys.__stderr__ or not isinstance(before, io.TextIOWrapper):
        yield  # it is not the process's
        return
    before.flush()
    with (
        open(os.devnull, "wb") as nowhere,  # noqa: PTH123 - it is no path
        os.fdopen(os.dup(_STDERR), "w", encoding=before.encoding, errors="replace", buffering=1) as ours,
    ):
        os.dup2(nowhere.fileno(), _STDERR)
        sys.stderr = ours
        try:
            yield
        finally:
            ours.flush()
            os.dup2(ours.fileno(), _STDERR)
            sys.stderr = before


def _discard_output() -> None:
    """Discard buffered output, which the interpreter would otherwise fail to write once more at its end."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
