"""What is unknown, unsupported or malformed is refused in the shape of OpenAI's errors, and nothing is ignored."""

import json
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from ppd.errors import ArgumentError
from ppd.serve.settings import Settings
from tests.serve.servers import NAME, Server, serving

CHAT: dict[str, Any] = {"model": NAME, "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
TEXT: dict[str, Any] = {"model": NAME, "prompt": "import os", "max_tokens": 2}


def post(server: Server, body: Any, path: str = "chat/completions", **options: Any) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(f"{server.url}/v1/{path}", content=content, timeout=60, **options)


def refused(answer: httpx.Response, status: int, *words: str, param: str | None = None) -> None:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["param"] == param
    assert "\n" not in error["message"]
    for word in words:
        assert word in error["message"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temprature", 1),
        ("functions", []),
        ("response_format", {"type": "json_object"}),
        ("n", 2),
        ("n", True),
        ("frequency_penalty", 0.5),
        ("logit_bias", {"5": 1}),
        ("parallel_tool_calls", False),
        ("temperature", -1),
        ("temperature", "hot"),
        ("top_p", 0),
        ("top_k", 0),
        ("seed", 1.5),
        ("max_tokens", 0),
        ("max_tokens", 10**9),
        ("max_completion_tokens", 3),
        ("stop", [""]),
        ("stop", [-1]),
        ("stop", {"a": 1}),
        ("stop_token_ids", "7"),
        ("logprobs", 3),
        ("top_logprobs", 2),
        ("stream", "yes"),
        ("stream_options", {"include_usage": True}),
        ("tool_choice", "required"),
        ("messages", []),
        ("messages", "x"),
        ("messages", None),
        ("chat_template_kwargs", [1]),
        ("ppd", True),
    ],
)
def test_a_field_with_a_value_that_is_not_allowed(server: Server, field: str, value: Any) -> None:
    answer = post(server, {**CHAT, field: value})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] in (field, "max_tokens")
    assert field in answer.json()["error"]["message"] or field == "max_completion_tokens"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({**CHAT, "messages": [{"role": "robot", "content": "x"}]}, ["messages[0]", "role"]),
        ({**CHAT, "messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, ["image_url"]),
        ({**CHAT, "messages": [{"role": "user", "content": "\ud800"}]}, ["Unicode"]),
        ({**CHAT, "ppd": {"speed": 1}}, ["ppd.speed"]),
        ({**CHAT, "ppd": {"draft": "medusa"}}, ["medusa"]),
        ({**CHAT, "ppd": {"draft": "guesses"}}, ["ppd.draft"]),
        ({**CHAT, "ppd": {"draft": "model"}}, ["ppd.draft"]),
        ({**CHAT, "ppd": {"acceptance": "fast"}}, ["ppd.acceptance"]),
        ({**CHAT, "stop_token_ids": [10**7]}, ["stop_token_ids"]),
        ({**CHAT, "stop_token_ids": [-1]}, ["stop_token_ids"]),
        ({**CHAT, "stream_options": {"x": 1}, "stream": True}, ["stream_options.x"]),
        ([CHAT], ["JSON object"]),
    ],
)
def test_what_is_wrong_inside_a_field_is_named(server: Server, body: Any, words: list[str]) -> None:
    answer = post(server, body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert all(word in error["message"] for word in words), answer.text
    if words[0].startswith(("ppd.", "stop_")):
        assert error["param"] == words[0]


@pytest.mark.parametrize("prompt", [None, [], ["a", "b"], [[1], [2]], [10**7], 5])
def test_a_completion_has_one_prompt(server: Server, prompt: Any) -> None:
    assert post(server, {**TEXT, "prompt": prompt}, "completions").status_code == 400


@pytest.mark.parametrize("given", [{}, {"model": None}])
def test_a_model_that_is_not_named(server: Server, given: dict[str, None]) -> None:
    body = {name: value for name, value in CHAT.items() if name != "model"} | given
    refused(post(server, body), 400, "model is missing", repr(NAME), param="model")


def test_fields_that_say_what_is_so_anyway_are_taken(server: Server) -> None:
    body = {**CHAT, "n": 1, "frequency_penalty": 0.0, "logit_bias": {}, "response_format": {"type": "text"}}
    assert post(server, {**body, "top_p": None, "user": "u", "tool_choice": "none", "tools": None}).status_code == 200


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe{}", b'{"model": NaN', b"[" * 100_000, b"1" * 10_000])
def test_a_body_that_is_not_json(server: Server, content: bytes) -> None:
    answer = post(server, content)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_body_of_a_hundred_megabytes(server: Server) -> None:
    before = server.metric("process_resident_memory_bytes")
    refused(post(server, b'{"model": "' + b"x" * (100 << 20) + b'"}'), 413, "4 MiB")
    assert server.metric("process_resident_memory_bytes") - before < 40 << 20
    assert post(server, CHAT).status_code == 200


def test_a_prompt_that_fills_the_context(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="shorten it") as caught:
        client.completions.create(model=NAME, prompt="x = 1\n" * 20_000)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "prompt")


def test_another_model_path_or_method(server: Server) -> None:
    refused(post(server, {**CHAT, "model": "gpt-4"}), 404, "gpt-4", NAME, param="model")
    refused(post(server, CHAT, "embeddings"), 404)
    refused(httpx.get(f"{server.url}/v1/completions"), 405)


def test_requests_are_counted_by_their_route(server: Server) -> None:
    for path in (f"v1/models/{NAME}", "v1/models/other", "nowhere"):
        httpx.get(f"{server.url}/{path}")
    counts = httpx.get(f"{server.url}/metrics").text
    for path, status in (("/v1/models/{name}", 200), ("/v1/models/{name}", 404), ("other", 404)):
        assert f'ppd_requests_total{{path="{path}",status="{status}"}}' in counts
    assert NAME not in counts


def test_names_that_strangers_make_point_here_and_their_pages_are_refused(server: Server) -> None:
    refused(post(server, CHAT, headers={"Host": "evil.example"}), 403, "evil.example")
    for origin in ("http://evil.example", "http://["):
        refused(post(server, CHAT, headers={"Origin": origin}), 403, origin)
    for host in (f"localhost:{server.port}", f"127.0.0.1:{server.port}", f"[::1]:{server.port}"):
        assert post(server, CHAT, headers={"Host": host, "Origin": f"http://{host}"}).status_code == 200
    assert "access-control-allow-origin" not in httpx.get(f"{server.url}/health").headers


def test_a_key_is_asked_for_where_there_is_one(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret\n")
    with serving(bundle, "--api-key-file", tmp_path / "key", "--allow-origin", "https://example.org") as server:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic secret"}):
            answer = post(server, CHAT, headers=headers)
            refused(answer, 401, "API key")
            assert answer.headers["www-authenticate"] == "Bearer"
            assert httpx.get(f"{server.url}/metrics", headers=headers).status_code == 401
        assert httpx.get(f"{server.url}/health").status_code == 200
        assert server.client(api_key="secret").completions.create(**TEXT).choices[0].text
        origin = {"Origin": "https://example.org"}
        asked = {**origin, "Access-Control-Request-Method": "POST"}
        allowed = httpx.options(f"{server.url}/v1/completions", headers=asked)
        assert allowed.headers["access-control-allow-origin"] == "https://example.org"
        denied = post(server, CHAT, headers=origin)
        assert (denied.status_code, denied.headers["access-control-allow-origin"]) == (401, "https://example.org")
        strange = {**asked, "Origin": "https://evil.example"}
        refused(httpx.options(f"{server.url}/v1/completions", headers=strange), 403, "evil.example")
        refused(post(server, CHAT, headers={"Origin": "https://evil.example"}), 403, "evil.example")
        answer = post(server, CHAT, headers={**origin, "Authorization": "Bearer secret"})
        assert answer.headers["access-control-allow-origin"] == "https://example.org"


@pytest.mark.parametrize(
    "wrong",
    [
        {"port": -1},
        {"queue": 0},
        {"wait_seconds": 0},
        {"api_key": "ü"},
        {"api_key": "k "},
        {"max_body": 1.5},
        {"max_body": 65},
    ],
)
def test_wrong_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(ArgumentError, match=f"{next(iter(wrong))} is"):
        Settings(**wrong)


def test_whoever_opens_the_server_to_others_without_a_key_is_warned() -> None:
    from ppd.serve.server import warning_of

    assert warning_of(Settings()) is None
    assert warning_of(Settings(host="0.0.0.0", api_key="k")) is None
    assert "--api-key-file" in (warning_of(Settings(host="0.0.0.0")) or "")
