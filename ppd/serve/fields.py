"""The fields of a request: which there are, and what their values may be. What is not known is refused, not ignored."""

import secrets
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from ppd.errors import ArgumentError
from ppd.runtime import Options
from ppd.runtime.logprobs import MAX_TOP_LOGPROBS
from ppd.runtime.options import Draft, Keywords
from ppd.serve.errors import ApiError, wrong, wrong_option

_ROLES = ("system", "developer", "user", "assistant", "tool")
_COMPLETION_TOKENS = 16
"""What OpenAI's /v1/completions takes where `max_tokens` is left out."""
_SHARED = {
    *("model", "stream", "stream_options", "temperature", "top_p", "top_k", "seed", "stop", "stop_token_ids"),
    *("max_tokens", "logprobs", "ppd", "user"),
}
_CHAT = _SHARED | {
    *("messages", "max_completion_tokens", "top_logprobs", "tools", "tool_choice", "chat_template_kwargs"),
}
_COMPLETION = _SHARED | {"prompt"}
_ONLY: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "parallel_tool_calls": (True,),
    "store": (False,),
}
"""Fields that may only say what would be so without them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extension:
    """The key `ppd` of a request: how to draft, and what to tell about it.

    Attributes:
        is_given: Whether the key is there, so that the answer has it too.
        trace: Tell every step, with its tree.
    """

    is_given: bool = False
    draft: Draft = "auto"
    acceptance: str = "exact"
    reuse: bool = True
    trace: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A request, read and checked.

    Attributes:
        prompt: Messages of a chat, or a completion's text or token ids.
        logprobs: Whether to tell log probabilities; how many others, the options say.
    """

    is_chat: bool
    prompt: Any
    stream: bool = False
    include_usage: bool = False
    logprobs: bool = False
    extension: Extension = field(default_factory=Extension)
    options: Keywords


def read_ask(body: Any, *, is_chat: bool, draft: Draft, max_new_tokens: int) -> Ask:
    """Read a request.

    Args:
        body: What its JSON says.
        draft: For requests that do not say.
        max_new_tokens: The most that a request may ask for, and what a chat has that does not say.

    Raises:
        ApiError: A field is not known, or has a value that is not allowed.
    """
    if not isinstance(body, dict):
        raise ApiError(400, f"the body is {body!r:.60}; expected a JSON object")
    given = {name: value for name, value in body.items() if value is not None}
    _require_known(given, _CHAT if is_chat else _COMPLETION)
    extension = _extension(given.get("ppd"), draft)
    with_logprobs, num_logprobs = _logprobs(given, is_chat=is_chat)
    options: Keywords = {
        "max_new_tokens": _max_tokens(given, is_chat=is_chat, most=max_new_tokens),
        "draft": extension.draft,
        "acceptance": extension.acceptance,  # type: ignore[typeddict-item]  # checked by Options
        "reuse": extension.reuse,
        "logprobs": num_logprobs if with_logprobs else None,
        **_sampling(given),
        **(_for_template(given) if is_chat else {}),
    }
    try:
        Options(**options)
    except ArgumentError as error:
        raise wrong_option(error) from error
    stream = _is(given, "stream", bool, False)
    return Ask(
        is_chat=is_chat,
        prompt=_messages(given) if is_chat else _prompt(given),
        stream=stream,
        include_usage=_include_usage(given, stream),
        logprobs=with_logprobs,
        extension=extension,
        options=options,
    )


def _require_known(given: Mapping[str, Any], known: Collection[str]) -> None:
    for name, value in given.items():
        if name in _ONLY:
            if not any(value == only and isinstance(value, bool) == isinstance(only, bool) for only in _ONLY[name]):
                message = f"{name} is {value!r:.80}, which is not supported; leave it out, or give {_ONLY[name][0]!r}"
                raise ApiError(400, message, param=name, code="unsupported_value")
        elif name not in known:
            expected = ", ".join(sorted(known))
            raise ApiError(400, f"{name[:60]!r} is no field here; expected {expected}", param=name[:60], code="unknown")


def _is(given: Mapping[str, Any], name: str, kind: type, default: Any) -> Any:
    value = given.get(name, default)
    if value is not default and not isinstance(value, kind):
        raise wrong(name, value, {bool: "true or false", str: "a text", dict: "an object", list: "a list"}[kind])
    return value


def _whole(given: Mapping[str, Any], name: str, low: int, high: int) -> int | None:
    value = given.get(name)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high):
        raise wrong(name, value, f"a whole number from {low} to {high}")
    return value


def _max_tokens(given: Mapping[str, Any], *, is_chat: bool, most: int) -> int:
    found = {name: _whole(given, name, 1, most) for name in ("max_completion_tokens", "max_tokens") if name in given}
    if len(set(found.values())) > 1:
        raise wrong("max_tokens", given["max_tokens"], "the same as max_completion_tokens, or one of the two")
    return next(iter(found.values()), None) or (most if is_chat else min(most, _COMPLETION_TOKENS))


def _sampling(given: Mapping[str, Any]) -> Keywords:
    seed = _whole(given, "seed", -(2**63), 2**64 - 1)
    stop = given.get("stop", [])
    parts = stop if isinstance(stop, list) else [stop]
    ids = _is(given, "stop_token_ids", list, [])
    if not all(_is_stop(part) for part in parts):
        raise wrong("stop", stop, "a text or a token id, or a list of them")
    return {
        "temperature": given.get("temperature", 0.0),
        "top_p": given.get("top_p"),
        "top_k": given.get("top_k"),
        "seed": secrets.randbits(32) if seed is None else seed % 2**64,
        "stop": [part for part in parts if isinstance(part, str)],
        "stop_ids": [*(part for part in parts if isinstance(part, int)), *ids],
    }


def _is_stop(part: Any) -> bool:
    return part != "" if isinstance(part, str) else isinstance(part, int) and not isinstance(part, bool) and part >= 0


def _logprobs(given: Mapping[str, Any], *, is_chat: bool) -> tuple[bool, int]:
    """Whether log probabilities are asked for, and of how many other tokens."""
    if not is_chat:
        count = _whole(given, "logprobs", 0, MAX_TOP_LOGPROBS)
        return count is not None, count or 0
    wanted, count = _is(given, "logprobs", bool, False), _whole(given, "top_logprobs", 0, MAX_TOP_LOGPROBS)
    if count is not None and not wanted:
        raise wrong("top_logprobs", count, "logprobs: true with it")
    return wanted, count or 0


def _include_usage(given: Mapping[str, Any], stream: bool) -> bool:
    options = _is(given, "stream_options", dict, {})
    if options and not stream:
        raise wrong("stream_options", options, "stream: true with it")
    for name in options:
        if name != "include_usage":
            raise wrong(f"stream_options.{name:.40}", options[name], "include_usage alone")
    return bool(_is(options, "include_usage", bool, False))


def _for_template(given: Mapping[str, Any]) -> Keywords:
    choice = given.get("tool_choice", "auto")
    if choice not in ("auto", "none"):
        raise wrong("tool_choice", choice, "auto or none")
    tools = _is(given, "tools", list, None)
    return {
        "tools": tools if choice == "auto" and tools else None,
        "chat_template_kwargs": _is(given, "chat_template_kwargs", dict, None),
    }


def _messages(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The messages; OpenAI's newer word for a system message is one that templates do not know."""
    messages = given.get("messages")
    if not isinstance(messages, list) or not messages:
        raise wrong("messages", messages, "a list of objects with role and content")
    for place, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in _ROLES:
            raise wrong(f"messages[{place}]", message, f"an object whose role is one of {', '.join(_ROLES)}")
    return [{**message, "role": "system"} if message["role"] == "developer" else message for message in messages]


def _prompt(given: Mapping[str, Any]) -> Any:
    prompt = given.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    are_ids = isinstance(prompt, list) and bool(prompt) and all(isinstance(token, int) for token in prompt)
    if not are_ids and not isinstance(prompt, str):
        raise wrong("prompt", prompt, "one text, or the token ids of one")
    return prompt


_EXTENSION: Mapping[str, Callable[[Any], bool]] = {
    "draft": lambda value: isinstance(value, bool | str | list),
    "acceptance": lambda value: isinstance(value, str),
    "reuse": lambda value: isinstance(value, bool),
    "trace": lambda value: isinstance(value, bool),
}


def _extension(given: Any, draft: Draft) -> Extension:
    if given is None:
        return Extension(draft=draft)
    if not isinstance(given, dict):
        raise wrong("ppd", given, f"an object of {', '.join(_EXTENSION)}")
    for name, value in given.items():
        if name not in _EXTENSION:
            raise wrong(f"ppd.{name:.40}", value, f"one of {', '.join(_EXTENSION)}")
        if not _EXTENSION[name](value):
            raise wrong(f"ppd.{name}", value, "what docs/serve.md has")
    return Extension(is_given=True, **{"draft": draft, **given})
