"""Render chat templates in a process that can be stopped: started once, kept for all models, ended with this one."""

import atexit
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from ppd.errors import ArgumentError, TokenizerError
from ppd.templates.frames import BROKEN, LIMIT, REFUSED, TEXT, frame_of, read_frame

MAX_SECONDS = 1.5
MAX_BYTES = 1 << 30
MAX_LENGTH = 1 << 24
"""Limits of one rendering: time, memory of the process, and characters of the text."""
_START = """import sys
sys.path[:] = sys.argv[4:]
from ppd.templates.program import main
main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
"""


class TemplateRenderer:
    """A process that renders. Calls from several threads queue."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._is_ready = False

    def start(self) -> None:
        """Start the process ahead of the first rendering, without waiting for it."""
        with self._lock:
            self._running()

    def render(self, template: str, variables: Mapping[str, Any]) -> str:
        """The text of a template.

        Args:
            variables: Whatever JSON has.

        Raises:
            ArgumentError: The template rejects the messages, or they are not such values.
            TokenizerError: The template itself is broken, or takes more than the limits.
        """
        try:
            request = frame_of([template, variables])
        except (TypeError, ValueError, RecursionError) as error:
            raise ArgumentError(f"the messages are not what JSON can hold ({error!s:.200})") from error
        with self._lock:
            return _text_of(self._ask(request))

    def forget(self) -> None:
        """Leave the process to whoever started it."""
        self.__init__()  # type: ignore[misc]

    def stop(self) -> None:
        """End the process; the next rendering starts another."""
        process, self._process, self._is_ready = self._process, None, False
        if process is not None:
            process.kill()
            process.communicate()

    def _ask(self, request: bytes) -> dict[str, str]:
        answer = None
        process = self._running()
        assert process.stdin is not None, "it has pipes"
        assert process.stdout is not None, "it has pipes"
        try:
            self._wait_until_ready(process.stdout)
            timer = threading.Timer(MAX_SECONDS + 1, process.kill)  # where it cannot stop itself
            timer.start()
            try:
                process.stdin.write(request)
                process.stdin.flush()
                answer = read_frame(process.stdout)
            finally:
                timer.cancel()
        except (EOFError, OSError):
            return {LIMIT: f"it takes more than {MAX_SECONDS} seconds, or breaks its process"}
        finally:
            if answer is None or LIMIT in answer:  # it may be in any state
                self.stop()
        return answer

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self.stop()
            limits = map(str, (MAX_BYTES, MAX_SECONDS, MAX_LENGTH))
            paths = [str(Path(__file__).parents[2]), *sys.path]
            command = [sys.executable, "-I", "-S", "-c", _START, *limits, *paths]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            try:
                self._process = subprocess.Popen(command, **pipes)  # type: ignore[call-overload]  # noqa: S603
            except (OSError, ValueError) as error:
                raise TokenizerError(
                    f"chat templates are rendered in a process of their own, which does not start ({error}); "
                    "run this where Python may start itself, or give text"
                ) from error
        return self._process

    def _wait_until_ready(self, stdout: IO[bytes]) -> None:
        if not self._is_ready:
            try:
                read_frame(stdout)
            except EOFError:
                raise TokenizerError(
                    "chat templates are rendered in a process of their own, which ended as it started; "
                    f"see what {sys.executable} -c 'import jinja2' says"
                ) from None
            self._is_ready = True


def _text_of(answer: Mapping[str, str]) -> str:
    if TEXT in answer:
        return answer[TEXT]
    kind, reason = next(iter(answer.items()))
    reason = reason.strip() or "it gives no reason"
    if kind == REFUSED:
        raise ArgumentError(f"the chat template refuses the messages: {reason}")
    if kind == BROKEN:
        raise TokenizerError(f"the bundle's chat template is broken ({reason}); export again with a working one")
    raise TokenizerError(f"the bundle's chat template cannot be used: {reason}; export again with another")


RENDERER = TemplateRenderer()
"""That of this process."""
atexit.register(RENDERER.stop)
if hasattr(os, "register_at_fork"):  # a forked process has this one's pipes, and leaves them alone
    os.register_at_fork(after_in_child=RENDERER.forget)
