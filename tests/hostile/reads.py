"""What every reader owes: a value, or one error of ours that is one line, in a short time."""

import time
from collections.abc import Callable
from typing import Any

from ppd.errors import PPDError

MAX_SECONDS = 2.0
MAX_MESSAGE = 1000


def reads_or_refuses(read: Callable[[], Any]) -> Any:
    """Run a reader; its value, or None where it refused as it should. Anything else that it raises fails the test."""
    started, found, refusal = time.thread_time(), None, None
    try:
        found = read()
    except PPDError as error:
        refusal = str(error)
    assert refusal is None or (0 < len(refusal) <= MAX_MESSAGE and len(refusal.splitlines()) == 1), refusal[:2000]
    assert time.thread_time() - started < MAX_SECONDS
    return found
