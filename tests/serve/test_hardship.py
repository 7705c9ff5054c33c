"""Many clients, slow ones, some that vanish, some that say nothing; a full line, SIGTERM and kill -9."""

import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from ppd.runtime.model import Model
from tests.serve.servers import FAILS, NAME, TAKES_LITTLE, Server, held_by, serving, wait_for

LONG: dict[str, Any] = {"model": NAME, "prompt": "def main():\n", "max_tokens": 400, "temperature": 1, "seed": 1}
"""An answer of 400 tokens."""


def send(port: int, body: dict[str, Any], path: str = "/v1/completions") -> socket.socket:
    """A request whose answer nobody reads yet."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    ask(connection, body, path)
    return connection


def ask(connection: socket.socket, body: dict[str, Any], path: str = "/v1/completions") -> None:
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(content)}\r\n\r\n"
    connection.sendall(head.encode() + content)


def prompts(count: int) -> list[str]:
    return [f"def function_{place}(a, b):\n    " for place in range(count)]


def ask_at_once(server: Server, count: int) -> list[str]:
    """Answers of as many clients at once, every other one a stream."""
    client = server.client()

    def answer_to(place: int, prompt: str) -> str:
        given: dict[str, Any] = {"model": NAME, "prompt": prompt, "max_tokens": 10, "temperature": 1, "seed": place}
        if place % 2:
            return client.completions.create(**given).choices[0].text
        chunks = client.completions.create(**given, stream=True)
        return "".join(chunk.choices[0].text for chunk in chunks)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(answer_to, range(count), prompts(count)))


def test_clients_at_once_get_their_own_answers(server: Server, model: Model) -> None:
    expected = [
        model.generate(prompt, max_new_tokens=10, temperature=1, seed=place).text
        for place, prompt in enumerate(prompts(12))
    ]
    assert ask_at_once(server, 12) == expected


@pytest.mark.usefixtures("hold")
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_vanishes_frees_the_model(held_server: Server, stream: bool) -> None:
    server = held_server
    before, tokens = server.metric("ppd_requests_gone_total"), server.metric("ppd_generated_tokens_total")
    connection = send(server.port, {**LONG, "stream": stream})
    wait_for(lambda: server.metric("ppd_requests_running") == 1)
    connection.close()
    wait_for(lambda: server.metric("ppd_requests_gone_total") == before + 1)
    wait_for(lambda: server.metric("ppd_requests_running") == 0)
    assert server.metric("ppd_generated_tokens_total") == tokens  # it was not answered to its end


@pytest.mark.usefixtures("hold")
def test_a_client_that_vanishes_from_the_line_leaves_it(held_server: Server) -> None:
    server = held_server
    with send(server.port, LONG):
        wait_for(lambda: server.metric("ppd_requests_running") == 1)
        waiting = send(server.port, LONG)
        wait_for(lambda: server.metric("ppd_requests_waiting") == 1)
        waiting.close()
        wait_for(lambda: server.metric("ppd_requests_waiting") == 0)
        assert server.metric("ppd_requests_running") == 1
    wait_for(lambda: server.metric("ppd_requests_running") == 0)


def test_a_hundred_requests_leave_nothing_behind(server: Server, client: openai.OpenAI) -> None:
    memory = [0.0, 0.0]
    for number in range(100):
        if number == 40:
            memory[0] = server.metric("process_resident_memory_bytes")
        client.completions.create(model=NAME, prompt=f"x_{number} = ", max_tokens=2, logprobs=1)
    memory[1] = server.metric("process_resident_memory_bytes")
    assert memory[1] - memory[0] < 16 << 20
    wait_for(lambda: server.metric("ppd_requests_waiting") == server.metric("ppd_requests_running") == 0)


def test_a_slow_reader_keeps_nobody_waiting(server: Server, client: openai.OpenAI) -> None:
    with send(server.port, {**LONG, "max_tokens": 200, "stream": True}):  # nothing of it is read
        answer = client.completions.create(model=NAME, prompt="import os", max_tokens=4)
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 4
    wait_for(lambda: server.metric("ppd_requests_running") == 0)


def test_a_client_that_takes_nothing_is_cut(bundle: Path) -> None:
    """Its connection too, which closing alone would leave open until it takes the rest."""
    with serving(bundle, before=TAKES_LITTLE) as server, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        before = server.metric("process_open_fds")
        ask(connection, {**LONG, "stream": True, "ppd": {"trace": True}})
        wait_for(lambda: server.metric("process_open_fds") < before)
        wait_for(lambda: server.metric("ppd_requests_running") == 0)
        with suppress(ConnectionResetError):
            assert b"[DONE]" not in b"".join(iter(lambda: connection.recv(1 << 16), b""))


@pytest.mark.usefixtures("hold")
def test_a_request_is_refused_where_the_line_is_full(held_server: Server) -> None:
    server = held_server
    with send(server.port, LONG):
        wait_for(lambda: server.metric("ppd_requests_running") == 1)
        with send(server.port, LONG):
            wait_for(lambda: server.metric("ppd_requests_waiting") == 1)
            full = server.http.post(f"{server.url}/v1/completions", json=LONG)
            assert (full.status_code, full.json()["error"]["code"]) == (429, "queue_full")
            assert int(full.headers["retry-after"]) >= 1
    wait_for(lambda: server.metric("ppd_requests_(running|waiting)") == 0)


def test_a_request_that_waited_too_long_is_refused(bundle: Path, hold: Path) -> None:
    with serving(bundle, "--wait-seconds", 2, before=held_by(hold)) as server, send(server.port, LONG):
        wait_for(lambda: server.metric("ppd_requests_running") == 1)
        late = server.http.post(f"{server.url}/v1/completions", json=LONG)
        assert (late.status_code, late.json()["error"]["code"]) == (503, "waited_too_long")
        assert server.metric("ppd_requests_running") == 1


def test_sockets_that_say_nothing_or_half_a_request_are_closed(bundle: Path) -> None:
    code = "import ppd.serve.settings as s; s.HEAD_SECONDS = s.BODY_SECONDS = 2; "
    with serving(bundle, before=code) as server:
        texts = [
            b"",
            b"POST /v1/com",
            b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 50\r\n\r\n{",
        ]
        sockets = [socket.create_connection(("127.0.0.1", server.port), timeout=60) for _ in texts]
        for connection, text in zip(sockets, texts, strict=True):
            connection.sendall(text)
        silent, half, unfinished = (connection.recv(4096) for connection in sockets)
        assert silent == half == b""
        assert b" 408 " in unfinished.splitlines()[0]
        assert server.client().completions.create(model=NAME, prompt="x", max_tokens=1).choices


def test_an_answer_that_fails_is_told_and_the_next_is_right(bundle: Path, model: Model) -> None:
    expected = model.generate("def main():\n", max_new_tokens=20, temperature=1, seed=1).text
    with serving(bundle, before=FAILS) as server:
        client, given = server.client(), {**LONG, "max_tokens": 20}
        with pytest.raises(openai.InternalServerError, match="stumbled"):
            client.completions.create(**{**given, "seed": 13})
        with pytest.raises(openai.APIError, match="stumbled"):
            list(client.completions.create(**{**given, "seed": 13}, stream=True))
        assert client.completions.create(**given).choices[0].text == expected


def refuses(server: Server) -> bool:
    try:
        socket.create_connection(("127.0.0.1", server.port), timeout=30).close()
    except ConnectionRefusedError:
        return True
    return False


def test_sigterm_lets_answers_finish(bundle: Path, model: Model, hold: Path) -> None:
    expected = model.generate("def main():\n", max_new_tokens=300, temperature=1, seed=1).text
    with serving(bundle, "--drain-seconds", 300, before=held_by(hold)) as server:
        client, found = server.client(), list[str]()
        chunks = client.completions.create(**{**LONG, "max_tokens": 300}, stream=True)
        found.append(next(iter(chunks)).choices[0].text)
        whole = threading.Thread(
            target=lambda: found.append(client.completions.create(**{**LONG, "max_tokens": 300}).choices[0].text)
        )
        whole.start()
        wait_for(lambda: server.metric("ppd_requests_waiting") == 1)
        server.process.terminate()
        wait_for(lambda: refuses(server))
        hold.unlink()
        found[0] += "".join(chunk.choices[0].text for chunk in chunks)
        whole.join()
        assert found == [expected, expected]
        assert server.process.wait(60) == 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{server.url}/health")


def test_answers_that_take_longer_than_the_drain_are_cut_and_say_so(bundle: Path, hold: Path) -> None:
    with serving(bundle, "--drain-seconds", 0.5, before=held_by(hold)) as server:
        chunks = iter(server.client().completions.create(**LONG, stream=True))
        next(chunks)
        server.process.terminate()
        with pytest.raises(openai.APIError, match="stopping"):
            list(chunks)
        assert server.process.wait(60) == 0


def test_after_kill_9_a_server_on_the_same_port_answers_the_same(bundle: Path) -> None:
    given = {**LONG, "max_tokens": 20}
    with serving(bundle) as server:
        expected = server.client().completions.create(**given).choices[0].text
        port, open_still = server.port, send(server.port, {**LONG, "stream": True})
        server.process.kill()
        server.process.wait()
    with serving(bundle, "--port", port) as server:
        assert server.client().completions.create(**given).choices[0].text == expected
    open_still.close()
