"""Prompts: text, token ids or messages become the token ids that a model reads."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from ppd.bundle import CHAT_TEMPLATE_FILE, Bundle
from ppd.documents import Message
from ppd.errors import ArgumentError, ContextError, TokenizerError
from ppd.runtime.tokenizer import encode

Prompt = str | Sequence[int] | Sequence[Message]


class PromptEncoder:
    """Encodes the prompts of a bundle."""

    def __init__(self, bundle: Bundle, tokenizer: Tokenizer | None) -> None:
        self._manifest, self._tokenizer = bundle.manifest, tokenizer
        has_template = bundle.has(CHAT_TEMPLATE_FILE)
        self._chat_template = bundle.read_bytes(CHAT_TEMPLATE_FILE).decode() if has_template else None

    def encode(self, prompt: Prompt | None, messages: Sequence[Message] | None) -> list[int]:
        """The token ids of a prompt, or of messages, checked.

        Raises:
            ArgumentError: Both or neither are given, there are no tokens, or one is outside the vocabulary.
            ContextError: They fill the context.
            TokenizerError: It is text or messages, and the bundle has no tokenizer or no chat template.
        """
        if (prompt is None) == (messages is None):
            raise ArgumentError("expected either a prompt or messages, and not both")
        return self._check(self._from_prompt(prompt) if messages is None else self._from_messages(messages))

    def require_chat(self) -> str:
        """The chat template, of a bundle that can read what it renders.

        Raises:
            TokenizerError: The bundle has no chat template, or no tokenizer.
        """
        if self._chat_template is None:
            raise TokenizerError("the bundle has no chat template, so it takes text or token ids, not messages")
        self._require_tokenizer()
        return self._chat_template

    def _from_prompt(self, prompt: Prompt | None) -> list[Any]:
        if isinstance(prompt, str):
            return self._from_text(prompt, add_special_tokens=True)
        if isinstance(prompt, bytes | bytearray | Mapping) or not isinstance(prompt, Sequence | np.ndarray):
            raise ArgumentError(f"the prompt is {prompt!r:.60}; expected text, token ids or messages")
        items: list[Any] = list(np.atleast_1d(prompt)) if isinstance(prompt, np.ndarray) else list(prompt)
        return self._from_messages(items) if items and isinstance(items[0], Mapping) else items

    def _from_messages(self, messages: Sequence[Message]) -> list[Any]:
        from ppd.runtime.chat import check_messages, render_chat  # Jinja is not needed for text

        check_messages(messages)
        rendered = render_chat(self.require_chat(), messages, self._manifest.special_tokens)
        return self._from_text(rendered, add_special_tokens=False)

    def _from_text(self, text: str, *, add_special_tokens: bool) -> list[int]:
        tokenizer = self._require_tokenizer()
        try:
            text.encode()
        except UnicodeEncodeError as error:  # what was typed was not UTF-8
            raise ArgumentError(f"the prompt is not valid Unicode text ({error}); give it as UTF-8") from error
        return encode(tokenizer, text, add_special_tokens=add_special_tokens)

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
