"""Children that run an operation and are killed at a file operation of it, and children that run at once."""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from ppd import staging
from ppd.errors import PPDError
from ppd.files import exchange

_CHANGES = frozenset(
    ["fcntl.flock", *(f"os.{name}" for name in ("rename", "remove", "rmdir", "mkdir", "chmod", "link"))]
)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def _changes(event: str, arguments: tuple[Any, ...]) -> bool:
    if event == "open":
        return bool(isinstance(arguments[2], int) and arguments[2] & _WRITES)
    return event in _CHANGES


def run_and_kill(operation: Callable[[], object], at: int) -> bool:
    """Run an operation in a child that is killed (-9) before its file operation number `at`, counted from 1.

    Returns:
        Whether it was killed; else it had fewer operations, and is done.
    """
    child = os.fork()
    if not child:
        _run_until(operation, at)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the operation failed"
    return os.WIFSIGNALED(status)


def _run_until(operation: Callable[[], object], at: int) -> None:
    count = 0

    def step() -> None:
        nonlocal count
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(one: Any, other: Any) -> bool:  # a call of the C library, which no audit event tells of
        step()
        return exchange(one, other)

    module: Any = staging
    module.exchange = counted
    sys.addaudithook(lambda event, arguments: step() if _changes(event, arguments) else None)
    _end_with(operation)


def _end_with(operation: Callable[[], object]) -> None:
    try:
        operation()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def run_at_once(operations: Sequence[Callable[[], object]]) -> list[str]:
    """Run operations in children that begin together; what each ended with: "done", or the line of its refusal."""
    ready, go = os.pipe()
    children = []
    for operation in operations:
        answers, answer = os.pipe()
        child = os.fork()
        if not child:
            os.close(go)
            os.read(ready, 1)  # until the parent closes its end
            os.write(answer, _outcome(operation).encode())
            os._exit(0)
        os.close(answer)
        children.append((child, answers))
    os.close(ready)
    os.close(go)
    outcomes = []
    for child, answers in children:
        with os.fdopen(answers) as file:
            outcomes.append(file.read())
        os.waitpid(child, 0)
    return outcomes


def _outcome(operation: Callable[[], object]) -> str:
    try:
        operation()
    except PPDError as error:
        return f"refused: {error}"
    except BaseException:
        return f"FAILED: {traceback.format_exc()}"
    return "done"
