"""Time to first token and tokens per second of `ppd serve` with 1, 4 and 16 clients, plain and drafted, in turns.

    python benchmarks/serve.py BUNDLE [--gguf FILE] [--llama-server PATH|URL]

With a GGUF file of the same model, llama.cpp's server is measured beside it: the one of the package xllamacpp, which is
installed in an environment of its own under `--work`; with `--llama-server` a program `llama-server`, or one that
answers at a URL already (it needs no file). Clients ask one question after the other; the figures are of all clients
together. On a busy machine give OMP_WAIT_POLICY=passive, or llama.cpp's server waits for its own threads for minutes.
"""

import argparse
import json
import re
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from rivals.participant import RivalError
from rivals.prepare import HERE, server_python

from ppd.documents import embedded_prompts

NAME = "bench"
CLIENTS = (1, 4, 16)
START_SECONDS = 120
SLOTS, CONTEXT = 4, 8192
"""Conversations that llama.cpp's server answers at once, and tokens that they share."""


@dataclass(frozen=True)
class Answer:
    """One answer: seconds to its first token and to its end, and its tokens."""

    first_s: float
    whole_s: float
    tokens: int


def ask(url: str, prompt: str, tokens: int, extra: dict[str, Any]) -> Answer:
    """A completion as a stream."""
    body = {"model": NAME, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True, **extra}
    started, first, count = time.perf_counter(), 0.0, 0
    body["stream_options"] = {"include_usage": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=600) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            first = first or time.perf_counter() - started
            count = (chunk.get("usage") or {}).get("completion_tokens", count)
    return Answer(first, time.perf_counter() - started, count)


def measure(url: str, prompts: list[str], clients: int, tokens: int, extra: dict[str, Any]) -> tuple[float, float]:
    """Median milliseconds to the first token, and tokens per second of all clients together."""
    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        answers = list(pool.map(lambda prompt: ask(url, prompt, tokens, extra), prompts))
    seconds = time.perf_counter() - started
    return statistics.median(found.first_s for found in answers) * 1e3, sum(found.tokens for found in answers) / seconds


@contextmanager
def started(command: list[str], url: str | None) -> Iterator[str]:
    """A server, until the block ends.

    Args:
        command: Starts it; empty if it runs already.
        url: Where it answers; None if it says so itself.
    """
    if not command:
        assert url is not None
        yield url
        return
    pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=nothing, text=True)  # noqa: S603
    try:
        if url is None:
            assert process.stdout is not None
            found = re.search(r"http://[^\s\"]+", process.stdout.readline())
            if found is None:
                sys.exit(f"{' '.join(command)} does not start; run it to see why")
            url = found[0]
        _wait(url)
        yield url
    finally:
        process.terminate()
        process.wait()


def _wait(url: str) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    sys.exit(f"no server answers at {url}")


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def rival(server: str | None, gguf: str | None, threads: int, work: Path) -> tuple[list[str], str | None] | None:
    """The command that starts llama.cpp's server, and where it answers, if it does not say so itself.

    Args:
        server: A URL, or a program; None for the package xllamacpp.
    """
    if server is not None and server.startswith("http"):
        return [], server
    if gguf is None:
        return None
    if server is not None:
        if shutil.which(server) is None:
            sys.exit(f"--llama-server is {server}, which is no program here; give its path, or a URL")
        port = free_port()
        flags = ["--model", gguf, "--port", str(port), "--threads", str(threads), "--parallel", str(SLOTS)]
        return [server, *flags, "--ctx-size", str(CONTEXT)], f"http://127.0.0.1:{port}"
    try:
        python = server_python(work)
    except RivalError as error:
        sys.exit(f"cannot install xllamacpp ({error}); give --llama-server a program or a URL")
    options = [str(threads), str(CONTEXT), "plain", str(SLOTS)]
    return [python, str(HERE / "llama_server.py"), gguf, *options], None


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--gguf")
    parser.add_argument("--llama-server", metavar="PATH|URL")
    parser.add_argument("--work", type=Path, default=Path("build/race"))
    parser.add_argument("--clients", type=int, nargs="+", default=CLIENTS)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--prompts", default="english")
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args()
    texts = embedded_prompts(given.prompts)
    prompts = [texts[place % len(texts)] for place in range(given.requests)]
    ours = [sys.executable, "-m", "ppd", "serve", given.bundle, "--port", "0", "--name", NAME]
    plain, drafted = {"ppd": {"draft": False, "reuse": False}}, {"ppd": {"reuse": False}}
    ways: list[tuple[str, list[str], str | None, dict[str, Any]]] = [
        ("plain", [*ours, "--threads", str(given.threads)], None, plain),
        ("drafted", [*ours, "--threads", str(given.threads)], None, drafted),
    ]
    theirs = rival(given.llama_server, given.gguf, given.threads, given.work.resolve())
    if theirs is not None:
        ways.append(("llama.cpp's server", *theirs, {"cache_prompt": False}))
    print("| way | clients | first token, ms | tokens/s |\n|---|---|---|---|")
    for clients in given.clients:
        found: dict[str, list[tuple[float, float]]] = {name: [] for name, *_ in ways}
        for _ in range(given.turns):
            for name, command, url, extra in ways:
                with started(command, url) as where:
                    ask(where, prompts[0], 4, extra)  # buffers of the first step
                    found[name].append(measure(where, prompts, clients, given.tokens, extra))
        for name, figures in found.items():
            first, speed = (statistics.median(values) for values in zip(*figures, strict=True))
            print(f"| {name} | {clients} | {first:.0f} | {speed:.1f} |", flush=True)


if __name__ == "__main__":
    main()
