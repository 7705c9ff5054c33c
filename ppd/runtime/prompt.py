"""Prompts: text, token ids or messages become the token ids that a model reads."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from ppd.bundle import DEFAULT_TEMPLATE, Bundle, chat_template_names
from ppd.errors import ArgumentError, ContextError, TokenizerError
from ppd.messages import Message
from ppd.runtime.text_length import TextLength
from ppd.runtime.tokenizer import encode

Prompt = str | Sequence[int] | Sequence[Message]


class PromptEncoder:
    """Encodes the prompts of a bundle."""

    def __init__(self, bundle: Bundle, tokenizer: Tokenizer | None) -> None:
        self._manifest, self._tokenizer = bundle.manifest, tokenizer
        self._templates = {name: bundle.read_bytes(file).decode() for name, file in chat_template_names(bundle).items()}

    def encode(
        self,
        prompt: Prompt | None,
        messages: Sequence[Message] | None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """The token ids of a prompt, or of messages, checked.

        Raises:
            ArgumentError: Both or neither are given, there are no tokens, or one is outside the vocabulary; or there
                are variables for a template and no messages.
            ContextError: They fill the context.
            TokenizerError: It is text or messages, and the bundle has no tokenizer or no chat template.
        """
        if (prompt is None) == (messages is None):
            raise ArgumentError("expected either a prompt or messages, and not both")
        given = messages if messages is not None else prompt
        if messages is not None or _are_messages(given):
            return self._check(self._from_messages(given, tools, chat_template_kwargs or {}))
        if tools is not None or chat_template_kwargs:
            raise ArgumentError("tools and chat_template_kwargs go with messages; the prompt is text or token ids")
        return self._check(self._from_prompt(given))

    def require_chat(self) -> None:
        """Refuse a bundle that cannot read messages.

        Raises:
            TokenizerError: The bundle has no chat template, or no tokenizer.
        """
        if not self._templates:
            raise TokenizerError("the bundle has no chat template, so it takes text or token ids, not messages")
        self._require_tokenizer()

    def end_of_answer(self, messages: Sequence[Message], answer: str) -> int | None:
        """The special token that the template writes behind a conversation's last answer; None if it writes none."""
        from ppd.runtime.chat import render_chat

        template, special_tokens = self._templates[DEFAULT_TEMPLATE], self._manifest.special_tokens
        try:
            after = render_chat(template, messages, special_tokens, answer_follows=False).partition(answer)[2].strip()
        except ArgumentError:
            return None
        ids = self._from_text(after, add_special_tokens=False)[:1]
        added_tokens = self._require_tokenizer().get_added_tokens_decoder()
        return ids[0] if ids and ids[0] in added_tokens and added_tokens[ids[0]].special else None

    def _from_prompt(self, prompt: Any) -> list[Any]:
        if isinstance(prompt, str):
            return self._from_text(prompt, add_special_tokens=True)
        if isinstance(prompt, bytes | bytearray | Mapping) or not isinstance(prompt, Sequence | np.ndarray):
            raise ArgumentError(f"the prompt is {prompt!r:.60}; expected text, token ids or messages")
        return list(np.atleast_1d(prompt)) if isinstance(prompt, np.ndarray) else list(prompt)

    def _from_messages(
        self, messages: Any, tools: Sequence[Mapping[str, Any]] | None, given: Mapping[str, Any]
    ) -> list[Any]:
        from ppd.runtime.chat import choose_template, plain_messages, render_chat  # Jinja is not needed for text

        read = plain_messages(messages)
        self.require_chat()
        variables = {**given, "tools": tools}
        template = choose_template(self._templates, variables.pop("chat_template", None), with_tools=bool(tools))
        special_tokens = self._manifest.special_tokens
        rendered = render_chat(template, read, special_tokens, variables=variables)
        return self._from_text(rendered, add_special_tokens=False)

    def _from_text(self, text: str, *, add_special_tokens: bool) -> list[int]:
        tokenizer, context = self._require_tokenizer(), self._manifest.context
        if len(text) >= context and (least := self._length.least_tokens(text)) >= context:
            raise ContextError(
                f"the prompt has {len(text)} characters, at least {least} tokens; the context is {context}, the answer "
                "included: shorten it"
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:  # what was typed was not UTF-8
            raise ArgumentError(f"the prompt is not valid Unicode text ({error}); give it as UTF-8") from error
        return encode(tokenizer, text, add_special_tokens=add_special_tokens)

    @functools.cached_property
    def _length(self) -> TextLength:
        return TextLength(self._require_tokenizer())

    def _require_tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            raise TokenizerError(
                "the bundle has no tokenizer, so it takes token ids, not text; export from a folder with one"
            )
        return self._tokenizer

    def _check(self, ids: list[Any]) -> list[int]:
        vocab_size, context = self._manifest.model.vocab_size, self._manifest.context
        if not ids:
            raise ArgumentError("the prompt has no tokens; expected at least one")
        for i in ids:
            if not isinstance(i, int | np.integer) or isinstance(i, bool) or not 0 <= i < vocab_size:
                raise ArgumentError(
                    f"the prompt has the token id {i!r}; expected whole numbers from 0 to {vocab_size - 1}"
                )
        if len(ids) >= context:
            raise ContextError(
                f"the prompt has {len(ids)} tokens; the context is {context}, the answer included: shorten it"
            )
        return [int(i) for i in ids]


def _are_messages(prompt: Any) -> bool:
    return isinstance(prompt, Sequence) and len(prompt) > 0 and isinstance(prompt[0], Mapping)
