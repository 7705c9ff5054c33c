"""A racer in a process of its own, which sleeps while others run."""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class RivalError(Exception):
    """A racer cannot take part; the message says why in one line."""


@dataclass(frozen=True)
class Answer:
    """One generation.

    Attributes:
        first_s: Seconds until the first token.
        rest_s: Seconds of the tokens behind it.
        ids: All tokens.
    """

    first_s: float
    rest_s: float
    ids: list[int]


class Participant:
    """A running racer that speaks as protocol.py says.

    Args:
        command: What to start.
        log: File for what it prints besides its answers.
        environment: Variables besides the present ones.

    Raises:
        RivalError: It did not load its model.
    """

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self._log = log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(  # noqa: S603  # a racer's own command
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, **environment},
                text=True,
            )
        try:
            self.title = str(self._read()["ready"])
        except RivalError:
            self.close()
            raise

    def ask(self, prompt: Sequence[int], new_tokens: int, stop: Sequence[int] = ()) -> Answer:
        """Let it continue a prompt.

        Args:
            stop: Ids that end an answer before it has as many tokens.

        Raises:
            RivalError: It died, or gave another number of tokens.
        """
        assert self._process.stdin is not None
        try:
            question = {"prompt": list(prompt), "new_tokens": new_tokens, "stop": list(stop)}
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # reading says what it died of
        answer = Answer(**self._read())
        if len(answer.ids) != new_tokens and (not answer.ids or answer.ids[-1] not in stop):
            raise RivalError(f"gave {len(answer.ids)} tokens instead of {new_tokens}")
        return answer

    def cpu_seconds(self) -> float:
        """Processor time of all its threads so far; 0 where the system has no /proc."""
        try:
            text = Path(f"/proc/{self._process.pid}/stat").read_text("ascii", errors="replace")
        except OSError:
            return 0.0
        user, system = text.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RivalError(f"ended: {last_line(self._log)}")
        content: dict[str, Any] = json.loads(line)
        if "error" in content:
            raise RivalError(content["error"])
        return content


def last_line(log: Path) -> str:
    """The last line of a log that says something."""
    lines = [line.strip() for line in log.read_text("utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "without a word"
