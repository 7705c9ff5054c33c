"""A server for long: 64 clients at once, a thousand requests, clients that vanish; nothing is lost, mixed or kept."""

import random
from pathlib import Path
from typing import Any

import pytest

from ppd import runtime
from tests.chats import chat_bundle
from tests.serve.servers import NAME, serving, wait_for
from tests.serve.test_hardship import ask_at_once, prompts, send

pytestmark = pytest.mark.soak
NUM_CLIENTS, NUM_REQUESTS, NUM_WARM, NUM_GONE = 64, 1000, 200, 200
MAX_GROWTH = 16 << 20
"""Bytes by which the server may grow over all requests: the allocator keeps some."""


@pytest.fixture(scope="module")
def bundle(tinypy_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return chat_bundle(tinypy_bundle, tmp_path_factory.mktemp("served") / "bundle")


def test_clients_at_once_get_their_own_answers(bundle: Path) -> None:
    model = runtime.load(bundle, threads=1)
    expected = [
        model.generate(prompt, max_new_tokens=10, temperature=1, seed=place).text
        for place, prompt in enumerate(prompts(NUM_CLIENTS))
    ]
    with serving(bundle) as server:
        for _ in range(5):
            assert ask_at_once(server, NUM_CLIENTS) == expected


def test_memory_stays_over_a_thousand_requests_and_vanishing_clients(bundle: Path) -> None:
    rng = random.Random(0)
    with serving(bundle) as server:
        client, before = server.client(), 0.0
        for number in range(NUM_REQUESTS):
            if number == NUM_WARM:
                before = server.metric("process_resident_memory_bytes")
            given: dict[str, Any] = {"model": NAME, "prompt": f"x_{number % 97} = ", "max_tokens": 4, "seed": number}
            extra = {"ppd": {"trace": bool(number % 2)}}
            if number % 3:
                assert client.completions.create(**given, extra_body=extra, logprobs=2).usage.completion_tokens
            else:
                assert list(client.completions.create(**given, extra_body=extra, stream=True))
        for number in range(NUM_GONE):
            body = {"model": NAME, "prompt": f"def f{number}():", "max_tokens": 200, "stream": bool(number % 2)}
            with send(server.port, body) as connection:
                if rng.random() < 0.5 and number % 2:
                    connection.recv(rng.randrange(1, 2000))
        wait_for(lambda: server.metric("ppd_requests_running") + server.metric("ppd_requests_waiting") == 0, 120)
        growth = server.metric("process_resident_memory_bytes") - before
        print(f"grown by {growth / 1e6:.1f} MB over {NUM_REQUESTS - NUM_WARM} requests and {NUM_GONE} that vanished")
        assert growth < MAX_GROWTH
        assert server.metric("process_open_fds") < 64
        assert client.completions.create(model=NAME, prompt="x", max_tokens=1).choices
