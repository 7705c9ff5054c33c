"""Servers for tests: `ppd serve` in a process of its own, on a port that was free."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai

COMMAND = [sys.executable, "-c", "from ppd.cli import main; main()", "serve"]
NAME = "tiny"


@dataclass
class Server:
    """A server that runs."""

    process: subprocess.Popen[str]
    url: str

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def client(self, **options: Any) -> openai.OpenAI:
        """OpenAI's client, which tries nothing twice."""
        given = {"api_key": "none", "max_retries": 0, "timeout": 60, **options}
        return openai.OpenAI(base_url=f"{self.url}/v1", **given)

    def metric(self, name: str) -> float:
        text = httpx.get(f"{self.url}/metrics").text
        return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if re.match(rf"{name}[ {{]", line))

    def stop(self, how: signal.Signals = signal.SIGTERM, timeout: float = 30) -> int:
        self.process.send_signal(how)
        return self.process.wait(timeout)


@contextmanager
def serving(bundle: Path, *flags: object, environment: dict[str, str] | None = None) -> Iterator[Server]:
    """`ppd serve` with these flags, until the block ends; what it says on standard error is an error of the test."""
    command = [*COMMAND, str(bundle), "--port", "0", "--threads", "1", "--name", NAME, *map(str, flags)]
    env = {**os.environ, **(environment or {})}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    assert process.stdout is not None
    assert process.stderr is not None
    said: list[str] = []
    reader = threading.Thread(target=lambda: said.extend(process.stderr or ()))
    reader.start()
    try:
        line = process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found, (line, said)
        yield Server(process, found[0])
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stdout.close()
        process.stderr.close()
    assert "Traceback" not in "".join(said), "".join(said)
