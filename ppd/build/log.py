"""What TensorRT says while it builds: for the log beside the engine, and for the message of a build that fails."""

import time
from collections import deque
from types import ModuleType
from typing import Any

_MOST_LINES = 10_000


class BuildLog:
    """Lines with the seconds since the build began; the oldest of very many are left out."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._lines: deque[str] = deque(maxlen=_MOST_LINES)
        self._errors: list[str] = []

    def note(self, line: str) -> None:
        """Add a line of our own."""
        self._lines.append(f"{time.monotonic() - self._began:8.1f}  {line}\n")

    def begin(self, what: str) -> None:
        """Begin an attempt: the errors of the one before are no longer the reason."""
        self.note(what)
        self._errors = []

    def reason(self) -> str:
        """Why the attempt failed: the last errors."""
        return "; ".join(self._errors[-2:]) or "no reason given"

    def logger(self, trt: ModuleType) -> Any:
        """A logger for TensorRT, which prints nothing: its own prints to standard output."""
        log = self

        class Logger(trt.ILogger):  # type: ignore[name-defined, misc]  # chosen at run time
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity != trt.ILogger.VERBOSE:
                    log.note(f"{severity.name.replace('_', ' ')}: {message}")
                if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                    log._errors.append(message)

        return Logger()

    def __str__(self) -> str:
        return "".join(self._lines)
