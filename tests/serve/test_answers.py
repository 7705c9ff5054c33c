"""OpenAI's own client gets what the runtime generates, whole and as a stream, with every field that there is."""

import math
from typing import Any

import httpx
import openai
import pytest

from ppd import runtime
from ppd.runtime.model import Model
from tests.serve.servers import NAME, Server, wait_for

MESSAGES: list[Any] = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "def fibonacci(n):"}]
TEXT = "import os\nimport sys\n\ndef main():"
SETTINGS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"temperature": 0.9, "seed": 7}, {"temperature": 0.9, "seed": 7}),
    ({"temperature": 1, "top_p": 0.8, "seed": -3}, {"temperature": 1, "top_p": 0.8, "seed": 2**64 - 3}),
    ({"temperature": 1, "seed": 1, "extra_body": {"top_k": 4}}, {"temperature": 1, "seed": 1, "top_k": 4}),
    ({"stop": ["\n\n", "("]}, {"stop": ["\n\n", "("]}),
    ({"extra_body": {"ppd": {"draft": False}}}, {"draft": False}),
    ({"extra_body": {"ppd": {"draft": True, "reuse": False}}}, {"draft": True}),
    ({"extra_body": {"ppd": {"draft": ["ppd", "lookup"]}}}, {"draft": ["ppd", "lookup"]}),
]


def streamed(stream: Any) -> tuple[str, list[Any]]:
    """The text of a stream, and its chunks."""
    chunks = list(stream)
    parts = [choice for chunk in chunks for choice in chunk.choices]
    return "".join((part.delta.content if hasattr(part, "delta") else part.text) or "" for part in parts), chunks


@pytest.mark.parametrize(("fields", "options"), SETTINGS)
def test_a_chat_answers_what_the_runtime_does(
    client: openai.OpenAI, model: Model, fields: dict[str, Any], options: dict[str, Any]
) -> None:
    expected = model.generate(messages=MESSAGES, max_new_tokens=24, **options)
    given = {"model": NAME, "messages": MESSAGES, "max_tokens": 24, **fields}
    answer = client.chat.completions.create(**given)
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content) == ("assistant", expected.text)
    assert choice.finish_reason == {"stop": "stop", "length": "length"}[expected.finish_reason]
    assert answer.usage.completion_tokens == len(expected.token_ids)
    assert answer.usage.prompt_tokens == expected.stats.prompt_tokens
    text, chunks = streamed(client.chat.completions.create(**given, stream=True))
    assert text == expected.text
    assert chunks[-1].choices[0].finish_reason == choice.finish_reason


@pytest.mark.parametrize(("fields", "options"), SETTINGS[:5])
def test_a_completion_answers_what_the_runtime_does(
    client: openai.OpenAI, model: Model, fields: dict[str, Any], options: dict[str, Any]
) -> None:
    expected = model.generate(TEXT, max_new_tokens=24, **options)
    given = {"model": NAME, "prompt": TEXT, "max_tokens": 24, **fields}
    answer = client.completions.create(**given)
    assert answer.choices[0].text == expected.text
    assert answer.object == "text_completion"
    text, chunks = streamed(client.completions.create(**given, stream=True, stream_options={"include_usage": True}))
    assert text == expected.text
    assert chunks[-1].usage.total_tokens == answer.usage.total_tokens


def test_a_prompt_may_be_token_ids(client: openai.OpenAI, model: Model) -> None:
    ids = model.encode(TEXT)
    for prompt in (ids, [ids], [TEXT]):
        answer = client.completions.create(model=NAME, prompt=prompt)
        assert answer.choices[0].text == model.generate(TEXT, max_new_tokens=16).text
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 16  # as in OpenAI's interface


def test_an_answer_ends_at_a_token_id_too(client: openai.OpenAI, model: Model) -> None:
    plain = model.generate(TEXT, max_new_tokens=24)
    stop = plain.token_ids[6]
    expected = model.generate(TEXT, max_new_tokens=24, stop_ids=[stop])
    for fields in ({"stop_token_ids": [stop]}, {"stop": [stop]}):
        answer = client.completions.create(model=NAME, prompt=TEXT, max_tokens=24, extra_body=fields)
        assert (answer.choices[0].text, answer.choices[0].finish_reason) == (expected.text, "stop")


def test_a_stream_has_the_parts_of_openais_in_their_order(server: Server) -> None:
    body = {"model": NAME, "messages": MESSAGES, "max_tokens": 5, "stream": True}
    with httpx.stream(
        "POST", f"{server.url}/v1/chat/completions", json={**body, "stream_options": {"include_usage": True}}
    ) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    chunks = [httpx.Response(200, text=line.removeprefix("data: ")).json() for line in lines[:-1]]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert all("role" not in chunk["choices"][0]["delta"] for chunk in chunks[1:-2])
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["length"]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 5
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks}) == 1


def test_log_probabilities_are_those_of_the_runtime(client: openai.OpenAI, model: Model) -> None:
    expected = model.generate(messages=MESSAGES, max_new_tokens=16, logprobs=3, temperature=0.7, seed=5)
    given: dict[str, Any] = {"model": NAME, "messages": MESSAGES, "max_tokens": 16, "temperature": 0.7, "seed": 5}
    answer = client.chat.completions.create(**given, logprobs=True, top_logprobs=3)
    told = answer.choices[0].logprobs.content
    assert expected.logprobs is not None
    assert [each.logprob for each in told] == pytest.approx([each.logprob for each in expected.logprobs], abs=1e-5)
    assert [len(each.top_logprobs) for each in told] == [3] * 16
    assert b"".join(bytes(each.bytes) for each in told).decode() == answer.choices[0].message.content
    _, chunks = streamed(client.chat.completions.create(**given, logprobs=True, stream=True))
    parts = [
        part for chunk in chunks for part in (chunk.choices[0].logprobs.content if chunk.choices[0].logprobs else ())
    ]
    assert [part.logprob for part in parts] == pytest.approx([each.logprob for each in expected.logprobs], abs=1e-5)
    assert all(part.top_logprobs == [] for part in parts)


def test_log_probabilities_of_a_completion_have_their_older_form(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=NAME, prompt=TEXT, max_tokens=12, logprobs=2)
    told: Any = answer.choices[0].logprobs
    assert "".join(told.tokens) == answer.choices[0].text
    assert told.text_offset == [len("".join(told.tokens[:place])) for place in range(12)]
    assert all(max(top.values()) == value for top, value in zip(told.top_logprobs, told.token_logprobs, strict=True))
    assert all(value < 0 and math.isfinite(value) for value in told.token_logprobs)


def test_the_extension_tells_how_an_answer_was_drafted(client: openai.OpenAI, model: Model) -> None:
    expected = model.generate(messages=MESSAGES, max_new_tokens=40, draft=True)
    given: dict[str, Any] = {"model": NAME, "messages": MESSAGES, "max_tokens": 40}
    body = {"ppd": {"draft": True, "trace": True}}
    told = client.chat.completions.create(**given, extra_body=body).model_extra["ppd"]
    assert told["token_ids"] == expected.token_ids
    assert told["steps"] == expected.stats.steps == sum(told["histogram"].values())
    assert told["acceptance_length"] == pytest.approx(expected.stats.acceptance_length)
    assert sum(int(size) * count for size, count in told["histogram"].items()) == 39
    assert told["by_source"]["ppd"]["steps"] == expected.stats.by_source["ppd"][0]
    assert sum(source["tokens"] for source in told["by_source"].values()) == 39
    assert [token["id"] for step in told["trace"] for token in step["tokens"]] == expected.token_ids
    _, chunks = streamed(client.chat.completions.create(**given, extra_body=body, stream=True))
    steps = [chunk.model_extra["ppd"]["step"] for chunk in chunks if "step" in (chunk.model_extra.get("ppd") or {})]
    assert [step["tokens"] for step in steps] == [step["tokens"] for step in told["trace"]]
    assert chunks[-1].model_extra["ppd"]["token_ids"] == expected.token_ids


def test_a_traced_step_has_its_tree_and_what_was_accepted(client: openai.OpenAI) -> None:
    body = {"ppd": {"draft": True, "trace": True}}
    answer: Any = client.chat.completions.create(model=NAME, messages=MESSAGES, max_tokens=40, extra_body=body)
    first, *steps = answer.model_extra["ppd"]["trace"]
    assert (first["source"], len(first["tokens"])) == ("prompt", 1)
    previous = first["tokens"][-1]["id"]
    for step in steps:
        tree, tokens = step["tree"], step["tokens"]
        assert (tree[0]["parent"], tree[0]["id"], tree[0]["accepted"]) == (-1, previous, True)
        accepted = [node["id"] for node in tree[1:] if node["accepted"]]
        assert accepted == [token["id"] for token in tokens if token["source"] != "plain"]
        assert all(node["accepted"] <= tree[node["parent"]]["accepted"] for node in tree[1:])
        assert step["ms"] > 0
        previous = tokens[-1]["id"]
    assert max(len(step["tokens"]) for step in steps) > 1


def test_nothing_is_added_unless_it_is_asked_for(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=NAME, messages=MESSAGES, max_tokens=2)
    assert "ppd" not in (answer.model_extra or {})


def test_messages_of_tools_and_variables_reach_the_template(client: openai.OpenAI, model: Model) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages: list[Any] = [
        {"role": "developer", "content": [{"type": "text", "text": "be brief"}]},
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "3"},
    ]
    as_templates_know = [{**messages[0], "role": "system"}, *messages[1:]]
    tools: list[Any] = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    expected = model.generate(messages=as_templates_know, max_new_tokens=8, tools=tools)
    answer: Any = client.chat.completions.create(
        model=NAME,
        messages=messages,
        max_completion_tokens=8,
        tools=tools,
        tool_choice="auto",
        extra_body={"chat_template_kwargs": {"enable_thinking": False}},
    )
    assert answer.choices[0].message.content == expected.text
    assert answer.usage.prompt_tokens == expected.stats.prompt_tokens


def test_a_conversation_that_goes_on_is_read_on(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "class Stack:\n    def push(self, item):"}]
    first: Any = client.chat.completions.create(model=NAME, messages=messages, max_tokens=12)
    longer = [*messages, {"role": "assistant", "content": first.choices[0].message.content}]
    client.chat.completions.create(model=NAME, messages=[{"role": "user", "content": "import re"}], max_tokens=4)
    second: Any = client.chat.completions.create(
        model=NAME, messages=[*longer, {"role": "user", "content": "x"}], max_tokens=4
    )
    assert second.usage.prompt_tokens_details.cached_tokens >= first.usage.prompt_tokens - 2


def test_the_model_is_listed(client: openai.OpenAI, model: Model) -> None:
    (listed,) = client.models.list().data
    assert listed.model_extra is not None
    assert (listed.id, listed.object, listed.owned_by) == (NAME, "model", "ppd")
    assert listed.model_extra["ppd"]["context"] == model.bundle.manifest.context
    assert client.models.retrieve(NAME).id == NAME
    with pytest.raises(openai.NotFoundError, match="no model is called 'other'"):
        client.models.retrieve("other")


def test_health_and_metrics(server: Server, client: openai.OpenAI) -> None:
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok", "model": NAME, "waiting": 0}
    names = ("ppd_generated_tokens_total", "ppd_prompt_tokens_total", "ppd_step_tokens_total", "ppd_steps_total")
    before = [server.metric(name) for name in names]
    answer = client.completions.create(model=NAME, prompt=TEXT, max_tokens=9)
    assert answer.usage is not None
    tokens, prompt, step_tokens, steps = (server.metric(name) - old for name, old in zip(names, before, strict=True))
    assert (tokens, prompt, step_tokens) == (9, answer.usage.prompt_tokens, 8)
    assert 1 <= steps <= 8
    wait_for(lambda: server.metric("ppd_requests_running") == 0)


def test_answers_are_those_of_the_command_line(client: openai.OpenAI, bundle: Any, capsys: Any) -> None:
    expected = runtime.generate(bundle, TEXT, max_new_tokens=20, threads=1)
    answer = client.completions.create(model=NAME, prompt=TEXT, max_tokens=20)
    assert answer.choices[0].text == expected.text
