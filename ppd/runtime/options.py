"""What a caller may ask of a generation: the one list of keywords, their defaults and their checks."""

import inspect
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypedDict, TypeVar, get_args

from ppd.arguments import number, whole
from ppd.errors import ArgumentError
from ppd.runtime.logprobs import MAX_TOP_LOGPROBS

Acceptance = Literal["exact", "typical"]
Source = Literal["ppd", "lookup", "table", "model", "medusa"]
Draft = bool | Literal["auto"] | Source | Collection[Source]
SOURCES: tuple[Source, ...] = get_args(Source)


class Keywords(TypedDict, total=False):
    """The fields of `Options` as keywords, for type checkers."""

    max_new_tokens: int
    temperature: float
    top_k: int | None
    top_p: float | None
    seed: int
    stop: str | Sequence[str] | None
    stop_ids: int | Collection[int] | None
    acceptance: Acceptance
    draft: Draft
    reuse: bool
    tools: Sequence[Mapping[str, Any]] | None
    chat_template_kwargs: Mapping[str, Any] | None
    logprobs: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of one generation.

    Attributes:
        max_new_tokens: Maximum number of new tokens, at least 1.
        temperature: 0 decodes greedily; above, tokens are sampled.
        top_k: Sample from the k most probable ids only. Without effect at temperature 0, like `top_p` and `seed`.
        top_p: Sample from the most probable ids whose probabilities reach p, 0 < p ≤ 1.
        seed: 0 to 2^64 - 1. The same seed gives the same tokens, drafting or not, but for near-ties in int8 and int4.
        stop: A text, or several, that ends the generation. It may have special tokens in it, such as "<|im_end|>".
        stop_ids: A token id, or several, that ends the generation as the bundle's EOS ids do.
        acceptance: "exact" keeps plain decoding's distribution; "typical" (temperature > 0) accepts more, and does not.
        draft: Whose guesses each step may verify: prompt tokens' ("ppd") or guess heads' ("medusa"), whichever the
            bundle has; the prompt's and the answer's own ("lookup"); those of the model's n-grams ("table"); a draft
            model's ("model"); one or several of these, or all there are ("auto"); the plan that promises most for its
            time is chosen step by step. False decodes plainly. True drafts with the tree at every step, whether that
            pays or not.
        reuse: Keep what the cache holds of the model's last generation as far as the prompt begins with it, and run the
            rest of the prompt only. Tokens are the same but for near-ties, as when a prompt is read in other chunks.
        tools: What the chat template lists as tools: objects as in OpenAI's interface.
        chat_template_kwargs: Variables of the chat template, such as {"enable_thinking": False}. `chat_template` is not
            one: it names another template of the bundle, where there are several.
        logprobs: Tell every token's log probability before temperature, and those of so many of the most probable ids,
            0 to 20; None tells nothing.

    Raises:
        ArgumentError: A value is not allowed.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    stop: str | Sequence[str] | None = ()
    stop_ids: int | Collection[int] | None = ()
    acceptance: Acceptance = "exact"
    draft: Draft = "auto"
    reuse: bool = False
    tools: Sequence[Mapping[str, Any]] | None = None
    chat_template_kwargs: Mapping[str, Any] | None = None
    logprobs: int | None = None

    def __post_init__(self) -> None:
        _require(_whole(self.max_new_tokens, 1), "max_new_tokens", self.max_new_tokens, "a whole number above 0")
        temperature = number(self.temperature)
        finite = temperature is not None and 0 <= temperature < math.inf
        _require(finite, "temperature", self.temperature, "0 or a number above 0")
        _require(self.top_k is None or _whole(self.top_k, 1), "top_k", self.top_k, "a whole number above 0, or None")
        top_p = number(self.top_p)
        in_range = self.top_p is None or (top_p is not None and 0 < top_p <= 1)
        _require(in_range, "top_p", self.top_p, "a number above 0 and at most 1, or None")
        _require(_whole(self.seed, 0) and self.seed < 2**64, "seed", self.seed, "a whole number from 0 to 2^64 - 1")
        is_texts = isinstance(self.stop, str | Sequence | None) and not isinstance(self.stop, bytes)
        _require(is_texts, "stop", self.stop, "a text or several")
        filled = all(isinstance(text, str) and text for text in self.stop_texts)
        _require(filled, "stop", self.stop, "texts that are not empty")
        _require(_are_ids(self.stop_ids), "stop_ids", self.stop_ids, "a token id or several")
        _require(self.acceptance in ("exact", "typical"), "acceptance", self.acceptance, "exact or typical")
        typical_needs_heat = self.acceptance != "typical" or self.temperature > 0
        _require(typical_needs_heat, "acceptance", "typical", "a temperature above 0 with it")
        _require(_is_draft(self.draft), "draft", self.draft, f"True, False, auto, or some of {', '.join(SOURCES)}")
        _require(isinstance(self.reuse, bool), "reuse", self.reuse, "True or False")
        _require(_are_objects(self.tools), "tools", self.tools, "a list of objects, or None")
        variables = self.chat_template_kwargs
        named = variables is None or (isinstance(variables, Mapping) and all(isinstance(key, str) for key in variables))
        _require(named, "chat_template_kwargs", variables, "an object, or None")
        taken = sorted({"messages", "tools", "add_generation_prompt"} & set(variables or ()))
        _require(not taken, "chat_template_kwargs", variables, f"no {' or '.join(taken)} among them")
        told = self.logprobs is None or (_whole(self.logprobs, 0) and self.logprobs <= MAX_TOP_LOGPROBS)
        _require(told, "logprobs", self.logprobs, f"a whole number from 0 to {MAX_TOP_LOGPROBS}, or None")
        for name, kind in _KINDS.items():  # NumPy's unsigned numbers wrap around where they are reckoned with
            value = getattr(self, name)
            object.__setattr__(self, name, value if value is None else kind(value))

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """The stop texts, however they were given."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def stop_id_set(self) -> frozenset[int]:
        """The stop ids, however they were given."""
        if self.stop_ids is None:
            return frozenset()
        return frozenset(map(int, self.stop_ids if isinstance(self.stop_ids, Collection) else (self.stop_ids,)))


_KINDS: dict[str, Callable[[Any], object]] = {
    "max_new_tokens": int,
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "seed": int,
    "logprobs": int,
}
"""What the numbers among the options are, however they were given."""
_Function = TypeVar("_Function", bound=Callable[..., object])


def takes_options(function: _Function) -> _Function:
    """Show the options with their defaults in the signature of a function that takes them as `**options`."""
    signature = inspect.signature(function)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    options = [
        inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
        for field in fields(Options)
    ]
    function.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
    return function


def _require(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise ArgumentError(f"{name} is {value!r:.200}; expected {expected}")


def _is_draft(value: object) -> bool:
    if isinstance(value, bool | str):
        return isinstance(value, bool) or value in ("auto", *SOURCES)
    return isinstance(value, Collection) and len(value) > 0 and all(item in SOURCES for item in value)


def _are_ids(value: object) -> bool:
    if value is None or _whole(value, 0):
        return True
    if isinstance(value, str | bytes) or not isinstance(value, Collection):
        return False
    return all(_whole(i, 0) for i in value)


def _are_objects(value: object) -> bool:
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        return value is None
    return all(isinstance(item, Mapping) for item in value)


def _whole(value: object, minimum: int) -> bool:
    found = whole(value)
    return found is not None and found >= minimum
