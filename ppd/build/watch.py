"""Watching a build: how far it is, and whether the user pressed Ctrl-C.

TensorRT holds the main thread for minutes and reports from any thread. An exception in a report is lost: TensorRT's
Python module prints it and goes on (`tests/nvidia`). So Ctrl-C is noticed and told to TensorRT, which then gives up.
"""

import contextlib
import signal
import socket
import threading
from collections.abc import Callable
from types import ModuleType, TracebackType
from typing import Any

BuildProgress = Callable[[str, float], None]
"""Called with the phase of the build, and the share of the build that is done, 0 to 1."""


class CtrlC:
    """Whether Ctrl-C was pressed inside a `with` block; any thread may ask.

    Python handles a signal in the main thread, and not before that comes back from TensorRT. The signal's number is
    written to a socket at once.
    """

    def __init__(self) -> None:
        self._pressed = False
        self._reader, self._writer = socket.socketpair()
        self._before: int | None = None

    def __enter__(self) -> "CtrlC":
        for end in (self._reader, self._writer):
            end.setblocking(False)
        if threading.current_thread() is threading.main_thread():
            self._before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.set_wakeup_fd(self._before)
        self._reader.close()
        self._writer.close()

    def press(self) -> None:
        """Note a Ctrl-C that was seen otherwise."""
        self._pressed = True

    def pressed(self) -> bool:
        """Whether it was pressed so far."""
        with contextlib.suppress(OSError):  # nothing there
            self._pressed = self._pressed or signal.SIGINT in self._reader.recv(64)
        return self._pressed


def monitor(trt: ModuleType, progress: BuildProgress, ctrl_c: CtrlC) -> Any:
    """What TensorRT reports to: the progress of the outermost phase, and the name of the innermost."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[name-defined, misc]  # chosen at run time
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._outermost, self._num_steps, self._share = "", 1, 0.0

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self._outermost, self._num_steps = phase_name, max(1, num_steps)
            self._show(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if phase_name == self._outermost:
                self._share = (step + 1) / self._num_steps
                self._show(phase_name)
            return not ctrl_c.pressed()

        def phase_finish(self, phase_name: str) -> None:
            if phase_name == self._outermost:
                self._share = 1.0
                self._show(phase_name)

        def _show(self, phase_name: str) -> None:
            try:
                progress(phase_name, self._share)
            except KeyboardInterrupt:
                ctrl_c.press()

    return Monitor()
