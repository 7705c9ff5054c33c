"""Servers for tests: `ppd serve` in a process of its own, on a port that was free."""

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai

CODE = "from ppd.cli import main; main()"
NAME = "tiny"
HELD = """import time
from pathlib import Path
from ppd.runtime.generation import Generation
step = Generation.step
def held(self):
    if len(self.token_ids) > 5 and Path({hold!r}).exists():
        time.sleep(0.02)
        return []
    return step(self)
Generation.step = held
"""

FAILS = """from ppd.errors import EngineError
from ppd.runtime.generation import Generation
step = Generation.step
def fail(self):
    if self._options.seed == 13 and len(self.token_ids) > 5:
        raise EngineError("the engine stumbled")
    return step(self)
Generation.step = fail
"""
"""Code that lets answers with the seed 13 fail after some tokens."""

TAKES_LITTLE = """import socket
import ppd.serve.settings as settings
settings.SEND_SECONDS = 2
from ppd.serve import server
bind = server.bind
def small(settings):
    listener = bind(settings)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    return listener
server.bind = small
"""
"""Code that makes the kernel hold little for a client, and the server wait for it a short time."""


def held_by(hold: Path) -> str:
    """Code that lets an answer go on without tokens, once some are out, while the file is there."""
    return HELD.format(hold=str(hold))


def wait_for(holds: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


@dataclass
class Server:
    """A server that runs."""

    process: subprocess.Popen[str]
    url: str
    http: httpx.Client

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def client(self, api_key: str = "none") -> openai.OpenAI:
        """OpenAI's client, which tries nothing twice."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=api_key, max_retries=0, timeout=60)

    def metric(self, name: str) -> float:
        text = self.http.get(f"{self.url}/metrics").text
        return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if re.match(rf"{name}[ {{]", line))

    def stop(self, how: signal.Signals = signal.SIGTERM, timeout: float = 30) -> int:
        self.process.send_signal(how)
        return self.process.wait(timeout)


@contextmanager
def serving(bundle: Path, *flags: object, before: str = "") -> Iterator[Server]:
    """`ppd serve` with these flags, until the block ends; a traceback on its standard error fails the test.

    Args:
        before: Code that runs before it, such as shorter time limits.
    """
    given = ["serve", bundle, "--port", 0, "--threads", 1, "--name", NAME, *flags]
    command = [sys.executable, "-c", before + CODE, *map(str, given)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    said: list[str] = []
    reader = threading.Thread(target=lambda: said.extend(process.stderr or ()))
    reader.start()
    try:
        line = process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found, (line, said)
        one_each = httpx.Limits(max_keepalive_connections=0)
        with httpx.Client(timeout=60, limits=one_each) as http:
            yield Server(process, found[0], http)
    finally:
        process.terminate()  # it ends by itself, so that a coverage run has its lines
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)
        process.kill()
        process.wait()
        reader.join()
        process.stdout.close()
        process.stderr.close()
    assert "Traceback" not in "".join(said), "".join(said)
